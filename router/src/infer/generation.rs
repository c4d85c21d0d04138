//! One request's outputs as they come.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use lorikeet_engine as engine;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    detokenizer::Detokenizer,
    stop::{Matched, StopMatcher},
};
use crate::{
    driver::{Message, Ticket},
    error::Error,
    output::{Alternative, FinishReason, GenerationInfo, Output, PromptToken, TokenOutput},
    telemetry::{Metrics, Series, Timings},
    validate::Tokenizer,
};

/// A queued or running request. Dropping it cancels the request and gives back all that it holds.
pub struct Generation {
    /// What was known when the request was queued.
    pub info: GenerationInfo,
    ticket: Ticket,
    text: Text,
    clock: Clock,
    generated: u32,
    cached: u32,
    queued: Duration,
    stage: Stage,
    metrics: Arc<Metrics>,
    series: Arc<Series>,
    /// One of the requests that the server has at once.
    _permit: OwnedSemaphorePermit,
}

/// Tokens to text that may be shown.
pub(super) struct Text {
    pub(super) detokenizer: Detokenizer,
    pub(super) stop: StopMatcher,
}

struct Clock {
    arrived: Instant,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The last token was given; `Output::Finished` is next.
    Finishing(FinishReason),
    Ended,
}

impl Generation {
    pub(super) fn new(
        info: GenerationInfo,
        ticket: Ticket,
        permit: OwnedSemaphorePermit,
        text: Text,
        metrics: Arc<Metrics>,
        series: Arc<Series>,
        arrived: Instant,
    ) -> Self {
        let now = Instant::now();
        Self {
            info,
            ticket,
            text,
            clock: Clock { arrived, started: now, first_token: None, last_token: arrived },
            generated: 0,
            cached: 0,
            queued: Duration::ZERO,
            stage: Stage::Running,
            metrics,
            series,
            _permit: permit,
        }
    }

    /// The output of an event, if it has one.
    fn event(&mut self, event: engine::Event, at: Instant) -> Option<Result<Output, Error>> {
        match event {
            engine::Event::Started { queued, cached_tokens, .. } => {
                self.series.started(queued, cached_tokens);
                self.queued = queued;
                self.cached = cached_tokens;
                self.clock.started = at;
                None
            }
            engine::Event::Prompt { tokens, .. } => Some(Ok(Output::Prompt(self.text.prompt(tokens)))),
            engine::Event::Token { token, logprob, alternatives, finish, .. } => {
                Some(Ok(Output::Token(self.token(token, logprob, &alternatives, finish, at))))
            }
            engine::Event::Failed { reason, .. } => Some(Err(self.fail(failure(reason)))),
        }
    }

    fn token(
        &mut self,
        id: u32,
        logprob: f32,
        alternatives: &[engine::Alternative],
        finish: Option<engine::FinishReason>,
        at: Instant,
    ) -> TokenOutput {
        self.series.token(self.clock.first_token.is_none(), at.duration_since(self.clock.last_token));
        self.clock.first_token.get_or_insert(at);
        self.clock.last_token = at;
        self.generated += 1;
        if finish.is_some() {
            self.ticket.ended();
        }
        let tokenizer = Arc::clone(self.text.detokenizer.tokenizer());
        let special = tokenizer.special(id);
        let (text, delta, stopped) = self.text.push(id, special, finish);
        if stopped {
            // The engine runs on until it is told.
            self.ticket.cancel();
            self.stage = Stage::Finishing(FinishReason::StopSequence);
        } else if let Some(reason) = finish {
            self.stage = Stage::Finishing(match reason {
                engine::FinishReason::Length => FinishReason::Length,
                engine::FinishReason::StopToken => FinishReason::Eos,
            });
        }
        TokenOutput {
            id,
            logprob: finite(logprob),
            special: special.is_some(),
            alternatives: alternatives_text(&tokenizer, alternatives, id, &text),
            text,
            delta,
        }
    }

