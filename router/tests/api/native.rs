//! The routes of LoRAX and TGI.

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::{
    client::Server,
    common::{FIRST, sim, sim_with_eos},
};

/// Every key that `lorax-client` sends, with its nulls.
fn lorax_client_parameters() -> Value {
    json!({
        "adapter_id": null, "adapter_source": null, "merged_adapters": null, "api_token": null, "do_sample": false,
        "max_new_tokens": 4, "ignore_eos_token": false, "repetition_penalty": null, "return_full_text": false,
        "stop": [], "seed": null, "temperature": null, "top_k": null, "top_p": null, "truncate": null,
        "typical_p": null, "best_of": null, "watermark": false, "details": true, "decoder_input_details": false,
        "return_k_alternatives": null, "response_format": null
    })
}

fn with(changes: &Value) -> Value {
    let mut parameters = lorax_client_parameters();
    for (key, value) in changes.as_object().unwrap() {
        parameters[key] = value.clone();
    }
    json!({"inputs": "Hello", "parameters": parameters})
}

#[tokio::test(flavor = "multi_thread")]
async fn generate_answers_an_object_and_root_a_list() {
    let server = Server::new().await;
    let body = with(&json!({}));
    let one = server.post("/generate", &body).await.ok();
    assert_snapshot!("generate", one.golden());
    let list = server.post("/", &body).await.ok();
    assert_eq!(list.json(), json!([one.json()]));
    for body in [json!({"inputs": "Hello"}), json!({"inputs": "Hello", "parameters": null, "stream": null})] {
        let plain = server.post("/", &with_limit(body)).await.ok().json();
        assert_eq!(plain, json!([{"generated_text": one.json()["generated_text"]}]));
    }
}

