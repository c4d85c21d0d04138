//! Connections of HTTP/2, whose client answers every ping: what else it must do.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lorikeet_bench::sim::SimConfig;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use crate::{client::Server, common::sim};

const PATIENCE: Duration = Duration::from_secs(20);

struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    ended: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    /// With room for so many bytes of each response that nobody reads.
    async fn open(server: &Server, window: u32) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        Self { sender, ended: tokio::spawn(connection) }
    }

    async fn post(&mut self, path: &str, body: &Value) -> Response<Incoming> {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/json")
            .body(Full::new(body.to_string().into()))
            .unwrap();
        timeout(PATIENCE, self.sender.send_request(request)).await.unwrap().unwrap()
    }

    /// Waits for the server to close it, whatever was under way.
    async fn ends(self) {
        timeout(PATIENCE, self.ended).await.unwrap().unwrap().ok();
    }
}

fn generate(tokens: u32) -> Value {
    json!({"inputs": "Hello", "parameters": {"max_new_tokens": tokens}})
}

/// A reply of more than one piece.
fn with_details(tokens: u32) -> Value {
    json!({"inputs": "Hello", "parameters": {"max_new_tokens": tokens, "details": true}})
}

async fn read(response: Response<Incoming>) -> hyper::Result<Bytes> {
    timeout(PATIENCE, response.into_body().collect()).await.unwrap().map(http_body_util::Collected::to_bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let slow = SimConfig { step_time: Duration::from_millis(20), ..sim() };
    let server = Server::with(slow, &["--header-timeout", "1", "--write-timeout", "1"]).await;
    let silent = Connection::open(&server, 65_535).await;
    let mut busy = Connection::open(&server, 65_535).await;
    // Longer than both timeouts.
    for path in ["/generate_stream", "/generate"] {
        let response = busy.post(path, &generate(80)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = read(response).await.unwrap();
        assert!(String::from_utf8_lossy(&text).contains("generated_text"));
    }
    for connection in [silent, busy] {
        connection.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_nobody_takes_is_reset_alone() {
    let flags = ["--write-timeout", "2", "--max-concurrent-requests", "1"];
    let server = Server::with(sim(), &flags).await;
    let mut connection = Connection::open(&server, 100).await;
    for path in ["/generate_stream", "/generate"] {
        let untaken = connection.post(path, &with_details(1000)).await;
        assert_eq!(server.post("/generate", &generate(1)).await.status, StatusCode::TOO_MANY_REQUESTS);
        // Its place becomes free.
        let free = async {
            while server.post("/generate", &generate(1)).await.status != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, free).await.unwrap();
        assert!(read(untaken).await.is_err());
        // The connection serves on.
        let taken = connection.post(path, &with_details(1000)).await;
        assert!(read(taken).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_last_bytes_nobody_takes_is_cut() {
    let server = Server::with(sim(), &["--header-timeout", "0.2", "--write-timeout", "0.2"]).await;
    let mut connection = Connection::open(&server, 100).await;
    let _untaken = connection.post("/generate", &generate(1000)).await;
    connection.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_past_the_bound_are_refused_with_a_body() {
    let server = Server::with(sim(), &["--max-header-bytes", "8192"]).await;
    let mut connection = Connection::open(&server, 65_535).await;
    let request = Request::get("http://localhost/v1/models").header("x-a", "a".repeat(8192));
    let reply = connection.sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(reply.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let error: Value = serde_json::from_slice(&read(reply).await.unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "invalid_request_error");
}
