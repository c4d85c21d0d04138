//! Requests that are refused before their body has come, on connections that clients go on with.

use std::time::Duration;

use lorikeet_bench::sim::SimConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{client::Server, common::sim};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn head(method: &str, path: &str, content_type: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Sends the parts with a pause between them, as clients do with a head and a body, and reads to the end.
async fn exchange(server: &Server, parts: &[&str]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for part in parts {
        stream.write_all(part.as_bytes()).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    let mut answer = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

async fn goes_on(server: &Server, method: &str, path: &str, content_type: &str, status: u16) {
    let body = json!({"inputs": "a".repeat(100_000)}).to_string();
    let answer = exchange(server, &[&head(method, path, content_type, body.len()), &body, HEALTH]).await;
    let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
    assert_eq!(statuses, [status.to_string().as_str(), "200"], "{path} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_is_still_good() {
    let server = Server::new().await;
    goes_on(&server, "POST", "/generate", "text/plain", 415).await;
    goes_on(&server, "POST", "/nowhere", "application/json", 404).await;
    goes_on(&server, "PUT", "/generate", "application/json", 405).await;
    let slow = SimConfig { step_time: Duration::from_millis(20), ..sim() };
    let full = Server::with(slow, &["--max-concurrent-requests", "1"]).await;
    let long = json!({"inputs": "a", "parameters": {"max_new_tokens": 2000}});
    let (busy, ()) = tokio::join!(timeout(Duration::from_secs(3), full.post("/generate", &long)), async {
        sleep(Duration::from_millis(200)).await;
        goes_on(&full, "POST", "/generate", "application/json", 429).await;
    });
    assert!(busy.is_err(), "it was busy all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = Server::new().await;
    let head = head("POST", "/nowhere", "application/json", 9);
    let asking = head.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    for head in [head, asking] {
        let answer = exchange(&server, &[&head]).await;
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("connection: close"), "{answer}");
    }
}
