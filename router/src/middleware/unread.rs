//! Requests that are refused before their body has been read.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderValue,
        header::{CONNECTION, EXPECT},
    },
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use crate::error::Error;

/// How long a client may take to send what nobody reads. Most have sent it already.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of it that are taken.
const MOST: usize = 4 << 20;

/// Answers with `error`, once the body has come. Clients send on while they are answered: if the connection ended
/// meanwhile, many would lose the answer, or the next request that they send on it.
pub async fn refuse(request: Request, error: Error) -> Response {
    // A client that asks first has sent nothing, and will not.
    let asks = request.headers().contains_key(EXPECT);
    let taken = !asks && timeout(PATIENCE, discard(request.into_body())).await.unwrap_or(false);
    let mut response = error.into_response();
    if !taken {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether all of it came.
async fn discard(body: Body) -> bool {
    let mut body = Limited::new(body, MOST);
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}
