//! `/v1/chat/completions`.

mod convert;
mod logprobs;
mod stream;
mod types;

use axum::{
    Json as JsonBody,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};

use self::{
    convert::{Plan, convert},
    stream::ChatChunks,
};
pub use types::*;

use super::{
    batch::{complete, fan_out, merge, start, usage},
    reply::{FINGERPRINT, Head, finish_reason},
    stream::Events,
};
use crate::{
    api::{collect::Completed, error::OpenAiErrors, extract::Json, headers::Compute, sse},
    app::AppState,
    error::Error,
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
    let plan = convert(body, &state.config, request_id).inspect_err(|error| state.metrics.rejected(error))?;
    let compute = Compute::start(&state, plan.request.adapter.clone(), plan.characters);
    let Plan { request, choices, logprobs, stream, stream_options, model, .. } = plan;
    let head = Head::new("chatcmpl", model);
    let requests = fan_out(vec![request], choices);
    if stream {
        let generations = start(&state, requests).await?;
        let events =
            Events::new(ChatChunks::new(head, logprobs, choices), stream_options, &generations, choices);
        return Ok(sse::respond(compute.stream_headers(), merge(generations).await?, events));
    }
    let completed = complete(&state, requests).await?;
    let usage = usage(&completed, choices);
    let headers = compute.headers(&completed, usage.prompt_tokens, usage.completion_tokens);
    let choices = completed
        .into_iter()
        .enumerate()
        .map(|(index, completed)| choice(index, completed, logprobs))
        .collect();
    let Head { id, created, model } = head;
    let (object, system_fingerprint) = ("chat.completion", FINGERPRINT);
    Ok((headers, JsonBody(ChatCompletion { id, object, created, model, system_fingerprint, choices, usage }))
        .into_response())
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
