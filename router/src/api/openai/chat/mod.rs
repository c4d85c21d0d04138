//! `/v1/chat/completions`.

mod convert;
mod logprobs;
mod stream;
mod types;

use axum::{
    extract::{Extension, State},
    response::Response,
};

use self::{convert::convert, stream::ChatChunks};
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

/// Continue a conversation
///
/// `model` is the base model or an adapter. With `stream`, chunks as server-sent events, ended by `[DONE]`.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "OpenAI",
    request_body = ChatBody,
    responses(
        (status = 200, description = "The answer, or chunks of it", content(
            (ChatCompletion = "application/json"),
            (ChatChunk = "text/event-stream"),
        )),
        OpenAiErrors,
    )
)]
pub async fn chat_completions(
    State(state): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<ChatBody>,
) -> Result<Response, Error> {
    answer(&state, convert(body, &state.config, request_id)).await
}

struct Chat {
    /// Alternatives with each token; `None` answers no log-probabilities.
    logprobs: Option<usize>,
}

impl Shape for Chat {
    const PREFIX: &'static str = "chatcmpl";
    type Chunks = ChatChunks;
    type Whole = ChatCompletion;

    fn chunks(self, head: Head, generations: &[Generation]) -> ChatChunks {
        ChatChunks::new(head, self.logprobs, generations.len())
    }

    fn whole(self, head: Head, choices: Vec<Completed>, usage: Usage) -> ChatCompletion {
        let Head { id, created, model } = head;
        let choices = choices.into_iter().enumerate();
        ChatCompletion {
            id,
            object: "chat.completion",
            created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: choices.map(|(index, completed)| choice(index, completed, self.logprobs)).collect(),
            usage,
        }
    }
}

fn choice(index: usize, completed: Completed, logprobs: Option<usize>) -> ChatChoice {
    ChatChoice {
        index,
        logprobs: logprobs.map(|count| ChatLogprobs {
            content: completed.tokens.iter().map(|token| logprobs::entry(token, count)).collect(),
            refusal: None,
        }),
        message: AssistantMessage { role: "assistant", content: Some(completed.text), refusal: None },
        finish_reason: finish_reason(completed.reason),
    }
}
