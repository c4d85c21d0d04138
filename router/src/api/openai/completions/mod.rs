//! `/v1/completions`.

mod convert;
mod logprobs;
mod stream;
mod types;

use axum::{
    extract::{Extension, State},
    response::Response,
};

use self::{convert::convert, stream::CompletionChunks};
pub use types::*;

use super::{
    Usage,
    answer::{Shape, answer},
    reply::{FINGERPRINT, Head, finish_reason},
};
use crate::{
    api::{collect::Completed, error::OpenAiErrors, extract::Json},
    app::AppState,
    error::Error,
    infer::Generation,
    middleware::RequestId,
};

/// Complete a text
///
/// `model` is the base model or an adapter. With `stream`, chunks as server-sent events, ended by `[DONE]`.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body = CompletionBody,
    responses(
        (status = 200, description = "The completion, or chunks of it", content(
            (Completion = "application/json"),
            (CompletionChunk = "text/event-stream"),
        )),
        OpenAiErrors,
    )
)]
pub async fn completions(
    State(state): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<CompletionBody>,
) -> Result<Response, Error> {
    answer(&state, convert(body, &state.config, &request_id)).await
}

struct Text {
    echo: bool,
    /// Only the prompt is answered: `echo` with no tokens to generate. One is generated and dropped.
    prompt_only: bool,
    /// Alternatives with each token; `None` answers no log-probabilities.
    logprobs: Option<u32>,
}

impl Shape for Text {
    const PREFIX: &'static str = "cmpl";
    type Chunks = CompletionChunks;
    type Whole = Completion;

    fn trim(&self, completed: &mut Completed) {
        if self.prompt_only {
            completed.forget_output();
        }
    }

    fn chunks(self, head: Head, generations: &[Generation]) -> CompletionChunks {
        CompletionChunks::new(head, self.echo, self.logprobs, generations)
    }

    fn whole(self, head: Head, choices: Vec<Completed>, usage: Usage) -> Completion {
        let Head { id, created, model } = head;
        let choices = choices.into_iter().enumerate();
        Completion {
            id,
            object: "text_completion",
            created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: choices.map(|(index, completed)| self.choice(index, completed)).collect(),
            usage,
        }
    }
}

impl Text {
    fn choice(&self, index: usize, completed: Completed) -> CompletionChoice {
        let logprobs = self.logprobs.map(|count| {
            let mut table = logprobs::Table::new(count);
            if self.echo {
                table.prompt(&completed.prompt, &completed.info.prompt_text);
            }
            for token in &completed.tokens {
                table.token(token);
            }
            table.take()
        });
        let text = if self.echo { completed.info.prompt_text + &completed.text } else { completed.text };
        CompletionChoice { index, text, logprobs, finish_reason: finish_reason(completed.reason) }
    }
}
