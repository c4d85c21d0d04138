//! What the server says about itself, and what every response has.

use std::collections::BTreeSet;

use hyper::{Method, StatusCode};
use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::{
    client::Server,
    common::{Harness, sim},
};

#[tokio::test(flavor = "multi_thread")]
async fn info() {
    let server = Server::new().await;
    let reply = server.get("/info").await.ok();
    let mut value = reply.json();
    value["version"] = json!("VERSION");
    assert_snapshot!("info", serde_json::to_string_pretty(&value).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_tell_whether_their_roots_hold_the_same() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for root in [&one, &other] {
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/adapter_config.json"), "{}").unwrap();
    }
    let sha = async |root: &tempfile::TempDir| {
        let server = Server::with(sim(), &["--adapter-root", root.path().to_str().unwrap()]).await;
        server.get("/info").await.ok().json()["adapter_registry_sha"].as_str().unwrap().to_owned()
    };
    let agreed = sha(&one).await;
    assert_eq!(sha(&other).await, agreed);
    std::fs::write(other.path().join("a/adapter_config.json"), "{\"r\": 8}").unwrap();
    assert_ne!(sha(&other).await, agreed);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_empty_or_503() {
    let server = Server::new().await;
    for path in ["/", "/health", "/ping", "/startup"] {
        let reply = server.get(path).await.ok();
        assert!(reply.body.is_empty());
    }
    let mut harness = Harness::starting(sim(), &[], 1);
    harness.kill(0);
    let server = Server::before(harness).await;
    assert_snapshot!("health_starting", server.get("/health").await.golden());
    assert_eq!(server.get("/startup").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let generate = server.post("/v1/completions", &json!({"model": "sim", "prompt": "a"})).await;
    assert_snapshot!("completion_starting", generate.golden());
    server.get("/info").await.ok();
    server.get("/v1/models").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn head_works_where_get_does() {
    let server = Server::new().await;
    let paths = [
        "/",
        "/health",
        "/ping",
        "/info",
        "/metrics",
        "/v1/models",
        "/v1/models/sim",
        "/openapi.json",
        "/docs/",
    ];
    for path in paths {
        let reply = server.send(Method::HEAD, path, &[], "").await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0), "{path}");
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests() {
    let server = Server::new().await;
    server.post("/generate", &json!({"inputs": "a", "parameters": {"max_new_tokens": 2}})).await.ok();
    server.post_text("/generate", "{").await;
    let metrics = server.get("/metrics").await.ok();
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    assert!(metrics.text().contains("malformed_json"), "{}", metrics.text());
    assert!(metrics.text().ends_with("# EOF\n"));
    let accepting = async |accept| server.send(Method::GET, "/metrics", &[("accept", accept)], "").await.ok();
    let json = accepting("application/json").await.json();
    assert_eq!(json["lorikeet_requests_accepted"]["type"], "counter");

    let both = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for accept in ["*/*", both] {
        assert!(accepting(accept).await.text().ends_with("# EOF\n"), "{accept}");
    }
    let classic = accepting("text/plain;version=0.0.4;q=0.5,*/*;q=0.1").await;
    assert_eq!(classic.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let accepted = "# HELP lorikeet_requests_accepted_total Requests that were queued\n\
        # TYPE lorikeet_requests_accepted_total counter\n\
        lorikeet_requests_accepted_total{adapter=\"(base)\"} 1\n";
    assert!(classic.text().contains(accepted) && !classic.text().contains("# EOF"), "{}", classic.text());
    let families = classic.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let mut seen = BTreeSet::new();
    assert!(families.into_iter().all(|family| seen.insert(family)), "no two have one name");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_a_request_id_and_the_trace() {
    let server = Server::new().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (method, path) in [
        ("GET", "/health"),
        ("GET", "/nowhere"),
        ("PUT", "/info"),
        ("POST", "/generate"),
        ("POST", "/v1/completions"),
    ] {
        let headers = [("x-request-id", "abc-1"), ("traceparent", trace)];
        let reply = server.send(method.parse().unwrap(), path, &headers, "").await;
        assert_eq!((reply.header("x-request-id"), reply.header("traceparent")), ("abc-1", trace), "{path}");
        let reply = server.send(method.parse().unwrap(), path, &[("x-request-id", "a b\"")], "").await;
        let generated = reply.header("x-request-id");
        assert!(
            generated.len() == 32 && generated.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{generated}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_is_for_listed_origins() {
    let origin = ("origin", "https://a.example");
    let closed = Server::new().await;
    assert_eq!(
        closed.send(Method::GET, "/health", &[origin], "").await.header("access-control-allow-origin"),
        ""
    );
    let open = Server::with(sim(), &["--cors-allow-origin", "https://a.example"]).await;
    for path in ["/health", "/nowhere"] {
        let reply = open.send(Method::GET, path, &[origin], "").await;
        assert_eq!(reply.header("access-control-allow-origin"), "https://a.example");
    }
    let other = open.send(Method::GET, "/health", &[("origin", "https://b.example")], "").await;
    assert_eq!(other.header("access-control-allow-origin"), "");
    // OpenAI's client in a browser sends headers of its own.
    let asked = "authorization,content-type,x-stainless-lang";
    let headers =
        [origin, ("access-control-request-method", "POST"), ("access-control-request-headers", asked)];
    let preflight = open.send(Method::OPTIONS, "/v1/completions", &headers, "").await.ok();
    assert_eq!(preflight.header("access-control-allow-methods"), "GET,POST");
    assert_eq!(preflight.header("access-control-allow-headers"), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_complete() {
    let server = Server::new().await;
    let reply = server.get("/openapi.json").await.ok();
    let mut value = reply.json();
    assert_eq!(server.get("/api-doc/openapi.json").await.ok().json(), value);
    value["info"]["version"] = json!("VERSION");
    assert_snapshot!("openapi", serde_json::to_string_pretty(&value).unwrap());
    // Every reference leads somewhere.
    let mut references = Vec::new();
    collect_references(&value, &mut references);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(value.pointer(pointer).is_some(), "{reference}");
    }
    for (path, methods) in value["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "sim");
        for method in methods.as_object().unwrap().keys() {
            let reply = server.send(method.to_uppercase().parse().unwrap(), &path, &[], "").await;
            assert!(!matches!(reply.status.as_u16(), 404 | 405), "{method} {path}");
        }
    }
}

fn collect_references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                into.push(reference.to_owned());
            }
            map.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_references(value, into)),
        _ => {}
    }
}
