//! One line per request, written when its response has been sent or dropped. No path parameters, queries,
//! headers or bodies: nothing that can hold a prompt or a secret.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};

use super::body::{Guard, Guarded};
use crate::{api::RequestId, error::Error};

/// Asked every few seconds, by supervisors, balancers and scrapers; at level info they would bury everything
/// else.
const PROBES: [&str; 5] = ["/", "/health", "/ping", "/startup", "/metrics"];

pub async fn access_log(request: Request, next: Next) -> Response {
    let mut line = Line {
        start: Instant::now(),
        method: request.method().clone(),
        route: request.extensions().get::<MatchedPath>().cloned(),
        request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()),
        status: 499,
        error: None,
        headers_ms: 0.0,
        bytes: 0,
        complete: false,
    };
    let response = next.run(request).await;
    line.status = response.status().as_u16();
    line.error = response.extensions().get::<Error>().map(|error| error.info().metric_label);
    line.headers_ms = line.start.elapsed().as_secs_f64() * 1e3;
    Guarded::wrap(response, line)
}

/// Written on drop. 499 is a client that left before there was a status.
struct Line {
    start: Instant,
    method: Method,
    route: Option<MatchedPath>,
    request_id: Option<Arc<str>>,
    status: u16,
    error: Option<&'static str>,
    headers_ms: f64,
    bytes: usize,
    complete: bool,
}

impl Guard for Line {
    fn sent(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    fn ended(&mut self) {
        self.complete = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let route = self.route.as_ref().map_or("-", MatchedPath::as_str);
        macro_rules! write_at {
            ($level:expr) => {
                tracing::event!(
                    target: "lorikeet::access",
                    $level,
                    method = self.method.as_str(),
                    route,
                    status = self.status,
                    error = self.error,
                    request_id = self.request_id.as_deref(),
                    headers_ms = self.headers_ms,
                    total_ms = self.start.elapsed().as_secs_f64() * 1e3,
                    bytes = self.bytes,
                    complete = self.complete,
                    "request"
                )
            };
        }
        if self.method == Method::GET && PROBES.contains(&route) {
            write_at!(tracing::Level::DEBUG);
        } else {
            write_at!(tracing::Level::INFO);
        }
    }
}
