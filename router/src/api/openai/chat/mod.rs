//! `/v1/chat/completions`.

mod convert;
mod logprobs;
mod shape;
mod stream;
mod types;

use axum::{
    extract::{Extension, State},
    response::Response,
};

use self::convert::convert;
pub use types::*;

use super::{answer::answer, params::without_alias};
use crate::{
    api::{RequestId, error::OpenAiErrors, extract::Json},
    app::AppState,
    error::Error,
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
    Json(mut body): Json<ChatBody>,
) -> Result<Response, Error> {
    without_alias(&state.registry, &mut body.model).await;
    answer(&state, convert(body, &state.config, request_id)).await
}
