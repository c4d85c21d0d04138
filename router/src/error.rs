//! Every way a request can fail, and the one table that turns it into a status, a body, a metric label and a
//! log level.

mod invalid;

use std::time::Duration;

use axum::http::StatusCode;
use tracing::Level;

pub use self::invalid::Invalid;

/// Why a request failed, named for the caller's problem. The text is what the client reads.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("Input validation error: {0}")]
    Validation(#[from] Invalid),
    /// Not JSON at all.
    #[error("the body is not valid JSON: {0}")]
    MalformedJson(String),
    /// JSON of another shape than the route takes; `path` is where, e.g. `parameters.max_new_tokens`.
    #[error("`{path}`: {message}")]
    WrongShape { path: String, message: String },
    #[error("expected a body with `Content-Type: application/json`, and without `Content-Encoding`")]
    UnsupportedMediaType,
    #[error("the request's line and headers are larger than {limit} bytes (--max-header-bytes)")]
    HeadersTooLarge { limit: usize },
    #[error("the body is larger than {limit} bytes (--max-body-bytes)")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive within {limit:?} (--body-timeout)")]
    BodyTimeout { limit: Duration },
    #[error("no such route")]
    RouteNotFound,
    #[error("this route does not take this method")]
    MethodNotAllowed,

    #[error("Failed applying chat template to inputs: {0}")]
    Template(String),

    /// Also when it exists and the caller may not see it: the body is the same.
    #[error("adapter or model `{id}` not found")]
    AdapterNotFound { id: String },
    #[error("adapter `{id}` cannot be served: {message}")]
    AdapterInvalid { id: String, message: String },
    #[error("adapter `{id}` has changed since it was first served; publish new weights under a new name")]
    AdapterChanged { id: String },
    #[error("adapter `{id}` is too large: {message}")]
    AdapterTooLarge { id: String, message: String },
    #[error("no space for adapter `{id}`: {message}")]
    AdapterNoSpace { id: String, message: String },
    #[error("the source of adapter `{id}` is unavailable: {message}")]
    AdapterUnavailable { id: String, message: String },
    #[error("adapter `{id}` did not load within {limit:?} (--adapter-load-timeout)")]
    AdapterTimeout { id: String, limit: Duration },

    /// A bound of the server is reached. `Retry-After` carries the hint.
    #[error("Model is overloaded")]
    Overloaded { retry_after: Duration },
    #[error("the model is not ready")]
    NotReady,
    #[error("the server is shutting down")]
    Draining,
    #[error("the shard was lost while it ran the request")]
    ShardLost,
    #[error("the request did not finish within its time limit (--request-timeout)")]
    DeadlineExceeded,

    #[error("Request failed during generation: {0}")]
    Generation(String),
    #[error("Request failed during generation: numeric_error: {0}")]
    Numeric(String),
    #[error("Incomplete generation")]
    Incomplete,
    #[error("internal error")]
    Internal,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorInfo {
    /// Status on the native routes.
    pub native_status: StatusCode,
    /// `error_type` of a native body.
    pub error_type: &'static str,
    /// Status under `/v1`.
    pub openai_status: StatusCode,
    /// `error.type` under `/v1`.
    pub openai_type: &'static str,
    /// `error.code` under `/v1`.
    pub code: Option<&'static str>,
    /// `error.param` under `/v1`.
    pub param: Option<&'static str>,
    /// Value of the `error` label of the failure counter.
    pub metric_label: &'static str,
    pub retry_after: Option<Duration>,
    pub level: Level,
}

/// How long a client waits before it asks again a server that starts, drains or has lost its shard.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(5);
const RETRY_SOURCE: Duration = Duration::from_secs(10);

impl Error {
    /// Every place is taken. One is given back within about a second, as requests take some.
    #[must_use]
    pub const fn full() -> Self {
        Self::Overloaded { retry_after: Duration::from_secs(1) }
    }

    /// The row of this error.
    #[must_use]
    pub fn info(&self) -> ErrorInfo {
        use StatusCode as S;
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let both = |status: S, error_type, openai_type, level| ErrorInfo {
            native_status: status,
            error_type,
            openai_status: status,
            openai_type,
            code: None,
            param: None,
            metric_label: error_type,
            retry_after: None,
            level,
        };
        let caller = |status, error_type| both(status, error_type, REQUEST, Level::DEBUG);
        let server = |status, error_type| both(status, error_type, SERVER, Level::WARN);
        match self {
            Self::Validation(invalid) => ErrorInfo {
                openai_status: S::BAD_REQUEST,
                code: invalid.code(),
                param: invalid.param(),
                ..caller(S::UNPROCESSABLE_ENTITY, "validation")
            },
            Self::MalformedJson(_) => caller(S::BAD_REQUEST, "malformed_json"),
            Self::WrongShape { .. } => ErrorInfo {
                openai_status: S::BAD_REQUEST,
                metric_label: "validation",
                ..caller(S::UNPROCESSABLE_ENTITY, "validation")
            },
            Self::UnsupportedMediaType => caller(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::HeadersTooLarge { .. } => caller(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"),
            Self::BodyTooLarge { .. } => caller(S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTimeout { .. } => caller(S::REQUEST_TIMEOUT, "body_timeout"),
            Self::RouteNotFound => caller(S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => caller(S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Template(_) => ErrorInfo {
                openai_status: S::BAD_REQUEST,
                param: Some("messages"),
                ..caller(S::UNPROCESSABLE_ENTITY, "template_error")
            },
            Self::AdapterNotFound { .. } => ErrorInfo {
                code: Some("model_not_found"),
                param: Some("model"),
                ..caller(S::NOT_FOUND, "adapter_not_found")
            },
            Self::AdapterInvalid { .. } => ErrorInfo {
                openai_status: S::BAD_REQUEST,
                code: Some("adapter_invalid"),
                param: Some("model"),
                ..caller(S::UNPROCESSABLE_ENTITY, "adapter_invalid")
            },
            Self::AdapterChanged { .. } => {
                ErrorInfo { code: Some("adapter_changed"), ..caller(S::CONFLICT, "adapter_changed") }
            }
            Self::AdapterTooLarge { .. } => ErrorInfo {
                code: Some("adapter_too_large"),
                ..caller(S::PAYLOAD_TOO_LARGE, "adapter_too_large")
            },
            Self::AdapterNoSpace { .. } => server(S::INSUFFICIENT_STORAGE, "adapter_no_space"),
            Self::AdapterUnavailable { .. } => ErrorInfo {
                retry_after: Some(RETRY_SOURCE),
                ..server(S::FAILED_DEPENDENCY, "adapter_source_unavailable")
            },
            Self::AdapterTimeout { .. } => {
                ErrorInfo { retry_after: Some(RETRY_SOURCE), ..server(S::GATEWAY_TIMEOUT, "adapter_timeout") }
            }
            Self::Overloaded { retry_after } => ErrorInfo {
                code: Some("overloaded"),
                retry_after: Some(*retry_after),
                openai_type: "rate_limit_exceeded",
                ..server(S::TOO_MANY_REQUESTS, "overloaded")
            },
            Self::NotReady | Self::Draining => ErrorInfo {
                code: Some("overloaded"),
                metric_label: if matches!(self, Self::Draining) { "draining" } else { "not_ready" },
                retry_after: Some(RETRY_UNAVAILABLE),
                ..server(S::SERVICE_UNAVAILABLE, "overloaded")
            },
            Self::ShardLost => ErrorInfo {
                retry_after: Some(RETRY_UNAVAILABLE),
                ..both(S::BAD_GATEWAY, "shard_lost", SERVER, Level::ERROR)
            },
            Self::DeadlineExceeded => {
                ErrorInfo { code: Some("timeout"), ..server(S::GATEWAY_TIMEOUT, "deadline_exceeded") }
            }
            Self::Generation(_) => ErrorInfo {
                openai_status: S::INTERNAL_SERVER_ERROR,
                ..both(S::FAILED_DEPENDENCY, "generation", SERVER, Level::ERROR)
            },
            Self::Numeric(_) => ErrorInfo {
                openai_status: S::INTERNAL_SERVER_ERROR,
                code: Some("numeric_error"),
                metric_label: "numeric",
                ..both(S::FAILED_DEPENDENCY, "generation", SERVER, Level::WARN)
            },
            Self::Incomplete => both(S::INTERNAL_SERVER_ERROR, "incomplete_generation", SERVER, Level::ERROR),
            Self::Internal => both(S::INTERNAL_SERVER_ERROR, "internal", SERVER, Level::ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// One of each. The match makes a new variant a compile error here until it is added.
    fn every_variant() -> Vec<Error> {
        let id = || "a".to_owned();
        let message = || "m".to_owned();
        let limit = Duration::from_secs(1);
        let all = vec![
            Error::Validation(Invalid::EmptyInputs),
            Error::MalformedJson(message()),
            Error::WrongShape { path: "p".into(), message: message() },
            Error::UnsupportedMediaType,
            Error::HeadersTooLarge { limit: 1 },
            Error::BodyTooLarge { limit: 1 },
            Error::BodyTimeout { limit },
            Error::RouteNotFound,
            Error::MethodNotAllowed,
            Error::Template(message()),
            Error::AdapterNotFound { id: id() },
            Error::AdapterInvalid { id: id(), message: message() },
            Error::AdapterChanged { id: id() },
            Error::AdapterTooLarge { id: id(), message: message() },
            Error::AdapterNoSpace { id: id(), message: message() },
            Error::AdapterUnavailable { id: id(), message: message() },
            Error::AdapterTimeout { id: id(), limit },
            Error::Overloaded { retry_after: limit },
            Error::NotReady,
            Error::Draining,
            Error::ShardLost,
            Error::DeadlineExceeded,
            Error::Generation(message()),
            Error::Numeric(message()),
            Error::Incomplete,
            Error::Internal,
        ];
        for error in &all {
            match error {
                Error::Validation(_)
                | Error::MalformedJson(_)
                | Error::WrongShape { .. }
                | Error::UnsupportedMediaType
                | Error::HeadersTooLarge { .. }
                | Error::BodyTooLarge { .. }
                | Error::BodyTimeout { .. }
                | Error::RouteNotFound
                | Error::MethodNotAllowed
                | Error::Template(_)
                | Error::AdapterNotFound { .. }
                | Error::AdapterInvalid { .. }
                | Error::AdapterChanged { .. }
                | Error::AdapterTooLarge { .. }
                | Error::AdapterNoSpace { .. }
                | Error::AdapterUnavailable { .. }
                | Error::AdapterTimeout { .. }
                | Error::Overloaded { .. }
                | Error::NotReady
                | Error::Draining
                | Error::ShardLost
                | Error::DeadlineExceeded
                | Error::Generation(_)
                | Error::Numeric(_)
                | Error::Incomplete
                | Error::Internal => {}
            }
        }
        all
    }

    #[test]
    fn every_variant_has_a_row() {
        let all = every_variant();
        let kinds: BTreeSet<_> =
            all.iter().map(|error| format!("{:?}", std::mem::discriminant(error))).collect();
        assert_eq!(kinds.len(), all.len());
        for error in all {
            let info = error.info();
            assert!(info.native_status.is_client_error() || info.native_status.is_server_error(), "{error}");
            assert!(info.openai_status.is_client_error() || info.openai_status.is_server_error(), "{error}");
            assert!(!info.metric_label.is_empty() && !info.metric_label.contains(' '), "{error}");
            // A caller's mistake is not the server's failure: no 422 under /v1, and only debug in the log.
            if info.openai_type == "invalid_request_error" {
                assert!(info.openai_status.is_client_error() && info.openai_status != 422, "{error}");
                assert_eq!(info.level, Level::DEBUG, "{error}");
            }
            if matches!(info.native_status.as_u16(), 429 | 503) {
                assert!(info.retry_after.is_some(), "{error}");
                assert_eq!(info.error_type, "overloaded");
            }
            assert!(!error.to_string().ends_with('.'), "{error}");
        }
    }

    #[test]
    fn limits_of_the_server_name_their_flag() {
        let limit = Duration::from_secs(1);
        for (error, flag) in [
            (Error::HeadersTooLarge { limit: 1 }, "--max-header-bytes"),
            (Error::BodyTooLarge { limit: 1 }, "--max-body-bytes"),
            (Error::BodyTimeout { limit }, "--body-timeout"),
            (Error::AdapterTimeout { id: "a".into(), limit }, "--adapter-load-timeout"),
            (Error::DeadlineExceeded, "--request-timeout"),
            (Invalid::InputBytes { max: 1, given: 2 }.into(), "--max-prompt-bytes"),
        ] {
            assert!(error.to_string().contains(&format!("({flag})")), "{error}");
        }
    }

    #[test]
    fn the_types_that_lorax_client_maps_stay() {
        let types: BTreeSet<_> = every_variant().iter().map(|error| error.info().error_type).collect();
        for expected in ["generation", "incomplete_generation", "overloaded", "validation"] {
            assert!(types.contains(expected));
        }
    }
}
