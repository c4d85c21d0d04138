//! A native stream: one event for each token, the last of them with the text.

use std::ops::ControlFlow;

use axum::response::Response;
use bytes::BytesMut;
use futures::{StreamExt, stream};

use super::{
    convert::Wanted,
    types::{StreamDetails, StreamResponse, Token},
};
use crate::{
    api::{
        Dialect,
        headers::Compute,
        sse::{self, Encoder},
    },
    error::Error,
    infer::Generation,
    output::{Output, TokenOutput},
};

/// # Errors
/// What is known before the first token, and so can still have a status of its own.
pub(super) async fn stream(
    mut generation: Generation,
    wanted: &Wanted,
    compute: &Compute,
) -> Result<Response, Error> {
    let first = generation.next().await.ok_or(Error::Incomplete)??;
    let info = &generation.info;
    let encoder = Events {
        wanted: *wanted,
        text: if wanted.full_text { info.prompt_text.clone() } else { String::new() },
        prompt_tokens: info.prompt_tokens,
        seed: info.seed,
        held: None,
        last_id: 0,
    };
    Ok(sse::respond(compute.stream_headers(), stream::iter([Ok(first)]).chain(generation), encoder))
}

struct Events {
    wanted: Wanted,
    /// All so far.
    text: String,
    prompt_tokens: u32,
    seed: Option<u64>,
    /// The newest token, until it is known not to be the last.
    held: Option<TokenOutput>,
    last_id: u32,
}

impl Events {
    fn write(&self, token: &TokenOutput, end: Option<(String, Option<StreamDetails>)>, out: &mut BytesMut) {
        let (generated_text, details) = end.map_or((None, None), |(text, details)| (Some(text), details));
        sse::event(
            out,
            &StreamResponse {
                token: Token::new(token, self.wanted.alternatives),
                top_tokens: self.wanted.top_tokens.map(|count| Token::top(token, count)),
                generated_text,
                details,
            },
        );
    }
}

impl Encoder for Events {
    type Item = Result<Output, Error>;

    fn item(&mut self, item: Self::Item, out: &mut BytesMut) -> ControlFlow<()> {
        match item {
            Ok(Output::Prompt(_)) => ControlFlow::Continue(()),
            Ok(Output::Token(token)) => {
                self.idle(out);
                self.text.push_str(&token.delta);
                self.last_id = token.id;
                self.held = Some(token);
                ControlFlow::Continue(())
            }
            Ok(Output::Finished { reason, generated_tokens, .. }) => {
                // A token that was sent already cannot carry the text: one that clients skip does.
                let token = self.held.take().unwrap_or_else(|| empty_token(self.last_id));
                let details = self.wanted.details.then_some(StreamDetails {
                    finish_reason: reason.into(),
                    prompt_tokens: self.prompt_tokens,
                    generated_tokens,
                    seed: self.seed,
                });
                let text = std::mem::take(&mut self.text);
                self.write(&token, Some((text, details)), out);
                ControlFlow::Break(())
            }
            Err(error) => {
                self.idle(out);
                sse::raw_event(out, &[&Dialect::Native.error_body(&error)]);
                ControlFlow::Break(())
            }
        }
    }

    fn idle(&mut self, out: &mut BytesMut) {
        if let Some(token) = self.held.take() {
            self.write(&token, None, out);
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.idle(out);
        sse::raw_event(out, &[&Dialect::Native.error_body(&Error::Incomplete)]);
    }
}

fn empty_token(id: u32) -> TokenOutput {
    TokenOutput {
        id,
        text: String::new(),
        logprob: 0.0,
        special: true,
        alternatives: Vec::new(),
        delta: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::FinishReason;

    fn events(outputs: impl IntoIterator<Item = (Result<Output, Error>, bool)>) -> String {
        let wanted = Wanted {
            sequences: 1,
            details: false,
            full_text: false,
            alternatives: None,
            top_tokens: None,
            characters: 1,
        };
        let mut encoder =
            Events { wanted, text: String::new(), prompt_tokens: 3, seed: None, held: None, last_id: 0 };
        let mut out = BytesMut::new();
        for (output, then_idle) in outputs {
            if encoder.item(output, &mut out).is_break() {
                return String::from_utf8(out.to_vec()).unwrap();
            }
            if then_idle {
                encoder.idle(&mut out);
            }
        }
        encoder.end(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn token(text: &str) -> Output {
        let (text, delta) = (text.to_owned(), text.to_owned());
        Output::Token(TokenOutput { id: 7, text, logprob: -0.5, special: false, alternatives: vec![], delta })
    }

    fn finished() -> Output {
        let (queued, inference) = (Duration::ZERO, Duration::ZERO);
        let reason = FinishReason::Length;
        Output::Finished { reason, generated_tokens: 2, cached_tokens: 0, queued, inference }
    }

    const FIRST: &str = "data: {\"token\":{\"id\":7,\"text\":\"a\",\"logprob\":-0.5,\"special\":false,\
        \"skipped\":false},\"generated_text\":null,\"details\":null}\n\n";

    #[test]
    fn the_last_token_carries_the_text() {
        let expected =
            format!("{FIRST}{}", FIRST.replace("\"a\"", "\"b\"").replace("_text\":null", "_text\":\"ab\""));
        assert_eq!(
            events([(Ok(token("a")), true), (Ok(token("b")), false), (Ok(finished()), false)]),
            expected
        );
    }

    #[test]
    fn a_late_end_is_told_by_a_token_that_clients_skip() {
        let text = events([(Ok(token("a")), true), (Ok(finished()), false)]);
        assert!(text.starts_with(FIRST));
        assert!(text.ends_with(
            "data: {\"token\":{\"id\":7,\"text\":\"\",\"logprob\":0.0,\"special\":true,\"skipped\":false},\
             \"generated_text\":\"a\",\"details\":null}\n\n"
        ));
    }

    #[test]
    fn an_error_is_the_last_event() {
        let incomplete =
            "data: {\"error\":\"Incomplete generation\",\"error_type\":\"incomplete_generation\"}\n\n";
        assert_eq!(events([(Ok(token("a")), false)]), format!("{FIRST}{incomplete}"));
        let failed = events([(Ok(token("a")), false), (Err(Error::Generation("x".into())), false)]);
        assert!(failed.ends_with(
            "data: {\"error\":\"Request failed during generation: x\",\"error_type\":\"generation\"}\n\n"
        ));
    }
}
