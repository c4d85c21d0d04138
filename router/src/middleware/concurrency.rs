//! A bound on the requests with bodies that are in the server at the same time; past it, a refusal.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tokio::sync::Semaphore;

use super::{body::Guarded, unread::refuse};
use crate::{error::Error, telemetry::Metrics};

/// How many there may be. Clones share the places.
#[derive(Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Places {
    pub fn new(count: usize, metrics: Arc<Metrics>) -> Self {
        Self { free: Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))), metrics }
    }
}

/// A place is held until the response's body has been sent, so a stream counts for as long as it runs.
pub async fn limit_concurrency(State(places): State<Places>, request: Request, next: Next) -> Response {
    if let Ok(permit) = places.free.try_acquire_owned() {
        return Guarded::wrap(next.run(request).await, permit);
    }
    let error = Error::full();
    places.metrics.rejected(&error);
    refuse(request, error).await
}
