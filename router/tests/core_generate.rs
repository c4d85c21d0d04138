//! Outputs, exactly: the simulated shard says what each request has to give.

mod common;

use common::{ASCII_END, EOS, Harness, VOCABULARY, for_adapter, request, sim, sim_with_eos, with_params};
use futures::future::join_all;
use lorikeet_bench::sim::SimConfig;
use lorikeet_router::{output::FinishReason, request::Prompt};

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_each_get_their_own_tokens() {
    let harness = Harness::new().await;
    let jobs = (0..120).map(|index| {
        let harness = &harness;
        async move {
            let prompt = format!("prompt number {} {}", index % 40, "the ".repeat(index % 23));
            let adapter = (index % 3 > 0).then(|| format!("known/{}", index % 7));
            let limit = 1 + index % 50;
            let mut asked = request(&prompt, limit as u32);
            if let Some(adapter) = &adapter {
                asked = for_adapter(adapter, asked);
            }
            let output = harness.generate(asked).await.unwrap();
            let expected = harness.expected(&prompt, adapter.as_deref(), limit);
            assert_eq!(output.ids(), expected, "{prompt} {adapter:?}");
            assert_eq!(output.text, harness.tokenizer().decode(&expected));
            assert_eq!((output.reason, output.generated_tokens as usize), (FinishReason::Length, limit));
        }
    });
    join_all(jobs).await;
    harness.wait_idle().await;
    assert_eq!(harness.violations(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_runs_out_changes_no_output() {
    let config = SimConfig { num_blocks: 24, ..sim() };
    let harness =
        Harness::with(config, &["--max-batch-prefill-tokens", "64", "--max-batch-size", "16"]).await;
    let jobs = (0..24).map(|index| {
        let harness = &harness;
        async move {
            let prompt = format!("{index} {}", "ab".repeat(index % 20));
            let output = harness.generate(request(&prompt, 100)).await.unwrap();
            assert_eq!(output.ids(), harness.expected(&prompt, None, 100));
        }
    });
    join_all(jobs).await;
    harness.wait_idle().await;
    assert_eq!(harness.violations(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_block_of_memory_serves_one_after_the_other() {
    let harness = Harness::with(SimConfig { num_blocks: 1, ..sim() }, &[]).await;
    let outputs = join_all((0..12).map(|_| harness.generate(request("1234", 11)))).await;
    for output in outputs {
        assert_eq!(output.unwrap().ids(), harness.expected("1234", None, 11));
    }
    let error = harness.generate(request("1234", 12)).await.unwrap_err();
    assert!(error.to_string().contains("must be <= 16"), "{error}");
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_ends_with_its_end_token_unless_told_not_to() {
    let harness = Harness::with(sim_with_eos(), &[]).await;
    let mut ended = 0;
    for index in 0..10 {
        let prompt = format!("prompt {index}");
        let expected = harness.expected(&prompt, None, 60);
        let output = harness.generate(request(&prompt, 60)).await.unwrap();
        assert_eq!(output.ids(), expected);
        if expected.last() == Some(&EOS) {
            ended += 1;
            assert_eq!(output.reason, FinishReason::Eos);
            let last = output.tokens.last().unwrap();
            assert!(last.special && last.text == "</s>");
            assert!(!output.text.contains("</s>"));
            let on = with_params(request(&prompt, 60), |params| params.ignore_eos_token = true);
            assert_eq!(harness.generate(on).await.unwrap().generated_tokens, 60);
        }
    }
    assert!(ended > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_become_whole_characters() {
    let harness = Harness::with(SimConfig { sampled: 4..VOCABULARY, ..sim() }, &[]).await;
    for index in 0..20 {
        let output = harness.generate(request(&format!("p{index}"), 200)).await.unwrap();
        assert_eq!(output.text, harness.tokenizer().decode(&output.ids()));
        let texts: String = output.tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(texts, output.text);
    }
}

/// Clients look for the token among its alternatives by its text.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_character_reads_the_same_among_its_alternatives() {
    // The sim's likeliest alternative is the token itself, with the prompt's as with its own.
    let harness = Harness::with(SimConfig { sampled: ASCII_END..VOCABULARY, ..sim() }, &[]).await;
    let asked = with_params(request("é\u{1f980}", 40), |params| {
        params.top_logprobs = Some(2);
        params.prompt_logprobs = Some(1);
    });
    let output = harness.generate(asked).await.unwrap();
    let texts: Vec<_> = output.tokens.iter().map(|token| &*token.text).collect();
    assert!(texts.contains(&""), "no token is a part of a character: {texts:?}");
    for token in &output.tokens {
        assert_eq!((token.alternatives[0].id, &token.alternatives[0].text), (token.id, &token.text));
    }
    let scored = output.prompt.unwrap();
    assert_eq!(
        scored.iter().map(|token| &*token.text).collect::<Vec<_>>(),
        ["<s>", "", "é", "", "", "", "\u{1f980}"]
    );
    for token in &scored[1..] {
        assert_eq!((token.alternatives[0].id, &token.alternatives[0].text), (token.id, &token.text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_come_with_tokens_and_prompt() {
    let harness = Harness::with(sim(), &["--max-batch-prefill-tokens", "32"]).await;
    let prompt = "the prompt ".repeat(9);
    let asked = with_params(request(&prompt, 3), |params| {
        params.top_logprobs = Some(2);
        params.prompt_logprobs = Some(1);
    });
    let output = harness.generate(asked).await.unwrap();
    assert_eq!(output.ids(), harness.expected(&prompt, None, 3));
    for token in &output.tokens {
        assert!((token.logprob + 1.0).abs() < f32::EPSILON);
        assert_eq!(token.alternatives.len(), 2);
        assert_eq!(token.alternatives[0].text, harness.tokenizer().piece(token.id));
    }
    let scored = output.prompt.unwrap();
    let tokens = harness.tokenizer().encode(&prompt, true).unwrap();
    assert_eq!(scored.iter().map(|token| token.id).collect::<Vec<_>>(), tokens);
    assert_eq!(scored[0].logprob, None);
    assert!(scored[1..].iter().all(|token| token.logprob == Some(-0.5) && token.alternatives.len() == 1));
    let text: String = scored[1..].iter().map(|token| token.text.as_str()).collect();
    assert_eq!((scored[0].text.as_str(), text.as_str()), ("<s>", prompt.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_reused_only_within_its_adapter() {
    let harness = Harness::new().await;
    let prompt = "a long prompt that fills more than two blocks of the cache";
    let first = harness.generate(request(prompt, 4)).await.unwrap();
    let again = harness.generate(request(prompt, 4)).await.unwrap();
    assert_eq!(first.cached_tokens, 0);
    assert!(again.cached_tokens >= 32);
    let other = harness.generate(for_adapter("known/a", request(prompt, 4))).await.unwrap();
    assert_eq!(other.cached_tokens, 0);
    assert_eq!(again.ids(), first.ids());
    assert_eq!(other.ids(), harness.expected(prompt, Some("known/a"), 4));
    assert_ne!(other.ids(), first.ids());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_the_chat_template() {
    let harness = Harness::new().await;
    let messages = serde_json::json!([{"role": "user", "content": "Hi"}]);
    let mut asked = request("", 2);
    asked.prompt = Prompt::Chat { messages, tools: None, add_generation_prompt: true };
    let generation = harness.state.infer.generate(asked).await.unwrap();
    assert_eq!(generation.info.prompt_text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let tokens = harness.tokenizer().encode(&generation.info.prompt_text, false).unwrap();
    assert_eq!(generation.info.prompt_tokens as usize, tokens.len());
    let output = common::collect(generation).await.unwrap();
    assert_eq!(output.ids(), lorikeet_bench::sim::expected(&tokens, None, 2, &harness.sim_config));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_tokens_are_kept() {
    let harness = Harness::with(sim(), &["--max-input-length", "20", "--max-total-tokens", "30"]).await;
    let prompt = "0123456789".repeat(8);
    let asked = with_params(request(&prompt, 5), |params| params.truncate = Some(12));
    let generation = harness.state.infer.generate(asked).await.unwrap();
    assert_eq!((generation.info.prompt_tokens, &generation.info.prompt_text), (12, &prompt));
    let tokens = harness.tokenizer().encode(&prompt[prompt.len() - 12..], false).unwrap();
    let output = common::collect(generation).await.unwrap();
    assert_eq!(output.ids(), lorikeet_bench::sim::expected(&tokens, None, 5, &harness.sim_config));
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_is_on_when_any_of_its_parameters_is_set() {
    let harness = Harness::new().await;
    let seed = |asked| async { harness.state.infer.generate(asked).await.unwrap().info.seed };
    assert_eq!(seed(request("a", 1)).await, None);
    assert_eq!(seed(with_params(request("a", 1), |p| p.temperature = Some(0.0))).await, None);
    assert_eq!(seed(with_params(request("a", 1), |p| p.seed = Some(1))).await, None);
    for change in [
        |p: &mut lorikeet_router::request::Params| p.do_sample = true,
        |p: &mut lorikeet_router::request::Params| p.temperature = Some(0.5),
        |p: &mut lorikeet_router::request::Params| p.top_k = Some(5),
        |p: &mut lorikeet_router::request::Params| p.top_p = Some(0.5),
        |p: &mut lorikeet_router::request::Params| p.typical_p = Some(0.5),
    ] {
        assert!(seed(with_params(request("a", 1), change)).await.is_some());
    }
    let given = with_params(request("a", 1), |p| {
        p.do_sample = true;
        p.seed = Some(7);
    });
    assert_eq!(seed(given).await, Some(7));
}
