//! Parameters outside their bounds, with the texts that clients know.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Harness, VOCABULARY, request, sim, with_params};
use lorikeet_router::{
    error::Error,
    request::{GenerateRequest, Params, Prompt},
};

type Change = fn(&mut Params);

async fn refusal(harness: &Harness, request: GenerateRequest) -> String {
    match harness.state.infer.generate(request).await.err() {
        Some(error @ Error::Validation(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bound_has_its_text() {
    let harness = Harness::with(sim(), &["--max-input-length", "20", "--max-total-tokens", "30"]).await;
    let cases: Vec<(Change, &str)> = vec![
        (|p| p.temperature = Some(-0.1), "`temperature` must be non-negative"),
        (|p| p.temperature = Some(f32::NAN), "`temperature` must be finite"),
        (|p| p.top_p = Some(f32::INFINITY), "`top_p` must be finite"),
        (|p| p.repetition_penalty = Some(0.0), "`repetition_penalty` must be strictly positive"),
        (|p| p.frequency_penalty = Some(2.1), "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        (|p| p.presence_penalty = Some(-2.1), "`presence_penalty` must be >= -2.0 and <= 2.0"),
        (|p| p.top_p = Some(0.0), "`top_p` must be > 0.0 and < 1.0"),
        (|p| p.top_p = Some(1.1), "`top_p` must be > 0.0 and < 1.0"),
        (|p| p.typical_p = Some(1.0), "`typical_p` must be > 0.0 and < 1.0"),
        (|p| p.top_k = Some(0), "`top_k` must be strictly positive"),
        (|p| p.top_k = Some(-5), "`top_k` must be strictly positive"),
        (|p| p.top_logprobs = Some(0), "`return_k_alternatives` must be strictly positive"),
        (|p| p.top_logprobs = Some(21), "`return_k_alternatives` must be <= 20. Given: 21"),
        (|p| p.truncate = Some(0), "`truncate` must be strictly positive and less than 20. Given: 0"),
        (|p| p.truncate = Some(21), "`truncate` must be strictly positive and less than 20. Given: 21"),
        (|p| p.max_new_tokens = Some(0), "`max_new_tokens` must be strictly positive"),
        (
            |p| p.max_new_tokens = Some(29),
            "`inputs` tokens + `max_new_tokens` must be <= 30. Given: 2 `inputs` tokens and 29 `max_new_tokens`",
        ),
        (
            |p| p.max_new_tokens = Some(u32::MAX),
            "`inputs` tokens + `max_new_tokens` must be <= 30. Given: 2 `inputs` tokens and 4294967295 `max_new_tokens`",
        ),
        (|p| p.stop = vec!["a".into(); 5], "`stop` supports up to 4 stop sequences. Given: 5"),
        (|p| p.stop = vec![String::new()], "`stop` must not contain an empty string"),
        (|p| p.stop = vec!["a".repeat(2000)], "`stop` sequences must have at most 1024 bytes. Given: 2000"),
        (|p| p.logit_bias = vec![(1, 0.0); 2000], "`logit_bias` supports up to 1024 tokens. Given: 2000"),
        (|p| p.logit_bias = vec![(1, 101.0)], "`logit_bias` values must be >= -100 and <= 100"),
        (|p| p.logit_bias = vec![(1, f32::NAN)], "`logit_bias` values must be >= -100 and <= 100"),
    ];
    for (change, text) in cases {
        let asked = with_params(request("a", 5), change);
        assert_eq!(refusal(&harness, asked).await, format!("Input validation error: {text}"));
    }
    let bias = with_params(request("a", 5), |p| p.logit_bias = vec![(VOCABULARY, 1.0)]);
    let text = format!(
        "Input validation error: `logit_bias` must have token ids below {VOCABULARY}. Given: {VOCABULARY}"
    );
    assert_eq!(refusal(&harness, bias).await, text);
    let good = with_params(request("a", 5), |p| {
        p.top_p = Some(1.0);
        p.top_k = Some(i64::MAX);
        p.temperature = Some(1e-40);
        p.logit_bias = vec![(VOCABULARY - 1, -100.0)];
    });
    harness.generate(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_bounded_before_and_after_tokenising() {
    let harness = Harness::with(sim(), &["--max-input-length", "20", "--max-total-tokens", "30"]).await;
    let long = "a".repeat(25);
    for (prompt, text) in [
        (String::new(), "`inputs` cannot be empty"),
        (long, "`inputs` must have less than 20 tokens. Given: 26"),
        ("a".repeat(321), "`inputs` must have at most 320 bytes (--max-prompt-bytes). Given: 321"),
    ] {
        let asked = with_params(request(&prompt, 5), |p| p.max_new_tokens = None);
        let asked =
            with_params(asked, |p| p.max_new_tokens = if prompt.len() == 25 { Some(4) } else { None });
        assert_eq!(refusal(&harness, asked).await, format!("Input validation error: {text}"));
    }
    let mut tokens = request("", 5);
    tokens.prompt = Prompt::Tokens(vec![VOCABULARY]);
    assert!(refusal(&harness, tokens.clone()).await.contains("token ids below"));
    tokens.prompt = Prompt::Tokens(Vec::new());
    assert!(refusal(&harness, tokens.clone()).await.contains("cannot be empty"));
    tokens.prompt = Prompt::Tokens(vec![4, 5, 6]);
    harness.generate(tokens).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_context_is_the_default_length() {
    let harness = Harness::with(sim(), &["--max-total-tokens", "40"]).await;
    let asked = with_params(request("four", 1), |p| p.max_new_tokens = None);
    assert_eq!(harness.generate(asked).await.unwrap().generated_tokens, 35);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_know_their_places() {
    let harness = Harness::new().await;
    let spans = harness.state.validator.tokenize("é the".into(), false).await.unwrap();
    let places: Vec<_> = spans.iter().map(|span| (span.text.as_str(), span.start, span.stop)).collect();
    assert_eq!(places, [("Ã", 0, 1), ("©", 0, 1), ("Ġthe", 1, 5)]);
    assert!(harness.state.validator.tokenize("a".repeat(1 << 20), false).await.is_err());
}
