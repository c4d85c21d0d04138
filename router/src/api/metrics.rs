//! `/metrics`, for Prometheus, and as JSON for LoRAX's client.

use axum::{
    Json as JsonBody,
    extract::State,
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use indexmap::IndexMap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{app::AppState, telemetry::Metrics};

#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct MetricFamily {
    #[serde(rename = "type")]
    kind: String,
    data: Vec<MetricSample>,
}

#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct MetricSample {
    /// Name and labels.
    key: String,
    value: f64,
}

/// Metrics in the OpenMetrics text format, or as JSON if that is what is accepted
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    responses((status = 200, content(
        (String = "application/openmetrics-text"),
        (std::collections::HashMap<String, MetricFamily> = "application/json"),
    )))
)]
pub async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let text = state.metrics.encode(state.registry.stats(), state.registry.names());
    let accepts = |kind: &str| {
        headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(kind)))
    };
    if accepts("application/json") && !accepts("text/") {
        return JsonBody(families(&text)).into_response();
    }
    ([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], text).into_response()
}

/// What the text says, by family.
fn families(text: &str) -> IndexMap<&str, MetricFamily> {
    let mut families = IndexMap::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            if let Some((name, kind)) = declaration.split_once(' ') {
                families.insert(name, MetricFamily { kind: kind.to_owned(), data: Vec::new() });
            }
        } else if let Some((key, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))
            && let (Ok(value), Some((_, family))) = (value.parse(), families.last_mut())
        {
            family.data.push(MetricSample { key: key.to_owned(), value });
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_their_family() {
        let text = "# HELP a Things.\n# TYPE a counter\na_total{x=\"b c\"} 3\n# TYPE b gauge\n# UNIT b s\nb 0.5\n# EOF\n";
        let sample = |key: &str, value| MetricSample { key: key.to_owned(), value };
        let families = families(text);
        assert_eq!(
            families["a"],
            MetricFamily { kind: "counter".into(), data: vec![sample("a_total{x=\"b c\"}", 3.0)] }
        );
        assert_eq!(families["b"], MetricFamily { kind: "gauge".into(), data: vec![sample("b", 0.5)] });
    }
}
