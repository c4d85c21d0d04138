//! `x-request-id`, accepted if it is sane and generated if not, on every response; `traceparent` passed
//! through.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use crate::api::RequestId;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const MAX_LENGTH: usize = 128;

pub async fn request_id(mut request: Request, next: Next) -> Response {
    let accepted = request.headers().get(REQUEST_ID).and_then(|value| sane(value).map(Arc::from));
    let id = RequestId(accepted.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()).into()));
    let traceparent =
        request.headers().get(TRACEPARENT).filter(|value| is_traceparent(value.as_bytes())).cloned();
    request.extensions_mut().insert(id.clone());

    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some(value) = traceparent {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    response
}

/// Something that can stand in a log line and a header without quoting.
fn sane(value: &HeaderValue) -> Option<&str> {
    let id = value.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    (1..=MAX_LENGTH).contains(&id.len()).then_some(id).filter(|id| id.bytes().all(plain))
}

/// `version-traceid-parentid-flags` of W3C Trace Context.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let mut parts = value.split(|byte| *byte == b'-');
    let lengths = [2, 32, 16, 2];
    lengths.iter().all(|length| parts.next().is_some_and(|part| part.len() == *length && hex(part)))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_accepted() {
        for id in ["a", "req-1", "01HX:span/7+b=", &"x".repeat(128)] {
            assert_eq!(sane(&HeaderValue::from_str(id).unwrap()), Some(id));
        }
        for id in ["", "a b", "{}", "\"", "a,b", &"x".repeat(129)] {
            assert_eq!(sane(&HeaderValue::from_str(id).unwrap()), None, "{id}");
        }
        assert_eq!(sane(&HeaderValue::from_bytes(b"\xc3\xa9").unwrap()), None);
    }

    #[test]
    fn traceparents_are_recognised() {
        assert!(is_traceparent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_traceparent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"));
        assert!(!is_traceparent(b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"));
        assert!(!is_traceparent(b"x"));
    }
}
