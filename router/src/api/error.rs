//! An error as a client reads it: one value, two dialects.
//!
//! Handlers, extractors and layers answer with an [`Error`] and do not know who reads it. It travels in the
//! response's extensions up to `middleware::errors`, which writes the body for the dialect of the path.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder},
};

use super::extract::BODY;
use crate::error::Error;

/// Whose shapes a route speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// LoRAX and TGI: everything outside `/v1`.
    Native,
    OpenAi,
    /// OpenAI's, where the prompt is a conversation.
    OpenAiChat,
}

impl Dialect {
    pub fn of_path(path: &str) -> Self {
        match path.strip_prefix("/v1") {
            Some("/chat/completions") => Self::OpenAiChat,
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self::OpenAi,
            _ => Self::Native,
        }
    }

    /// The JSON body for this error; also the payload of an SSE error event.
    pub fn error_body(self, error: &Error) -> Vec<u8> {
        let info = error.info();
        let message = error.to_string();
        let body = match self {
            Self::Native => {
                serde_json::to_vec(&ErrorResponse { error: message, error_type: info.error_type.to_owned() })
            }
            Self::OpenAi | Self::OpenAiChat => serde_json::to_vec(&OpenAiErrorResponse {
                error: OpenAiError {
                    message: self.renamed(&message),
                    kind: info.openai_type.to_owned(),
                    param: match error {
                        Error::WrongShape { path, .. } => Some(path.clone()).filter(|path| path != BODY),
                        _ if self == Self::OpenAiChat && info.param == Some("prompt") => {
                            Some("messages".to_owned())
                        }
                        _ => info.param.map(str::to_owned),
                    },
                    code: info.code.map(str::to_owned),
                },
            }),
        };
        body.unwrap_or_else(|_| b"{}".to_vec())
    }

    /// LoRAX's texts with the names that the caller of an OpenAI route wrote.
    fn renamed(self, message: &str) -> String {
        let prompt = if self == Self::OpenAiChat { "`messages`" } else { "`prompt`" };
        let message = message.replace("`inputs`", prompt).replace("`max_new_tokens`", "`max_tokens`");
        message.replace("`return_k_alternatives`", "`top_logprobs`")
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.info().native_status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The error body of every route outside `/v1`.
#[derive(Serialize, ToSchema)]
pub struct ErrorResponse {
    #[schema(example = "Input validation error: `inputs` cannot be empty")]
    pub error: String,
    #[schema(example = "validation")]
    pub error_type: String,
}

/// The error body of every route under `/v1`.
#[derive(Serialize, ToSchema)]
pub struct OpenAiErrorResponse {
    pub error: OpenAiError,
}

#[derive(Serialize, ToSchema)]
pub struct OpenAiError {
    pub message: String,
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    pub kind: String,
    /// The request field at fault, if it is one.
    #[schema(required)]
    pub param: Option<String>,
    #[schema(required)]
    pub code: Option<String>,
}

/// The error responses of a native route, for the API's description.
pub(super) struct NativeErrors;

impl IntoResponses for NativeErrors {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        describe("ErrorResponse")
    }
}

/// The error responses of a route under `/v1`, for the API's description.
pub(super) struct OpenAiErrors;

impl IntoResponses for OpenAiErrors {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        describe("OpenAiErrorResponse")
    }
}

fn describe(schema: &str) -> BTreeMap<String, RefOr<openapi::Response>> {
    [("4XX", "The request is at fault, or there are too many"), ("5XX", "The server is")]
        .map(|(status, description)| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
            let response =
                ResponseBuilder::new().description(description).content("application/json", content);
            (status.to_owned(), response.build().into())
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Invalid;

    #[test]
    fn v1_is_openai_and_the_rest_native() {
        for (path, dialect) in [
            ("/v1", Dialect::OpenAi),
            ("/v1/completions", Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAiChat),
            ("/v10", Dialect::Native),
            ("/", Dialect::Native),
            ("/generate", Dialect::Native),
        ] {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }

    #[test]
    fn errors_name_the_field_that_the_caller_wrote() {
        let body = |dialect: Dialect, invalid: Invalid| {
            let body = dialect.error_body(&invalid.into());
            let error = serde_json::from_slice::<serde_json::Value>(&body).unwrap()["error"].take();
            let text = error.as_str().or(error["message"].as_str()).unwrap().to_owned();
            (text, error["param"].as_str().map(str::to_owned))
        };
        let new = || Invalid::MaxNewTokens;
        let (text, param) = body(Dialect::OpenAi, new());
        assert!(text.ends_with("`max_tokens` must be strictly positive"), "{text}");
        assert_eq!(param.as_deref(), Some("max_tokens"));
        assert!(body(Dialect::Native, new()).0.contains("`max_new_tokens`"));
        for (dialect, field) in [(Dialect::OpenAi, "prompt"), (Dialect::OpenAiChat, "messages")] {
            let (text, param) = body(dialect, Invalid::InputBytes { max: 1, given: 2 });
            assert!(text.contains(&format!("`{field}` must have at most 1 bytes")), "{text}");
            assert_eq!(param.as_deref(), Some(field));
        }
    }

    #[test]
    fn bodies_are_the_dialects() {
        let error = Error::WrongShape { path: "n".into(), message: "invalid type".into() };
        assert_eq!(
            String::from_utf8(Dialect::Native.error_body(&error)).unwrap(),
            r#"{"error":"`n`: invalid type","error_type":"validation"}"#
        );
        assert_eq!(
            String::from_utf8(Dialect::OpenAi.error_body(&error)).unwrap(),
            r#"{"error":{"message":"`n`: invalid type","type":"invalid_request_error","param":"n","code":null}}"#
        );
    }
}
