//! Adapters: fetched once, refused for what they are, given up when their room is wanted.

mod common;

use std::time::Duration;

use common::{Harness, for_adapter, request, sim};
use futures::{StreamExt, future::join_all};
use lorikeet_bench::sim::{Control, SimConfig, digest};
use lorikeet_router::{error::Error, readiness::Readiness};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_cold_requests_are_one_fetch() {
    let config =
        SimConfig { fetch_time: Duration::from_millis(100), stage_time: Duration::from_millis(50), ..sim() };
    let harness = Harness::with(config, &[]).await;
    let jobs = (0..200).map(|index| {
        let harness = &harness;
        async move {
            let prompt = format!("prompt {index}");
            let output = harness.generate(for_adapter("known/cold", request(&prompt, 3))).await.unwrap();
            assert_eq!(output.ids(), harness.expected(&prompt, Some("known/cold"), 3));
        }
    });
    join_all(jobs).await;
    let control = harness.sim().control();
    assert_eq!((Control::count(&control.fetches), Control::count(&control.stagings)), (1, 1));
    harness.wait_idle().await;
    let listed = harness.state.registry.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].id.as_str(), listed[0].digest.as_str()),
        ("known/cold", digest("known/cold").as_str())
    );
    assert_eq!(harness.state.registry.find("known/cold").as_ref(), Some(&listed[0]));
    assert!(listed[0].created > 1_700_000_000);
}

type Right = fn(&Error) -> bool;

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_is_told_as_what_it_is() {
    let harness = Harness::with(sim(), &["--adapter-failure-ttl", "30"]).await;
    let fetches = || Control::count(&harness.sim().control().fetches);
    let cases: [(&str, Right); 9] = [
        ("nowhere/x", |e| matches!(e, Error::AdapterNotFound { .. })),
        ("denied/x", |e| matches!(e, Error::AdapterNotFound { .. })),
        ("invalid/x", |e| matches!(e, Error::AdapterInvalid { message, .. } if message.contains("`r`"))),
        (
            "unloadable/x",
            |e| matches!(e, Error::AdapterInvalid { message, .. } if message.contains("lora_A")),
        ),
        ("large/x", |e| matches!(e, Error::AdapterTooLarge { .. })),
        ("full/x", |e| matches!(e, Error::AdapterNoSpace { .. })),
        ("changed/x", |e| matches!(e, Error::AdapterChanged { .. })),
        ("down/x", |e| matches!(e, Error::AdapterUnavailable { .. })),
        ("../etc", |e| matches!(e, Error::Validation(_))),
    ];
    for (id, is_right) in cases {
        let asked = || harness.generate(for_adapter(id, request("a", 1)));
        let error = asked().await.unwrap_err();
        assert!(is_right(&error), "{id}: {error}");
        // Remembered: nobody is asked again.
        let before = fetches();
        assert_eq!(asked().await.unwrap_err(), error);
        assert_eq!(fetches(), before, "{id}");
    }
    let unknown = Error::AdapterNotFound { id: "x".into() };
    assert_eq!(unknown.to_string(), "adapter or model `x` not found");
    assert!(harness.state.registry.list().iter().all(|listed| listed.id == "unloadable/x"));
    harness.generate(for_adapter("known/x", request("a", 1))).await.unwrap();
    harness.wait_idle().await;
}

/// The shard's words decide nothing: those of the simulated one are as unlike as can be.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_fits_and_what_finds_no_room_now_are_told_apart_by_their_codes() {
    let harness = Harness::new().await;
    for (id, words) in [("large/x", "is full"), ("full/x", "larger than the bound")] {
        let error = harness.generate(for_adapter(id, request("a", 1))).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        let too_large = matches!(error, Error::AdapterTooLarge { .. });
        let no_space = matches!(error, Error::AdapterNoSpace { .. });
        assert_eq!((too_large, no_space), (id == "large/x", id == "full/x"), "{error}");
    }
}