    fn finish(&mut self, reason: FinishReason) -> Output {
        self.stage = Stage::Ended;
        let Clock { arrived, started, first_token, last_token } = self.clock;
        let first_token = first_token.unwrap_or(last_token);
        let timings = Timings {
            prefill: first_token.duration_since(started),
            decode: last_token.duration_since(first_token),
            end_to_end: last_token.duration_since(arrived),
        };
        self.series.finished(reason, self.generated, timings);
        Output::Finished {
            reason,
            generated_tokens: self.generated,
            cached_tokens: self.cached,
            queued: self.queued,
            inference: last_token.duration_since(started),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.ticket.ended();
        self.stage = Stage::Ended;
        self.metrics.rejected(&error);
        error
    }
}

impl Stream for Generation {
    /// `Output::Finished` or an error is the last item.
    type Item = Result<Output, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this.stage {
                Stage::Ended => return Poll::Ready(None),
                Stage::Finishing(reason) => return Poll::Ready(Some(Ok(this.finish(reason)))),
                Stage::Running => {}
            }
            let output = match ready!(this.ticket.poll(context)) {
                Some(Message::Event(event, at)) => this.event(event, at),
                Some(Message::Failed(error)) => Some(Err(this.fail(error))),
                None => Some(Err(this.fail(Error::Incomplete))),
            };
            if output.is_some() {
                return Poll::Ready(output);
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.stage == Stage::Running {
            self.series.cancelled();
        }
    }
}

impl Text {
    /// The token's own text, the text that is final with it, and whether a stop string was found. `finish`: no
    /// token follows, and why.
    fn push(
        &mut self,
        id: u32,
        special: Option<&str>,
        finish: Option<engine::FinishReason>,
    ) -> (String, String, bool) {
        let mut piece = if special.is_some() { String::new() } else { self.detokenizer.push(id) };
        if finish.is_some() {
            piece.push_str(&self.detokenizer.finish());
        }
        let text = special.map_or_else(|| piece.clone(), str::to_owned);
        // The end of the sequence is that, and no stop string.
        let written = special.filter(|_| finish != Some(engine::FinishReason::StopToken)).unwrap_or_default();
        match self.stop.push(piece, written) {
            Matched::Stop(delta) => (text, delta, true),
            Matched::Text(mut delta) => {
                if finish.is_some() {
                    delta.push_str(&self.stop.finish());
                }
                (text, delta, false)
            }
        }
    }

    fn prompt(&self, tokens: Vec<engine::PromptToken>) -> Vec<PromptToken> {
        let tokenizer = self.detokenizer.tokenizer();
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), &[]);
        let text = |id| match tokenizer.special(id) {
            Some(special) => special.to_owned(),
            None => detokenizer.push(id),
        };
        let mut texts: Vec<String> = tokens.iter().map(|token| token.token).map(text).collect();
        if let Some(last) = texts.last_mut() {
            last.push_str(&detokenizer.finish());
        }
        tokens
            .into_iter()
            .zip(texts)
            .map(|(token, text)| PromptToken {
                id: token.token,
                logprob: token.logprob.map(finite),
                alternatives: alternatives_text(tokenizer, &token.alternatives, token.token, &text),
                text,
            })
            .collect()
    }
}

/// The text of each alternative alone, but of the token in whose place they stand as it reads there: clients
/// look for it among them, and alone it may be a part of a character.
fn alternatives_text(
    tokenizer: &Tokenizer,
    alternatives: &[engine::Alternative],
    chosen: u32,
    text: &str,
) -> Vec<Alternative> {
    alternatives
        .iter()
        .map(|&engine::Alternative { token, logprob }| Alternative {
            id: token,
            text: if token == chosen { text } else { tokenizer.piece(token) }.to_owned(),
            logprob: finite(logprob),
            special: tokenizer.special(token).is_some(),
        })
        .collect()
}

/// Clients require a number, and JSON has no infinity: a token that a filter or bias excludes has the lowest
/// one.
fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { f32::MIN } else { logprob.clamp(f32::MIN, f32::MAX) }
}

fn failure(reason: engine::FailureReason) -> Error {
    use engine::FailureReason as R;
    match reason {
        R::DeadlineExceeded { .. } => Error::DeadlineExceeded,
        R::Row { code, message } if code == "numeric_error" => Error::Numeric(message),
        R::Row { message, .. } | R::Adapter { message } => Error::Generation(message),
        R::ShardLost => Error::ShardLost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_numbers_of_json() {
        let told = (finite(-0.5), finite(f32::NEG_INFINITY), finite(f32::INFINITY), finite(f32::NAN));
        assert_eq!(told, (-0.5, f32::MIN, f32::MAX, f32::MIN));
    }
}
