//! `/tokenize`.

use axum::{Json as JsonBody, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{error::NativeErrors, extract::Json};
use crate::{app::AppState, error::Error, validate::TokenSpan};

#[derive(Deserialize, ToSchema)]
pub struct TokenizeBody {
    #[schema(example = "What is LoRA?")]
    pub inputs: String,
    /// Put the tokens around the text that the model expects, such as the one for its beginning. True if not given.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub struct SimpleToken {
    pub id: u32,
    /// The piece as the vocabulary writes it.
    pub text: String,
    /// In characters of the text.
    pub start: usize,
    pub stop: usize,
}

impl From<TokenSpan> for SimpleToken {
    fn from(TokenSpan { id, text, start, stop }: TokenSpan) -> Self {
        Self { id, text, start, stop }
    }
}

/// The tokens of a text
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "Native",
    request_body = TokenizeBody,
    responses((status = 200, body = Vec<SimpleToken>), NativeErrors)
)]
pub async fn tokenize(
    State(state): State<AppState>,
    Json(body): Json<TokenizeBody>,
) -> Result<JsonBody<Vec<SimpleToken>>, Error> {
    let tokens = state.validator.tokenize(body.inputs, body.add_special_tokens.unwrap_or(true)).await?;
    Ok(JsonBody(tokens.into_iter().map(Into::into).collect()))
}