/// A client that leaves while its adapter is staged leaves a reservation behind; those who wait for the room need no
/// other event to go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_staging_that_nobody_picks_up_wakes_those_who_wait_for_its_room() {
    let config = SimConfig { adapter_bytes: 100, stage_time: Duration::from_millis(200), ..sim() };
    let harness = Harness::with(config, &["--adapter-host-bytes", "100", "--max-adapter-bytes", "100"]).await;
    let mut leaves = Box::pin(harness.generate(for_adapter("known/left", request("a", 1))));
    while Control::count(&harness.sim().control().stagings) == 0 {
        let _ = tokio::time::timeout(Duration::from_millis(5), &mut leaves).await;
    }
    drop(leaves);
    let output = harness.generate(for_adapter("known/next", request("a", 3))).await.unwrap();
    assert_eq!(output.ids(), harness.expected("a", Some("known/next"), 3));
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_forgotten_after_a_while() {
    let harness = Harness::with(sim(), &["--adapter-failure-ttl", "0.2"]).await;
    for _ in 0..2 {
        harness.generate(for_adapter("down/x", request("a", 1))).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(Control::count(&harness.sim().control().fetches), 2);
}

/// Who waits for a flight hears how it ended, though its failure is not to be remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_is_not_remembered_is_told() {
    let harness = Harness::with(sim(), &["--adapter-failure-ttl", "0"]).await;
    for id in ["nowhere/x", "unloadable/x"] {
        for _ in 0..2 {
            let error = harness.generate(for_adapter(id, request("a", 1))).await.unwrap_err();
            let right = matches!(error, Error::AdapterNotFound { .. } | Error::AdapterInvalid { .. });
            assert!(right, "{id}: {error}");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    assert_eq!(Control::count(&harness.sim().control().fetches), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_source_delays_only_those_who_asked() {
    let config = SimConfig { fetch_time: Duration::from_secs(20), ..sim() };
    let harness = Harness::with(config, &["--adapter-load-timeout", "2"]).await;
    let mut asked = Box::pin(harness.generate(for_adapter("known/slow", request("a", 1))));
    assert!(futures::poll!(&mut asked).is_pending());
    harness.generate(request("base", 5)).await.unwrap();
    assert!(futures::poll!(&mut asked).is_pending(), "the base model waited for it");
    let error = asked.await.unwrap_err();
    assert!(matches!(error, Error::AdapterTimeout { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_adapters_leave_room_for_others() {
    let config = SimConfig { fetch_time: Duration::from_secs(20), ..sim() };
    let flags = ["--max-concurrent-requests", "10", "--adapter-load-timeout", "2"];
    let harness = Harness::with(config, &flags).await;
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let infer = harness.state.infer.clone();
            tokio::spawn(
                async move { infer.generate(for_adapter("known/slow", request("a", 1))).await.err() },
            )
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    harness.generate(request("base", 5)).await.unwrap();
    let mut errors: Vec<_> = join_all(asked).await.into_iter().map(|error| error.unwrap().unwrap()).collect();
    errors.retain(|error| matches!(error, Error::Overloaded { .. }));
    assert_eq!(errors.len(), 2, "eight of ten may wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_memory_is_kept_and_outputs_stay_right() {
    // Room for three adapters in host memory, two on the device.
    let config = SimConfig { adapter_bytes: 100, adapter_budget: 200, ..sim() };
    let flags = ["--adapter-host-bytes", "300", "--max-adapter-bytes", "200", "--max-active-adapters", "2"];
    let harness = Harness::with(config, &flags).await;
    let jobs = (0..90).map(|index| {
        let harness = &harness;
        async move {
            let adapter = format!("known/{}", index % 9);
            let prompt = format!("prompt {index}");
            let output = harness.generate(for_adapter(&adapter, request(&prompt, 4))).await.unwrap();
            assert_eq!(output.ids(), harness.expected(&prompt, Some(&adapter), 4));
        }
    });
    futures::stream::iter(jobs).buffer_unordered(12).collect::<Vec<_>>().await;
    harness.wait_idle().await;
    let stats = harness.state.registry.stats();
    assert!(stats.host_bytes <= 300 && stats.staged <= 3, "{stats:?}");
    assert!(Control::count(&harness.sim().control().drops) > 0);
    assert_eq!(harness.violations(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_lost_is_fetched_again() {
    let mut harness = Harness::new().await;
    let asked = || for_adapter("known/a", request("a", 3));
    harness.generate(asked()).await.unwrap();
    harness.sim_config.store.wipe();
    harness.kill(0);
    harness.wait_readiness(Readiness::ShardLost).await;
    harness.revive(0);
    harness.wait_ready().await;
    let output = harness.generate(asked()).await.unwrap();
    assert_eq!(output.ids(), harness.expected("a", Some("known/a"), 3));
    assert_eq!(Control::count(&harness.sim().control().fetches), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_fit_is_refused() {
    let config = SimConfig { adapter_bytes: 100, adapter_budget: 50, ..sim() };
    let harness = Harness::with(config, &[]).await;
    let error = harness.generate(for_adapter("known/x", request("a", 1))).await.unwrap_err();
    assert!(matches!(&error, Error::AdapterTooLarge { message, .. } if message.contains("100")), "{error}");
    let without_slots = Harness::with(sim(), &["--max-active-adapters", "0"]).await;
    let error = without_slots.generate(for_adapter("known/x", request("a", 1))).await.unwrap_err();
    assert!(error.to_string().contains("(--max-active-adapters)"), "{error}");

    let config = SimConfig { adapter_bytes: 100, ..sim() };
    let harness = Harness::with(config, &["--max-adapter-bytes", "99"]).await;
    let error = harness.generate(for_adapter("known/x", request("a", 1))).await.unwrap_err();
    assert!(matches!(&error, Error::AdapterTooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_names_do_not_grow_memory() {
    let harness = Harness::with(sim(), &["--max-adapter-names", "64"]).await;
    harness.generate(for_adapter("known/before", request("a", 1))).await.unwrap();
    for index in 0..300 {
        let error =
            harness.generate(for_adapter(&format!("nowhere/{index}"), request("a", 1))).await.unwrap_err();
        assert!(matches!(error, Error::AdapterNotFound { .. }), "{error}");
    }
    // Nor do they keep out those that exist.
    for id in ["known/before", "known/after"] {
        harness.generate(for_adapter(id, request("a", 1))).await.unwrap();
    }
    assert!(harness.state.registry.stats().names <= 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_adapters_are_served_than_names_are_kept() {
    let flags =
        ["--max-adapter-names", "4", "--adapter-host-bytes", "2097152", "--max-adapter-bytes", "1048576"];
    let harness = Harness::with(sim(), &flags).await;
    for index in [0, 1, 2, 3, 4, 5, 6, 7, 0] {
        harness.serves(&[&format!("known/{index}")]).await;
    }
    assert_eq!(harness.state.registry.list().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn preloaded_adapters_are_there_at_once() {
    let harness = Harness::with(sim(), &["--preloaded-adapter-ids", "known/a,known/b"]).await;
    assert_eq!(harness.state.registry.stats().staged, 2);
    let harness = Harness::starting(sim(), &["--preloaded-adapter-ids", "nowhere/a"], 1);
    tokio::time::timeout(Duration::from_secs(10), harness.driving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_name_what_is_resident() {
    let harness = Harness::new().await;
    harness.generate(for_adapter("known/a", request("a b", 3))).await.unwrap();
    harness.generate(request("a b", 3)).await.unwrap();
    harness.wait_idle().await;
    let registry = &harness.state.registry;
    let text = harness.state.metrics.encode(registry.stats(), registry.names());
    for line in [
        "lorikeet_generated_tokens_total{adapter=\"known/a\"} 3",
        "lorikeet_generated_tokens_total{adapter=\"(base)\"} 3",
        "lorikeet_requests_finished_total{adapter=\"known/a\",finish_reason=\"length\"} 1",
        "lorikeet_time_to_first_token_seconds_count{adapter=\"known/a\"} 1",
        "lorikeet_running_sequences 0",
        "lorikeet_adapter_load_seconds_count{tier=\"store\"} 1",
        "vllm:generation_tokens_total{model_name=\"sim\"} 6",
        "vllm:num_requests_running{model_name=\"sim\"} 0",
        "vllm:request_prompt_tokens_count{model_name=\"sim\"} 2",
        "vllm:request_success_total{model_name=\"sim\",finished_reason=\"length\"} 2",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} in\n{text}");
    }
    let info: Vec<_> = text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{")).collect();
    assert_eq!(info.len(), 1);
    assert!(
        info[0].contains("max_lora=\"128\",running_lora_adapters=\"known/a\",waiting_lora_adapters=\"\"")
    );
}
