//! Each flag that no other test needs changes something.

mod common;

use std::time::Duration;

use common::{Harness, for_adapter, request, sim};
use futures::future::join_all;
use lorikeet_bench::sim::{Control, SimConfig};
use lorikeet_proto::v1::WarmupRequest;
use lorikeet_router::error::Error;

fn sizes(harness: &Harness) -> WarmupRequest {
    harness.sim().control().sizes().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_reach_the_shards() {
    let harness = Harness::new().await;
    let default = WarmupRequest {
        block_size: 16,
        max_sequences: 32,
        max_step_tokens: 128,
        adapter_slots: 128,
        kv_bytes: 0,
        adapter_bytes: 0,
        max_sequence_tokens: 4096,
    };
    assert_eq!(sizes(&harness), default);
    let flags = [
        "--max-batch-size=5",
        "--max-batch-prefill-tokens=77",
        "--max-active-adapters=3",
        "--kv-cache-bytes=1000",
        "--adapter-memory-bytes=2000",
        "--max-total-tokens=99",
    ];
    let given = WarmupRequest {
        block_size: 16,
        max_sequences: 5,
        max_step_tokens: 77,
        adapter_slots: 3,
        kv_bytes: 1000,
        adapter_bytes: 2000,
        max_sequence_tokens: 99,
    };
    assert_eq!(sizes(&Harness::with(sim(), &flags).await), given);
    // One of the two decides the other.
    let few_tokens = sizes(&Harness::with(sim(), &["--max-batch-prefill-tokens=8"]).await);
    assert_eq!((few_tokens.max_sequences, few_tokens.max_step_tokens), (8, 8));
    let many_sequences = sizes(&Harness::with(sim(), &["--max-batch-size=500"]).await);
    assert_eq!((many_sequences.max_sequences, many_sequences.max_step_tokens), (500, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_model_can_do_stops_the_start() {
    for flag in ["--max-total-tokens=5000", "--max-input-length=4096"] {
        let harness = Harness::starting(sim(), &[flag], 1);
        tokio::time::timeout(Duration::from_secs(10), harness.driving).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_prefix_cache_nothing_is_reused() {
    let harness = Harness::with(sim(), &["--disable-prefix-cache"]).await;
    let prompt = "a prompt of more than one block of the cache, twice";
    for _ in 0..2 {
        let output = harness.generate(request(prompt, 2)).await.unwrap();
        assert_eq!((output.cached_tokens, output.ids()), (0, harness.expected(prompt, None, 2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_prompts_are_bounded_in_tokens() {
    let config = SimConfig { step_time: Duration::from_millis(50), ..sim() };
    let harness = Harness::with(config, &["--max-waiting-prompt-tokens=100", "--max-batch-size=1"]).await;
    let prompt = "0123456789".repeat(4);
    let asked = (0..8).map(|_| harness.generate(request(&prompt, 2)));
    let refused =
        join_all(asked).await.into_iter().filter(|outcome| matches!(outcome, Err(Error::Overloaded { .. })));
    assert!((3..=6).contains(&refused.count()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_bounded() {
    let config = SimConfig { adapter_bytes: 100, ..sim() };
    let flags = ["--adapter-disk-bytes=250", "--adapter-host-bytes=250", "--max-adapter-bytes=100"];
    let harness = Harness::with(config, &flags).await;
    for index in 0..6 {
        let adapter = format!("known/{index}");
        let output = harness.generate(for_adapter(&adapter, request("a", 2))).await.unwrap();
        assert_eq!(output.ids(), harness.expected("a", Some(&adapter), 2));
        harness.wait_idle().await;
        let stats = harness.state.registry.stats();
        assert!(stats.disk_bytes <= 250 && stats.stored <= 2, "{stats:?}");
    }
    // One that was dropped comes back as what it was.
    let output = harness.generate(for_adapter("known/0", request("a", 2))).await.unwrap();
    assert_eq!(output.ids(), harness.expected("a", Some("known/0"), 2));
    assert_eq!(Control::count(&harness.sim().control().fetches), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_bounded_and_aliases_can_be_left_out() {
    let harness = Harness::with(sim(), &["--max-adapter-labels=2", "--disable-vllm-metrics"]).await;
    for adapter in ["known/a", "known/b", "known/c", "known/d"] {
        harness.generate(for_adapter(adapter, request("a", 5))).await.unwrap();
    }
    let registry = &harness.state.registry;
    let text = harness.state.metrics.encode(registry.stats(), registry.names());
    let tokens: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("lorikeet_generated_tokens_total")).collect();
    let wanted = [
        "{adapter=\"(base)\"} 0",
        "{adapter=\"known/a\"} 5",
        "{adapter=\"known/b\"} 5",
        "{adapter=\"(other)\"} 10",
    ];
    assert_eq!(tokens, wanted);
    assert!(!text.contains("vllm:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warmup_that_takes_too_long_is_given_up() {
    let config = SimConfig { warmup_time: Duration::from_millis(600), ..sim() };
    let harness = Harness::starting(config.clone(), &["--warmup-timeout=0.1"], 1);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!harness.state.is_ready());
    Harness::with(config, &["--warmup-timeout=5"]).await;
}
