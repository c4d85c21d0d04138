//! Where an [`Error`] becomes a body: the one place that knows both the error and the dialect of the path.

use std::any::Any;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderValue,
        header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{api::Dialect, error::Error};

pub async fn render_errors(request: Request, next: Next) -> Response {
    let dialect = Dialect::of_path(request.uri().path());
    let mut response = next.run(request).await;
    let Some(error) = response.extensions().get::<Error>() else { return response };
    let info = error.info();
    let body = dialect.error_body(error);
    // The rest of the request's body is not read, so nothing can follow it.
    let closes = matches!(error, Error::BodyTooLarge { .. } | Error::BodyTimeout { .. });
    *response.status_mut() = match dialect {
        Dialect::Native => info.native_status,
        Dialect::OpenAi | Dialect::OpenAiChat => info.openai_status,
    };
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(delay) = info.retry_after {
        // Whole seconds, and at least one: zero asks for a retry at once.
        headers
            .insert(RETRY_AFTER, HeaderValue::from(delay.as_millis().div_ceil(1000).clamp(1, 3600) as u64));
    }
    response
}

/// A panic in a handler is our defect: its own request fails, and the text stays in the log.
#[expect(clippy::needless_pass_by_value, reason = "tower-http's signature")]
pub fn catch_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("unknown"), "a request handler panicked");
    Error::Internal.into_response()
}
