//! Whether the server can take traffic. That the process lives is shown by any answer at all.

use axum::{extract::State, response::IntoResponse};

use super::error::NativeErrors;
use crate::{app::AppState, error::Error, readiness::Readiness};

/// Whether requests are served now
#[utoipa::path(
    get,
    path = "/health",
    tag = "Server",
    responses((status = 200, description = "Ready"), NativeErrors)
)]
pub async fn health(State(state): State<AppState>) -> impl IntoResponse {
    match *state.readiness.borrow() {
        Readiness::Ready => Ok(()),
        Readiness::Draining => Err(Error::Draining),
        Readiness::Starting | Readiness::ShardLost => Err(Error::NotReady),
    }
}

/// The same, where SageMaker looks
#[utoipa::path(
    get,
    path = "/ping",
    tag = "Server",
    responses((status = 200, description = "Ready"), NativeErrors)
)]
pub async fn ping(state: State<AppState>) -> impl IntoResponse {
    health(state).await
}

/// The same, where LoRAX looks
#[utoipa::path(
    get,
    path = "/",
    tag = "Server",
    responses((status = 200, description = "Ready"), NativeErrors)
)]
pub async fn root(state: State<AppState>) -> impl IntoResponse {
    health(state).await
}

/// Whether the model has been loaded
///
/// Stays so when shards are lost later or the server is told to stop.
#[utoipa::path(
    get,
    path = "/startup",
    tag = "Server",
    responses((status = 200, description = "Loaded"), NativeErrors)
)]
pub async fn startup(State(state): State<AppState>) -> impl IntoResponse {
    match *state.readiness.borrow() {
        Readiness::Starting => Err(Error::NotReady),
        Readiness::Ready | Readiness::ShardLost | Readiness::Draining => Ok(()),
    }
}
