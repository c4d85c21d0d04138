//! A bound on the bytes of a request's line and headers, as HTTP/1 writes them.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::unread::refuse;
use crate::{error::Error, telemetry::Metrics};

/// Between a name and a value, and after the value.
const PUNCTUATION: usize = ": \r\n".len();

pub async fn limit_headers(
    State((limit, metrics)): State<(usize, Arc<Metrics>)>,
    request: Request,
    next: Next,
) -> Response {
    if size(&request) <= limit {
        return next.run(request).await;
    }
    let error = Error::HeadersTooLarge { limit };
    metrics.rejected(&error);
    refuse(request, error).await
}

fn size<B>(request: &axum::http::Request<B>) -> usize {
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    let fields =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + PUNCTUATION);
    request.method().as_str().len() + target + "  HTTP/1.1\r\n".len() + fields.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let request = axum::http::Request::get("/a?b").header("x-y", "z").header("x-y", "").body(()).unwrap();
        assert_eq!(size(&request), "GET /a?b HTTP/1.1\r\nx-y: z\r\nx-y: \r\n".len());
    }
}
