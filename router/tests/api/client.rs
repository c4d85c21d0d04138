//! A server in this process and a client for it.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header::HeaderMap};
use hyper_util::rt::TokioIo;
use lorikeet_bench::sim::SimConfig;
use lorikeet_router::{config::Http, routes, serve};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::common::{Harness, sim};

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) harness: Harness,
    pub(crate) address: SocketAddr,
    stopping: CancellationToken,
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(sim(), &[]).await
    }

    pub(crate) async fn with(sim: SimConfig, flags: &[&str]) -> Self {
        Self::before(Harness::with(sim, flags).await).await
    }

    /// Listens in front of a router in whatever state it is.
    pub(crate) async fn before(harness: Harness) -> Self {
        let http = Http { port: 0, ..harness.state.config.http.clone() };
        let (listener, address) = serve::bind(&http).await.unwrap();
        let stopping = CancellationToken::new();
        let router = routes::router(harness.state.clone());
        tokio::spawn(serve::serve(listener, router, http, stopping.clone()));
        Self { harness, address, stopping }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// Sends bytes as they are, reads until the server closes or falls silent.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server that refuses early may close before it has read everything.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(Ok(count @ 1..)) = timeout(Duration::from_millis(500), stream.read(&mut piece)).await {
            answer.extend_from_slice(&piece[..count]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        self
    }

    /// What a test compares: status, headers that say something, the body with what changes from run to run
    /// replaced.
    pub(crate) fn golden(&self) -> String {
        let mut text = format!("{}\n", self.status);
        for name in ["content-type", "retry-after", "allow", "cache-control", "x-accel-buffering"] {
            if let Some(value) = self.headers.get(name) {
                text += &format!("{name}: {}\n", value.to_str().unwrap());
            }
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| ours(name.as_str())) {
            let value = if name.as_str().ends_with("-time") || name.as_str().contains("-time-") {
                "MS"
            } else {
                value.to_str().unwrap()
            };
            text += &format!("{name}: {value}\n");
        }
        text + "\n" + &self.redacted_body()
    }

    fn redacted_body(&self) -> String {
        let text = self.text();
        let first = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or(text);
        let mut redacted = text.to_owned();
        if let Ok(value) = serde_json::from_str::<Value>(first) {
            if let Some(id) = value["id"].as_str() {
                let prefix = id.split('-').next().unwrap();
                redacted = redacted.replace(id, &format!("{prefix}-ID"));
            }
            for created in [&value["created"], &value["data"][0]["created"], &value["data"][1]["created"]] {
                if let Some(created) = created.as_u64().filter(|created| *created > 0) {
                    redacted = redacted.replace(&format!("\"created\":{created}"), "\"created\":UNIX");
                }
            }
        }
        redacted
    }

    /// The payloads of a stream's events.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.text().split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
    }

    /// The events that are JSON.
    pub(crate) fn event_values(&self) -> Vec<Value> {
        self.events().iter().filter_map(|event| serde_json::from_str(event).ok()).collect()
    }
}

fn ours(name: &str) -> bool {
    name.starts_with("x-") && name != "x-request-id" && name != "x-accel-buffering"
}
