//! `/metrics`, for Prometheus.

use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};

use crate::{app::AppState, telemetry::Metrics};

/// Metrics in the OpenMetrics text format
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
pub async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    ([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], state.metrics.encode(&state.registry))
}
