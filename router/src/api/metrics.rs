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
use rustc_hash::FxHashSet;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{app::AppState, telemetry::Metrics};

/// What [`classic`] writes.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

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

/// Metrics in the OpenMetrics text format; in Prometheus's older one or as JSON, if that is what is accepted
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    responses((status = 200, content(
        (String = "application/openmetrics-text"),
        (String = "text/plain"),
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
    if accepts("text/plain") && !accepts("application/openmetrics-text") {
        return ([(CONTENT_TYPE, CLASSIC)], classic(&text)).into_response();
    }
    ([(CONTENT_TYPE, Metrics::CONTENT_TYPE)], text).into_response()
}

/// The same in the older format, in which a counter's family has the name of its samples, and no line is the last.
fn classic(text: &str) -> String {
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: FxHashSet<&str> = declared.filter_map(|family| family.strip_suffix(" counter")).collect();
    let mut classic = String::with_capacity(text.len() + 1024);
    for line in text.lines().filter(|line| *line != "# EOF") {
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", what, family, rest] if counters.contains(family) => {
                classic.extend(["# ", what, " ", family, "_total ", rest, "\n"]);
            }
            _ => classic.extend([line, "\n"]),
        }
    }
    classic
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

    const TEXT: &str = "# HELP a Things, all\n# TYPE a counter\na_total{x=\"b c\"} 3\n\
        # HELP b A\n# TYPE b gauge\nb 0.5\n# EOF\n";

    #[test]
    fn counters_have_another_name_in_the_older_format() {
        let counter = "# HELP a_total Things, all\n# TYPE a_total counter\na_total{x=\"b c\"} 3\n";
        assert_eq!(classic(TEXT), format!("{counter}# HELP b A\n# TYPE b gauge\nb 0.5\n"));
    }

    #[test]
    fn samples_follow_their_family() {
        let sample = |key: &str, value| MetricSample { key: key.to_owned(), value };
        let families = families(TEXT);
        assert_eq!(
            families["a"],
            MetricFamily { kind: "counter".into(), data: vec![sample("a_total{x=\"b c\"}", 3.0)] }
        );
        assert_eq!(families["b"], MetricFamily { kind: "gauge".into(), data: vec![sample("b", 0.5)] });
    }
}
