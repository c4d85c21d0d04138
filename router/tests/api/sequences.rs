//! Bodies that ask for several sequences.

use std::time::Duration;

use futures::future::join_all;
use hyper::StatusCode;
use lorikeet_bench::sim::SimConfig;
use serde_json::{Value, json};

use crate::{
    client::{Reply, Server},
    common::{VOCABULARY, request, sim},
};

/// A minute of steps: whoever waits for them fails.
fn slow() -> SimConfig {
    SimConfig { step_time: Duration::from_millis(20), ..sim() }
}

fn completion(prompts: &[Value]) -> Value {
    json!({"model": "sim", "prompt": prompts, "max_tokens": 3000, "temperature": 0})
}

fn refused(reply: &Reply, message: &str) {
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.text());
    assert_eq!(reply.json()["error"]["message"], format!("Input validation error: {message}"));
}

/// Forty, since futures' `try_join_all` behaves otherwise above thirty.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_error_ends_all() {
    let flags = ["--max-batch-size", "64", "--max-concurrent-requests", "45", "--max-best-of", "40"];
    let server = Server::with(slow(), &flags).await;
    let mut prompts = vec![json!([4]); 39];
    prompts.push(json!([VOCABULARY]));
    let reply = server.post("/v1/completions", &completion(&prompts)).await;
    assert!(
        reply.status == StatusCode::BAD_REQUEST && reply.text().contains("token ids"),
        "{}",
        reply.text()
    );

    let poison = VOCABULARY - 1;
    server.harness.sim().control().poison.store(poison, std::sync::atomic::Ordering::Relaxed);
    prompts[39] = json!([poison]);
    let reply = server.post("/v1/completions", &completion(&prompts)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (500, &json!("numeric_error")));

    server.harness.wait_idle().await;
    let held = (0..10).map(|_| server.harness.state.infer.generate(request("a", 3000)));
    let held: Vec<_> = join_all(held).await.into_iter().map(Result::unwrap).collect();
    prompts[39] = json!([4]);
    let best =
        json!({"inputs": "a", "parameters": {"best_of": 40, "do_sample": true, "max_new_tokens": 3000}});
    for (path, body) in [("/v1/completions", completion(&prompts)), ("/generate", best)] {
        assert_eq!(server.post(path, &body).await.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    drop(held);
    server.harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_server_takes_at_once_is_no_overload() {
    let server = Server::with(sim(), &["--max-concurrent-requests", "3", "--max-best-of", "4"]).await;
    let message =
        "prompts times `n` or `best_of` must be <= 3 sequences (--max-concurrent-requests). Given: 4";
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for stream in [false, true] {
        let chat = json!({"model": "sim", "messages": messages, "n": 4, "stream": stream});
        refused(&server.post("/v1/chat/completions", &chat).await, message);
        let prompts = json!({"model": "sim", "prompt": ["a", "b"], "n": 2, "stream": stream});
        refused(&server.post("/v1/completions", &prompts).await, message);
    }
    let best = json!({"inputs": "a", "parameters": {"best_of": 4, "do_sample": true}});
    let reply = server.post("/generate", &best).await;
    assert!(reply.status.as_u16() == 422 && reply.text().contains(message), "{}", reply.text());
    let three = json!({"model": "sim", "messages": messages, "n": 3, "max_tokens": 2});
    server.post("/v1/chat/completions", &three).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_copied() {
    let server = Server::with(sim(), &["--max-prompt-bytes", "100"]).await;
    let chat = |length: usize, n: usize| {
        let messages = json!([{"role": "user", "content": "a".repeat(length)}]);
        json!({"model": "sim", "messages": messages, "n": n, "max_tokens": 1})
    };
    // As it was sent, 15 bytes of names and role, and not as the template would write it.
    let message = "`messages` must have at most 100 bytes (--max-prompt-bytes). Given: 135";
    refused(&server.post("/v1/chat/completions", &chat(120, 2)).await, message);
    let long = json!({"model": "sim", "prompt": ["a", "a".repeat(101)], "n": 2});
    refused(
        &server.post("/v1/completions", &long).await,
        "`prompt` must have at most 100 bytes (--max-prompt-bytes). Given: 101",
    );
    server.post("/v1/chat/completions", &chat(20, 2)).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_tells_of_prompts_is_bounded() {
    let server = Server::new().await;
    let echo = |prompts: usize, stream: bool| {
        json!({"model": "sim", "prompt": vec![vec![4; 4000]; prompts], "echo": true, "logprobs": 20,
            "max_tokens": 1, "stream": stream})
    };
    let message = format!(
        "an answer that is not streamed must tell <= 1048576 tokens and alternatives of its prompts. Given: {}. Ask for \
         fewer prompts or alternatives, or for a stream",
        13 * 4000 * 21
    );
    refused(&server.post("/v1/completions", &echo(13, false)).await, &message);
    server.post("/v1/completions", &echo(12, false)).await.ok();
    server.post("/v1/completions", &echo(13, true)).await.ok();
    server.harness.wait_idle().await;
}