fn with_limit(mut body: Value) -> Value {
    body["parameters"] = json!({"max_new_tokens": 4});
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_parameters_use_what_the_context_has_left() {
    let server = Server::with(sim(), &["--max-input-length", "8", "--max-total-tokens", "16"]).await;
    for body in [json!({"inputs": "Hello"}), json!({"inputs": "Hello", "parameters": null})] {
        let reply = server.post("/generate", &body).await.ok();
        assert_eq!((reply.header("x-prompt-tokens"), reply.header("x-generated-tokens")), ("4", "12"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_named_in_the_headers() {
    let server = Server::new().await;
    let body = with(&json!({"adapter_id": "known/sql", "adapter_source": "local"}));
    assert_snapshot!("generate_adapter", server.post("/generate", &body).await.ok().golden());
    // The base model's own id names no adapter.
    let base = server.post("/generate", &with(&json!({"adapter_id": "sim"}))).await.ok();
    assert_eq!((base.header("x-adapter-id"), base.header("x-adapter-source")), ("", ""));
    assert_eq!(base.json(), server.post("/generate", &with(&json!({}))).await.ok().json());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_beside_the_parameters_is_not_overlooked() {
    let server = Server::new().await;
    for path in ["/", "/generate", "/generate_stream"] {
        let reply = server.post(path, &json!({"inputs": "Hello", "adapter_id": "known/sql"})).await;
        let text = "`adapter_id` is not supported: put it into `parameters`";
        assert!(
            reply.status == 422 && reply.text().contains(text),
            "{path} {} {}",
            reply.status,
            reply.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn details_hold_prompt_alternatives_and_top_tokens() {
    let server = Server::new().await;
    let changes = json!({"decoder_input_details": true, "details": false, "return_k_alternatives": 2,
        "top_n_tokens": 1, "max_new_tokens": 1, "return_full_text": true});
    let reply = server.post("/generate", &with(&changes)).await.ok();
    assert_snapshot!("generate_details", reply.golden());
    let details = &reply.json()["details"];
    assert_eq!(details["prefill"][0]["logprob"], Value::Null);
    assert!(details["prefill"].as_array().unwrap()[1..].iter().all(|token| token["logprob"].is_f64()));
    let none = server.post("/generate", &with(&json!({"top_n_tokens": 0}))).await.ok().json();
    assert_eq!(none, server.post("/generate", &with(&json!({}))).await.ok().json());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seed_shows_only_when_sampling() {
    let server = Server::new().await;
    let seed = async |changes| {
        server.post("/generate", &with(&changes)).await.ok().json()["details"]["seed"].clone()
    };
    assert_eq!(seed(json!({"seed": 5})).await, Value::Null);
    assert_eq!(seed(json!({"seed": 5, "do_sample": true})).await, 5);
    for _ in 0..5 {
        let drawn = seed(json!({"temperature": 0.7})).await.as_u64().unwrap();
        assert!(drawn < 1 << 53, "JavaScript would read another number than {drawn}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn best_of_answers_the_others_too() {
    let server = Server::new().await;
    let reply = server.post("/generate", &with(&json!({"best_of": 2, "temperature": 0.5}))).await.ok().json();
    let details = &reply["details"];
    let others = details["best_of_sequences"].as_array().unwrap();
    assert_eq!(others.len(), 1);
    let keys: Vec<_> = others[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"]);
    assert_ne!(others[0]["seed"], details["seed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_stay_in_the_text() {
    let server = Server::new().await;
    let whole = server.post("/generate", &with(&json!({"max_new_tokens": 30}))).await.ok().json();
    let text = whole["generated_text"].as_str().unwrap();
    let stop: String = text.chars().skip(7).take(2).collect();
    let end = text.find(&stop).unwrap() + stop.len();
    let stopped =
        server.post("/generate", &with(&json!({"max_new_tokens": 30, "stop": [stop]}))).await.ok().json();
    assert_eq!(stopped["generated_text"], text[..end]);
    assert_eq!(stopped["details"]["finish_reason"], "stop_sequence");
    assert!(stopped["details"]["generated_tokens"].as_u64().unwrap() < 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_has_what_lorax_client_requires() {
    let server = Server::with(sim_with_eos(), &[]).await;
    let mut reasons = Vec::new();
    for index in 0..12 {
        let mut body = with(&json!({"max_new_tokens": 40, "return_k_alternatives": 3, "top_n_tokens": 3}));
        body["inputs"] = json!(format!("prompt {index}"));
        let details = server.post("/generate", &body).await.ok().json()["details"].take();
        reasons.push(details["finish_reason"].as_str().unwrap().to_owned());
        for token in details["tokens"].as_array().unwrap() {
            assert!(
                token["logprob"].is_f64() && token["special"].is_boolean() && token["skipped"].is_boolean()
            );
            let alternatives = token["alternative_tokens"].as_array().unwrap();
            assert!(alternatives.iter().all(|alternative| alternative["logprob"].is_f64()));
        }
        for token in details["top_tokens"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap())
        {
            assert_eq!(token["special"], token["id"].as_u64().unwrap() < u64::from(FIRST), "{token}");
        }
        if details["finish_reason"] == "eos_token" {
            let last = details["tokens"].as_array().unwrap().last().unwrap();
            assert_eq!((&last["text"], &last["special"]), (&json!("</s>"), &json!(true)));
        }
    }
    assert!(reasons.contains(&"eos_token".to_owned()) && reasons.contains(&"length".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chat_template_is_applied_when_asked_for() {
    let server = Server::new().await;
    let plain = server.post("/generate", &with(&json!({"return_full_text": true}))).await.ok().json();
    assert!(plain["generated_text"].as_str().unwrap().starts_with("Hello"));
    let changes = json!({"return_full_text": true, "apply_chat_template": true});
    let chat = server.post("/generate", &with(&changes)).await.ok().json();
    let text = chat["generated_text"].as_str().unwrap();
    assert!(text.starts_with("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokenize_gives_places_in_characters() {
    let server = Server::new().await;
    let reply = server.post("/tokenize", &json!({"inputs": "é the", "add_special_tokens": null})).await.ok();
    assert_snapshot!("tokenize", reply.golden());
    let bare =
        server.post("/tokenize", &json!({"inputs": "a", "add_special_tokens": false})).await.ok().json();
    assert_eq!(bare, json!([{"id": FIRST + u32::from(b'a') - 32, "text": "a", "start": 0, "stop": 1}]));
}
