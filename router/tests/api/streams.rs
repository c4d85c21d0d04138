//! Streams, byte for byte.

use std::time::Duration;

use hyper::StatusCode;
use insta::assert_snapshot;
use lorikeet_bench::sim::SimConfig;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    client::Server,
    common::{VOCABULARY, sim},
};

#[tokio::test(flavor = "multi_thread")]
async fn native_streams_end_with_the_text_and_no_done() {
    let server = Server::new().await;
    let body =
        json!({"inputs": "Hello", "parameters": {"max_new_tokens": 3, "details": true}, "stream": true});
    let stream = server.post("/generate_stream", &body).await.ok();
    assert_snapshot!("stream_native", stream.golden());
    assert_eq!(server.post("/", &body).await.ok().text(), stream.text());

    let events = stream.event_values();
    let text: String = events.iter().map(|event| event["token"]["text"].as_str().unwrap()).collect();
    assert_eq!(events[2]["generated_text"], text);
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    assert_eq!(server.post("/generate", &whole).await.ok().json()["generated_text"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn native_stream_with_an_adapter_and_its_extras() {
    let server = Server::new().await;
    let body = json!({"inputs": "Hello", "parameters": {"max_new_tokens": 1, "adapter_id": "known/a",
        "return_full_text": true, "return_k_alternatives": 1, "top_n_tokens": 2}});
    assert_snapshot!("stream_native_adapter", server.post("/generate_stream", &body).await.ok().golden());
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_streams_say_the_role_once() {
    let server = Server::new().await;
    let body = json!({"model": "known/a", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3,
        "temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    assert_snapshot!("stream_chat", server.post("/v1/chat/completions", &body).await.ok().golden());
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_streams_are_chunks_of_text() {
    let server = Server::new().await;
    let body = json!({"model": "sim", "prompt": "Hi", "max_tokens": 2, "temperature": 0, "stream": true});
    assert_snapshot!("stream_completion", server.post("/v1/completions", &body).await.ok().golden());
    let body = json!({"model": "sim", "prompt": "Hi", "max_tokens": 2, "temperature": 0, "stream": true, "echo": true,
        "logprobs": 1, "stream_options": {"continuous_usage_stats": true, "include_usage": true}});
    assert_snapshot!("stream_completion_all", server.post("/v1/completions", &body).await.ok().golden());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_the_whole_answer_says() {
    // Bytes that make up characters only sometimes.
    let server = Server::with(SimConfig { sampled: 4..VOCABULARY, ..sim() }, &[]).await;
    for index in 0..10 {
        let mut body = json!({"model": "sim", "prompt": format!("p{index}"), "max_tokens": 60, "temperature": 0,
            "n": 2, "logprobs": 2, "echo": true, "stop": ["a", "é"]});
        let whole = server.post("/v1/completions", &body).await.ok().json();
        body["stream"] = json!(true);
        let stream = server.post("/v1/completions", &body).await.ok();
        for choice in 0..2 {
            let (mut text, mut offsets, mut tokens, mut reason) =
                (String::new(), vec![], vec![], Value::Null);
            for event in stream.event_values() {
                for part in event["choices"].as_array().unwrap().iter().filter(|part| part["index"] == choice)
                {
                    text += part["text"].as_str().unwrap();
                    let list = |key: &str| part["logprobs"][key].as_array().cloned().unwrap_or_default();
                    offsets.extend(list("text_offset"));
                    tokens.extend(list("tokens"));
                    reason = part["finish_reason"].clone();
                }
            }
            let expected = &whole["choices"][choice];
            assert_eq!(expected["text"], text);
            assert_eq!(expected["finish_reason"], reason);
            assert_eq!(expected["logprobs"]["text_offset"], Value::Array(offsets));
            assert_eq!(expected["logprobs"]["tokens"], Value::Array(tokens));
        }
        assert_eq!(stream.events().last(), Some(&"[DONE]"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_choices_stream_side_by_side() {
    let server = Server::new().await;
    let body = json!({"model": "", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5,
        "max_tokens": 9, "n": 3, "seed": 1, "stream": true, "logprobs": true, "top_logprobs": 2});
    let stream = server.post("/v1/chat/completions", &body).await.ok();
    let events = stream.event_values();
    // OpenAI's client numbers choices in the order in which it hears of them.
    for (choice, event) in events[..3].iter().enumerate() {
        let part = &event["choices"][0];
        assert_eq!((&part["index"], &part["delta"]["role"]), (&json!(choice), &json!("assistant")));
    }
    for choice in 0..3 {
        let of_choice: Vec<_> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|part| part["index"] == choice)
            .collect();
        assert_eq!(of_choice[0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(of_choice[1..].iter().all(|part| part["delta"].get("role").is_none()));
        assert_eq!(of_choice.last().unwrap()["delta"], json!({}));
        assert_eq!(of_choice.last().unwrap()["finish_reason"], "length");
        let logprobs: usize =
            of_choice.iter().map(|part| part["logprobs"]["content"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(logprobs, 5);
    }
    let ids: std::collections::BTreeSet<_> =
        events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_before_the_first_token_has_a_status() {
    let server = Server::new().await;
    let native = json!({"inputs": "Hello", "parameters": {"adapter_id": "missing"}, "stream": true});
    for path in ["/", "/generate_stream", "/generate"] {
        let reply = server.post(path, &native).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path} {}", reply.text());
        assert_eq!(reply.json()["error_type"], "adapter_not_found");
    }
    let body = json!({"model": "missing", "prompt": "a", "stream": true});
    let reply = server.post("/v1/completions", &body).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_first_token_is_the_last_event() {
    let sim = SimConfig { step_time: Duration::from_millis(20), ..sim() };
    let mut server = Server::with(sim, &[]).await;
    let body = json!({"model": "sim", "prompt": "a", "max_tokens": 200, "stream": true}).to_string();
    let native = json!({"inputs": "a", "parameters": {"max_new_tokens": 200}, "stream": true}).to_string();
    let address = server.address;
    let read = |path: &'static str, body: String| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "content-type: application/json\r\nconnection: close";
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (openai, lorax) = (tokio::spawn(read("/v1/completions", body)), tokio::spawn(read("/", native)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.harness.kill(0);
    let (openai, lorax) = (openai.await.unwrap(), lorax.await.unwrap());
    assert!(openai.starts_with("HTTP/1.1 200") && lorax.starts_with("HTTP/1.1 200"));
    assert!(!openai.contains("[DONE]"));
    let last = |text: &str| text.rsplit("data: ").next().unwrap().split("\n\n").next().unwrap().to_owned();
    assert_snapshot!(last(&openai), @r#"{"error":{"message":"the shard was lost while it ran the request","type":"server_error","param":null,"code":null}}"#);
    assert_snapshot!(last(&lorax), @r#"{"error":"the shard was lost while it ran the request","error_type":"shard_lost"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_gives_everything_back() {
    let sim = SimConfig { step_time: Duration::from_millis(5), ..sim() };
    let server = Server::with(sim, &[]).await;
    for path in ["/", "/v1/completions", "/v1/chat/completions"] {
        for stream in [true, false] {
            let body =
                json!({"inputs": "a", "model": "sim", "prompt": "a", "stream": stream, "max_tokens": 3000,
                "messages": [{"role": "user", "content": "a"}], "n": 2})
                .to_string();
            let mut connection = TcpStream::connect(server.address).await.unwrap();
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            connection.write_all(request.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(connection);
        }
    }
    server.harness.wait_idle().await;
}
