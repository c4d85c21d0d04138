//! Every numeric field at and past its bounds: an answer or a refusal, never a failure of the server.

use serde_json::{Value, json};

use crate::client::Server;

/// What JSON can say in the place of a number.
const VALUES: [&str; 22] = [
    "-1",
    "-0",
    "0",
    "1",
    "2",
    "-2.5",
    "0.5",
    "1.0",
    "1e-45",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e39",
    "1e400",
    "\"1\"",
    "true",
    "null",
    "[]",
    "{}",
];

async fn fuzz(server: &Server, path: &str, base: &Value, nested: bool, fields: &[&str]) {
    for field in fields {
        for value in VALUES {
            // As text: not all of these are numbers to serde_json.
            let mut body = base.clone();
            let target = if nested { &mut body["parameters"] } else { &mut body };
            target[*field] = json!("@");
            let reply = server.post_text(path, body.to_string().replace("\"@\"", value)).await;
            let status = reply.status.as_u16();
            assert!(matches!(status, 200 | 400 | 422), "{path} {field}: {value}: {status} {}", reply.text());
            if status != 200 {
                let error = &reply.json()["error"];
                assert!(
                    error.is_string() || error["message"].is_string(),
                    "{path} {field}: {value}: {}",
                    reply.text()
                );
                assert!(value != "null" || *field == "model", "{path} {field}: {}", reply.text());
            }
            let wrong_type = matches!(value, "\"1\"" | "true" | "[]" | "{}" | "1e400");
            assert!(!wrong_type || status != 200, "{path} {field}: {value} was accepted");
        }
    }
}

const FLAGS: [&str; 4] = ["--max-input-length", "32", "--max-total-tokens", "40"];

#[tokio::test(flavor = "multi_thread")]
async fn native_numbers() {
    let server = Server::with(crate::common::sim(), &FLAGS).await;
    let base = json!({"inputs": "a", "parameters": {"max_new_tokens": 1, "details": true}});
    let fields = [
        "best_of",
        "temperature",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "top_k",
        "top_p",
        "typical_p",
        "max_new_tokens",
        "truncate",
        "return_k_alternatives",
        "top_n_tokens",
        "seed",
    ];
    for path in ["/generate", "/generate_stream"] {
        fuzz(&server, path, &base, true, &fields).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_numbers() {
    let server = Server::with(crate::common::sim(), &FLAGS).await;
    let shared = [
        "temperature",
        "top_p",
        "top_k",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "n",
        "max_tokens",
    ];
    let completion = json!({"model": "sim", "prompt": [4], "max_tokens": 1});
    fuzz(&server, "/v1/completions", &completion, false, &shared).await;
    fuzz(&server, "/v1/completions", &completion, false, &["best_of", "logprobs"]).await;
    let mut stream = completion.clone();
    stream["stream"] = json!(true);
    fuzz(&server, "/v1/completions", &stream, false, &shared).await;
    let chat = json!({"model": "sim", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": true});
    fuzz(&server, "/v1/chat/completions", &chat, false, &shared).await;
    fuzz(&server, "/v1/chat/completions", &chat, false, &["max_completion_tokens", "top_logprobs"]).await;
}

/// Each body is served where its flag is not given.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_are_flags() {
    let default = Server::new().await;
    let native = |mut parameters: Value| {
        parameters["max_new_tokens"] = json!(1);
        ("/generate", json!({"inputs": "a", "parameters": parameters}))
    };
    let choices = json!({"model": "", "prompt": "a", "n": 2, "max_tokens": 1});
    for (flag, (path, body)) in [
        ("--max-best-of=1", native(json!({"best_of": 2, "do_sample": true}))),
        ("--max-stop-sequences=1", native(json!({"stop": ["x", "y"]}))),
        ("--max-alternatives=1", native(json!({"return_k_alternatives": 2}))),
        ("--max-choices=1", ("/v1/completions", choices)),
    ] {
        default.post(path, &body).await.ok();
        let bounded = Server::with(crate::common::sim(), &[flag]).await;
        let reply = bounded.post(path, &body).await;
        assert!(matches!(reply.status.as_u16(), 400 | 422), "{flag}: {} {}", reply.status, reply.text());
    }
}
