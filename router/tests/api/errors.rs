//! Refusals: status and body, in the dialect of the path.

use std::time::Duration;

use hyper::Method;
use insta::assert_snapshot;
use lorikeet_bench::sim::{SimConfig, SimShard};
use lorikeet_router::{Started, readiness::Readiness};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    client::Server,
    common::{Harness, config, sim, write_tokenizer},
};

/// One line for each request: what was wrong with it and the answer.
async fn table(server: &Server, path: &str, base: &Value, changes: &[Value]) -> String {
    let mut text = String::new();
    for change in changes {
        let mut body = base.clone();
        let target = if path.starts_with("/v1") { &mut body } else { &mut body["parameters"] };
        for (key, value) in change.as_object().unwrap() {
            target[key] = value.clone();
        }
        let reply = server.post(path, &body).await;
        text += &format!("{:.120}\n  {} {}\n", change.to_string(), reply.status.as_u16(), reply.text());
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn native_parameters() {
    let server = Server::new().await;
    let base = json!({"inputs": "Hello", "parameters": {"max_new_tokens": 1}});
    let changes = [
        json!({"best_of": 0}),
        json!({"best_of": 3, "do_sample": true}),
        json!({"best_of": 2}),
        json!({"best_of": 2, "do_sample": true, "seed": 1}),
        json!({"temperature": -1}),
        json!({"temperature": 1e39}),
        json!({"repetition_penalty": 0}),
        json!({"frequency_penalty": 2.5}),
        json!({"presence_penalty": -2.5}),
        json!({"top_p": 0}),
        json!({"top_p": 1.5}),
        json!({"typical_p": 1}),
        json!({"top_k": 0}),
        json!({"return_k_alternatives": 0}),
        json!({"top_n_tokens": -1}),
        json!({"top_n_tokens": 21}),
        json!({"return_k_alternatives": 21}),
        json!({"truncate": 0}),
        json!({"max_new_tokens": 0}),
        json!({"max_new_tokens": -1}),
        json!({"max_new_tokens": 1_000_000}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": [""]}),
        json!({"stop": "a"}),
        json!({"stop": [null]}),
        json!({"watermark": true}),
        json!({"grammar": {"type": "json", "value": {}}}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"merged_adapters": {"ids": ["a"]}}),
        json!({"merged_adapters": {"ids": ["a"]}, "adapter_id": "b"}),
        json!({"adapter_source": "pbase"}),
        json!({"adapter_id": "../x"}),
        json!({"adapter_id": "missing"}),
        json!({"adapter_id": 7}),
        json!({"seed": -1}),
    ];
    assert_snapshot!(table(&server, "/generate", &base, &changes).await);
    let stream = [json!({"best_of": 2, "do_sample": true}), json!({"decoder_input_details": true})];
    assert_snapshot!("native_stream_parameters", table(&server, "/generate_stream", &base, &stream).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_parameters() {
    let server = Server::new().await;
    let base = json!({"model": "sim", "prompt": "Hi", "max_tokens": 1});
    let changes = [
        json!({"model": null}),
        json!({"model": "missing"}),
        json!({"model": "a,b"}),
        json!({"prompt": ""}),
        json!({"prompt": []}),
        json!({"prompt": [[]]}),
        json!({"prompt": {"text": "a"}}),
        json!({"prompt": [4_000_000]}),
        json!({"prompt": [-1]}),
        json!({"prompt": "a ".repeat(5000)}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 5000}),
        json!({"temperature": -0.5}),
        json!({"top_p": 0}),
        json!({"n": 0}),
        json!({"n": 1_000_000_000}),
        json!({"n": 2, "best_of": 1}),
        json!({"best_of": 99}),
        json!({"best_of": 2, "stream": true}),
        json!({"logprobs": 21}),
        json!({"logprobs": true}),
        json!({"stop": 1}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"suffix": "x"}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"structured_outputs": {"json": {}}}),
        json!({"guided_json": {}}),
        json!({"guided_regex": "a"}),
        json!({"guided_choice": ["a"]}),
        json!({"guided_grammar": "a"}),
        json!({"min_p": 0.1}),
        json!({"min_tokens": 1}),
        json!({"stop_token_ids": [2]}),
        json!({"bad_words": ["a"]}),
        json!({"allowed_token_ids": [4]}),
        json!({"use_beam_search": true}),
        json!({"truncate_prompt_tokens": 1}),
        json!({"skip_special_tokens": false}),
        json!({"prompt_logprobs": 0}),
        json!({"return_token_ids": true}),
        json!({"return_tokens_as_token_ids": true}),
        json!({"cache_salt": "x"}),
        json!({"lora_path": "known/a"}),
        json!({"regex": "a"}),
        json!({"ebnf": "root ::= \"a\""}),
        json!({"json_schema": "{}"}),
        json!({"grammar": "root ::= \"a\""}),
        json!({"typical_p": 1.5}),
        json!({"logit_bias": {"x": 1}}),
        json!({"logit_bias": {"4": 101}}),
        json!({"logit_bias": {"4000000": 1}}),
        json!({"adapter_source": "s3"}),
        json!({"model": "known/a", "adapter_id": "known/b"}),
        json!({"stream_options": 1}),
    ];
    assert_snapshot!(table(&server, "/v1/completions", &base, &changes).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_parameters() {
    let server = Server::new().await;
    let base = json!({"model": "sim", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    let image = json!([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]);
    let changes = [
        json!({"messages": []}),
        json!({"messages": [{"content": "a"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "a\nb", "content": "a"}]}),
        json!({"messages": [{"role": "user", "content": image}]}),
        json!({"messages": "Hi"}),
        json!({"top_logprobs": 1}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"n": 17}),
        json!({"max_completion_tokens": 0}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": {"type": "function"}}),
        json!({"functions": [{}]}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"guided_json": {}}),
        json!({"lora_path": "known/a"}),
        json!({"function_call": {"name": "f"}}),
        json!({"continue_final_message": true, "add_generation_prompt": false}),
        json!({"add_special_tokens": true}),
        json!({"echo": true}),
        json!({"documents": [{"text": "a"}]}),
        json!({"modalities": ["audio"]}),
        json!({"chat_template": "{{ 7 * 7 }}"}),
        json!({"chat_template_kwargs": {"tokenize": true}}),
        json!({"guideline": "x"}),
        json!({"tool_prompt": "x"}),
    ];
    assert_snapshot!(table(&server, "/v1/chat/completions", &base, &changes).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_methods_and_bodies() {
    let server = Server::new().await;
    let json = [("content-type", "application/json")];
    let mut text = String::new();
    for (method, path, headers, body) in [
        ("GET", "/nowhere", &json[..0], ""),
        ("GET", "/v1/nowhere", &[], ""),
        ("GET", "/v1", &[], ""),
        ("GET", "/generate", &[], ""),
        ("DELETE", "/v1/models", &[], ""),
        ("GET", "/v1/completions", &[], ""),
        ("POST", "/generate", &[], "{}"),
        ("POST", "/generate", &[("content-type", "text/plain")], "{}"),
        ("POST", "/v1/completions", &[], "{}"),
        ("POST", "/generate", &[json[0], ("content-encoding", "gzip")], "\x1f"),
        ("POST", "/generate", &json, ""),
        ("POST", "/generate", &json, "{\"inputs\":"),
        ("POST", "/generate", &json, "{\"inputs\":\"a\"}x"),
        ("POST", "/generate", &json, "{\"inputs\":\"a\",\"parameters\":{\"temperature\":1e400}}"),
        ("POST", "/generate", &json, "{\"inputs\":null}"),
        ("POST", "/generate", &json, "{\"inputs\":\"\"}"),
        ("POST", "/generate", &json, "{}"),
        ("POST", "/v1/completions", &json, "{\"model\":"),
        ("POST", "/v1/completions", &json, "{}"),
        ("POST", "/v1/chat/completions", &json, "[]"),
        ("POST", "/tokenize", &json, "{\"inputs\":7}"),
    ] {
        let reply = server.send(method.parse().unwrap(), path, headers, body).await;
        text += &format!("{method} {path} {headers:?} {body}\n{}\n\n", reply.golden());
    }
    assert_snapshot!(text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_template_cannot_chat() {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    std::fs::write(directory.path().join("tokenizer_config.json"), "{}").unwrap();
    let shard = SimShard::start(&directory.path().join("shard-0"), sim()).unwrap();
    let (readiness, ready) = watch::channel(Readiness::default());
    let Started { state, driver, driving } =
        lorikeet_router::start(config(directory.path(), 1, &[]), readiness.clone(), ready).unwrap();
    let (sims, sim_config) = (vec![Some(shard)], sim());
    let harness = Harness { directory, sims, sim_config, state, driver, driving, readiness };
    harness.wait_ready().await;
    let server = Server::before(harness).await;
    let chat = json!({"model": "sim", "messages": [{"role": "user", "content": "Hi"}]});
    assert_snapshot!("no_template", server.post("/v1/chat/completions", &chat).await.golden());
}

#[tokio::test(flavor = "multi_thread")]
async fn saturation_says_when_to_come_back() {
    let sim = SimConfig { step_time: Duration::from_millis(20), ..sim() };
    let server = Server::with(sim, &["--max-concurrent-requests", "1"]).await;
    let long = json!({"model": "sim", "prompt": "a", "max_tokens": 60});
    let (first, second) = tokio::join!(server.post("/v1/completions", &long), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let native = server.post("/generate", &json!({"inputs": "a"})).await;
        (
            server.post("/v1/completions", &long).await,
            native,
            server.send(Method::GET, "/health", &[], "").await,
        )
    });
    first.ok();
    let (openai, native, health) = second;
    assert_snapshot!("overloaded", format!("{}\n\n{}", openai.golden(), native.golden()));
    health.ok();
    server.post("/v1/completions", &long).await.ok();
}
