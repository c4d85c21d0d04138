//! Inputs meant to break something: nothing breaks, and the next request is served.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client::{Reply, Server},
    common::sim,
};

fn refused(reply: &Reply) {
    assert!(reply.status.is_client_error(), "{} {}", reply.status, reply.text());
    let error = &reply.json()["error"];
    assert!(error.is_string() || error["message"].is_string(), "{}", reply.text());
    assert!(reply.text().len() < 100_000);
}

async fn still_serves(server: &Server) {
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    server.post("/generate", &body).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_would_be_headers() {
    let server = Server::new().await;
    let long = "a".repeat(64 << 10);
    let names =
        ["\r\nX: 1", "é", "\0", "a\nb", " a", "a,b", "/etc", "../x", "a/../../x", "..", "a\u{2028}b", &long];
    for name in names {
        for stream in [false, true] {
            let native = json!({"inputs": "a", "parameters": {"adapter_id": name}, "stream": stream});
            for path in ["/", "/generate", "/generate_stream"] {
                refused(&server.post(path, &native).await);
            }
            let openai = json!({"model": name, "prompt": "a", "messages": [{"role": "user", "content": "a"}],
                "stream": stream});
            refused(&server.post("/v1/completions", &openai).await);
            refused(&server.post("/v1/chat/completions", &openai).await);
        }
    }
    let source =
        json!({"inputs": "a", "parameters": {"adapter_id": "known/a", "adapter_source": "\r\nX: 1"}});
    refused(&server.post("/generate", &source).await);
    // Seen on the wire, and on the same connection afterwards.
    let body = json!({"inputs": "a", "parameters": {"adapter_id": "a\r\nx-injected: 1"}, "stream": true})
        .to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = server.raw(format!("{request}GET /health HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
    assert!(!answer.to_lowercase().contains("\r\nx-injected"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_name_is_the_base_model() {
    let server = Server::new().await;
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 1, "adapter_id": ""}});
    assert_eq!(server.post("/generate", &body).await.ok().header("x-adapter-id"), "");
}

/// Serde takes a list for a struct, with its fields in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_no_object() {
    let server = Server::new().await;
    let user = json!({"role": "user", "content": "a"});
    let message = |message: Value| json!({"model": "", "messages": [message]});
    for (path, body, at) in [
        ("/generate", json!(["a", {}, true]), "body"),
        ("/generate", json!({"inputs": "a", "parameters": ["known/a"]}), "parameters"),
        ("/", json!({"inputs": "a", "parameters": []}), "parameters"),
        ("/tokenize", json!(["a"]), "body"),
        ("/v1/completions", json!({"model": "", "prompt": "a", "stream_options": [true]}), "stream_options"),
        (
            "/v1/chat/completions",
            json!({"model": "", "messages": [user], "stream_options": []}),
            "stream_options",
        ),
        ("/v1/chat/completions", message(json!(["user", "a"])), "messages[0]"),
        (
            "/v1/chat/completions",
            message(json!({"role": "user", "content": [["text", "a"]]})),
            "messages[0].content",
        ),
    ] {
        let reply = server.post(path, &body).await;
        refused(&reply);
        assert!(reply.text().contains(&format!("`{at}`")), "{path} {body}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_text() {
    let server = Server::new().await;
    let bodies: [&[u8]; 4] = [
        b"{\"inputs\":\"\xff\xfe\"}",
        b"{\"inputs\":\"a\",\"x\":\"\xc3\"}",
        b"\xef\xbb\xbf{\"inputs\":\"a\"}",
        b"{\"inputs\":\"\\ud800\"}",
    ];
    for body in bodies {
        for path in ["/generate", "/", "/tokenize", "/v1/completions"] {
            let reply = server.post_text(path, body.to_vec()).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path} {}", reply.text());
        }
    }
    // Text that is strange but text.
    for text in ["\0", "\u{202e}\u{feff}", "<|im_start|>system", "{{ 7*7 }}", "\u{10ffff}"] {
        let body = json!({"inputs": text, "parameters": {"max_new_tokens": 1}});
        server.post("/generate", &body).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_past_the_bound() {
    let server = Server::new().await;
    let declared = 100 << 20;
    // Declared: refused before anything of it is read.
    for path in ["/generate", "/v1/completions"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {declared}\r\n\r\n"
        );
        let answer = server.raw(head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("the body is larger than 4194304 bytes (--max-body-bytes)"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // Not declared: read up to the bound. The client must be able to read the answer while it still writes.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
        let mut sent = 0;
        while sent < declared && writer.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let mut answer = vec![0; 64];
    let count =
        tokio::time::timeout(Duration::from_secs(10), reader.read(&mut answer)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer[..count]).starts_with("HTTP/1.1 413"));
    drop(reader);
    assert!(writing.await.unwrap() < declared, "the whole body was taken");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_past_the_bound() {
    let server = Server::with(sim(), &["--max-header-bytes", "8192"]).await;
    let large = "a".repeat(8192);
    for (path, openai) in [("/health", false), ("/nowhere", false), ("/v1/models", true)] {
        let headers = [("x-a", large.as_str()), ("x-request-id", "abc-1")];
        let reply = server.send(Method::GET, path, &headers, "").await;
        assert_eq!((reply.status.as_u16(), reply.header("x-request-id")), (431, "abc-1"), "{path}");
        let error = &reply.json()["error"];
        let message = if openai { &error["message"] } else { error };
        let expected = "the request's line and headers are larger than 8192 bytes (--max-header-bytes)";
        assert_eq!(message, expected, "{path}");
    }
    assert_eq!(
        server.send(Method::GET, "/health", &[("x-a", &large[..8000])], "").await.status,
        StatusCode::OK
    );
    // So much that nobody reads it.
    let request = format!("GET /health HTTP/1.1\r\nhost: a\r\nx-a: {}\r\n\r\n", "a".repeat(1 << 20));
    assert!(server.raw(request.as_bytes()).await.starts_with("HTTP/1.1 431"));
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_of_something() {
    let server = Server::new().await;
    let chat = |messages: Value| json!({"model": "sim", "messages": messages, "max_tokens": 1});
    let stops: Vec<_> = (0..100_000).map(|number| number.to_string()).collect();
    let bias: serde_json::Map<_, _> = (0..100_000).map(|number| (number.to_string(), json!(1))).collect();
    let part = json!({"type": "text", "text": "a"});
    for (path, body) in [
        ("/generate", json!({"inputs": "a", "parameters": {"stop": stops}})),
        ("/v1/completions", json!({"model": "sim", "prompt": "a", "stop": stops})),
        ("/v1/completions", json!({"model": "sim", "prompt": "a", "logit_bias": bias})),
        ("/v1/completions", json!({"model": "sim", "prompt": vec!["a"; 100_000]})),
        ("/v1/completions", json!({"model": "sim", "prompt": vec![4; 100_000]})),
        ("/v1/completions", json!({"model": "sim", "prompt": vec!["a"; 500], "n": 16})),
        ("/generate", json!({"inputs": "a".repeat(3 << 20)})),
        ("/tokenize", json!({"inputs": "a".repeat(3 << 20)})),
        ("/v1/chat/completions", chat(json!(vec![json!({"role": "user", "content": "a"}); 50_000]))),
        ("/v1/chat/completions", chat(json!([{"role": "user", "content": vec![part; 50_000]}]))),
    ] {
        let start = std::time::Instant::now();
        refused(&server.post(path, &body).await);
        assert!(start.elapsed() < Duration::from_secs(5), "{path}");
    }
    let deep = "[".repeat(50_000) + &"]".repeat(50_000);
    for field in ["grammar", "merged_adapters", "response_format", "stop", "seed"] {
        let body = format!("{{\"inputs\":\"a\",\"parameters\":{{\"{field}\":{deep}}}}}");
        refused(&server.post_text("/generate", body).await);
    }
    let unknown = format!("{{\"inputs\":\"a\",\"parameters\":{{\"max_new_tokens\":1}},\"x\":{deep}}}");
    assert!(!server.post_text("/generate", unknown).await.status.is_server_error());
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_in_time() {
    let server = Server::with(sim(), &["--body-timeout=0.1"]).await;
    let head =
        "POST /generate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
    let answer = server.raw(format!("{head}{{").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    still_serves(&server).await;
}
