//! Shards that die, freeze or answer nonsense: everyone is told, nobody is served wrongly, service comes back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use common::{Harness, collect, for_adapter, request, sim};
use futures::future::join_all;
use lorikeet_bench::sim::{Control, SimConfig};
use lorikeet_router::{error::Error, infer::Generation, readiness::Readiness};

fn slow() -> SimConfig {
    SimConfig { step_time: Duration::from_millis(5), ..sim() }
}

async fn running(harness: &Harness, count: usize) -> Vec<Generation> {
    let started = (0..count).map(|index| async move {
        let asked = request(&format!("running {index}"), 2000);
        let asked = if index % 2 == 0 { asked } else { for_adapter("known/a", asked) };
        harness.state.infer.generate(asked).await.unwrap()
    });
    join_all(started).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_a_dead_shard_was_loading_has_not_failed() {
    let config = SimConfig { fetch_time: Duration::from_millis(300), ..sim() };
    let mut harness = Harness::with(config, &[]).await;
    let infer = harness.state.infer.clone();
    let waiting =
        tokio::spawn(async move { infer.generate(for_adapter("known/a", request("load", 1))).await.err() });
    flight_begins(&harness).await;
    harness.kill(0);
    assert_eq!(waiting.await.unwrap(), Some(Error::ShardLost));
    harness.revive(0);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
}

async fn flight_begins(harness: &Harness) {
    while harness.state.registry.stats().flights == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_comes_back_to_itself_keeps_no_adapter_that_nobody_counts() {
    let config = SimConfig { adapter_bytes: 100, ..sim() };
    let harness = Harness::with(config, &["--adapter-host-bytes", "300", "--max-adapter-bytes", "100"]).await;
    for round in 0..3 {
        for index in 0..3 {
            harness.serves(&[&format!("known/{round}-{index}")]).await;
        }
        let held = Control::count(&harness.sim().control().staged);
        assert_eq!(held, 3, "in round {round}, with room for three");
        harness.sim().control().freeze(true);
        harness.wait_readiness(Readiness::ShardLost).await;
        harness.sim().control().freeze(false);
        harness.wait_ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_from_before_the_loss_takes_nothing_away_after_it() {
    let flags = ["--adapter-load-timeout", "2", "--max-active-adapters", "1"];
    let harness = Harness::with(sim(), &flags).await;
    let control = harness.sim().control();
    control.hang_staging.store(true, Relaxed);
    let infer = harness.state.infer.clone();
    let first =
        tokio::spawn(async move { infer.generate(for_adapter("known/a", request("load", 1))).await.err() });
    while Control::count(&control.stagings) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The stream is lost, the process is not.
    control.wrong_ids.store(true, Relaxed);
    harness.generate(request("x", 1)).await.unwrap_err();
    control.wrong_ids.store(false, Relaxed);
    assert_eq!(first.await.unwrap(), Some(Error::ShardLost));
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((harness.state.registry.stats().staged, Control::count(&control.staged)), (1, 1));
    harness.serves(&["known/b", "known/a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_dies_while_it_preloads_is_waited_for() {
    let config = SimConfig { fetch_time: Duration::from_millis(500), ..sim() };
    let mut harness = Harness::starting(config, &["--preloaded-adapter-ids", "known/a"], 1);
    flight_begins(&harness).await;
    harness.kill(0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    harness.revive(0);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
    // And when it had served before.
    harness.sim_config.store.wipe();
    harness.kill(0);
    harness.wait_readiness(Readiness::ShardLost).await;
    harness.revive(0);
    flight_begins(&harness).await;
    harness.kill(0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    harness.revive(0);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_dead_shard_fail_at_once_and_service_comes_back() {
    let mut harness = Harness::with(slow(), &["--max-batch-size", "4"]).await;
    for _ in 0..3 {
        let running = running(&harness, 8).await;
        let died = Instant::now();
        harness.kill(0);
        harness.wait_readiness(Readiness::ShardLost).await;
        assert!(died.elapsed() < Duration::from_secs(1));
        for generation in running {
            assert_eq!(collect(generation).await.unwrap_err(), Error::ShardLost);
        }
        assert!(died.elapsed() < Duration::from_secs(2));
        assert_eq!(harness.state.infer.generate(request("now", 1)).await.err().unwrap(), Error::NotReady);
        harness.revive(0);
        harness.wait_ready().await;
        harness.serves(&["known/a"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_shard_counts_as_lost_within_five_seconds() {
    let harness = Harness::with(slow(), &[]).await;
    let running = running(&harness, 4).await;
    let frozen = Instant::now();
    harness.sim().control().freeze(true);
    harness.wait_readiness(Readiness::ShardLost).await;
    assert!(frozen.elapsed() < Duration::from_secs(5));
    for generation in running {
        assert_eq!(collect(generation).await.unwrap_err(), Error::ShardLost);
    }
    assert!(frozen.elapsed() < Duration::from_secs(5));
    harness.sim().control().freeze(false);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_never_answered_is_noticed() {
    // The shard answers pings, and takes far longer for a step than is allowed.
    let config = SimConfig { step_time: Duration::from_secs(30), ..sim() };
    let harness = Harness::with(config, &["--step-timeout", "0.5"]).await;
    let started = Instant::now();
    assert_eq!(harness.generate(request("a", 1)).await.unwrap_err(), Error::ShardLost);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_fires_while_the_shard_is_frozen() {
    let harness = Harness::with(slow(), &["--request-timeout", "0.5"]).await;
    harness.sim().control().freeze(true);
    let started = Instant::now();
    assert_eq!(harness.generate(request("a", 100)).await.unwrap_err(), Error::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_step_is_never_applied() {
    let harness = Harness::with(slow(), &[]).await;
    let running = running(&harness, 3).await;
    harness.sim().control().wrong_ids.store(true, Relaxed);
    for generation in running {
        assert_eq!(collect(generation).await.unwrap_err(), Error::ShardLost);
    }
    harness.sim().control().wrong_ids.store(false, Relaxed);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_rank_of_two_is_the_whole_group() {
    let mut harness = Harness::starting(slow(), &[], 2);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
    let steps = |rank: usize| harness.sims[rank].as_ref().unwrap().control().steps.load(Relaxed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(steps(0), steps(1));

    let running = running(&harness, 4).await;
    harness.kill(1);
    for generation in running {
        assert_eq!(collect(generation).await.unwrap_err(), Error::ShardLost);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(*harness.state.readiness.borrow(), Readiness::ShardLost);
    harness.revive(1);
    harness.wait_ready().await;
    harness.serves(&["known/a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_fails_on_one_rank_alone_is_no_answer() {
    let harness = Harness::starting(slow(), &[], 2);
    harness.wait_ready().await;
    let forgetful = |rank: usize| &harness.sims[rank].as_ref().unwrap().control().forgetful;
    forgetful(1).store(true, Relaxed);
    let asked = || for_adapter("known/a", request("a", 50));
    assert_eq!(harness.generate(asked()).await.unwrap_err(), Error::ShardLost);
    // On all of them it is the adapter's failure, and nobody else's.
    forgetful(0).store(true, Relaxed);
    harness.wait_ready().await;
    let others = running(&harness, 1).await;
    assert!(matches!(harness.generate(asked()).await.unwrap_err(), Error::Generation(_)));
    for generation in others {
        assert_eq!(collect(generation).await.unwrap().tokens.len(), 2000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_row_fails_alone() {
    let harness = Harness::new().await;
    let poison = harness.tokenizer().encode("~", false).unwrap()[0];
    harness.sim().control().poison.store(poison, Relaxed);
    let jobs = (0..16).map(|index| {
        let harness = &harness;
        async move {
            let prompt = format!("{}{index}", if index == 7 { "~" } else { "a" });
            (index, harness.generate(request(&prompt, 2)).await, harness.expected(&prompt, None, 2))
        }
    });
    for (index, outcome, expected) in join_all(jobs).await {
        // The first token may be the poison itself.
        if index == 7 {
            assert!(matches!(outcome.unwrap_err(), Error::Numeric(_)));
        } else if expected[0] != poison {
            assert_eq!(outcome.unwrap().ids(), expected);
        }
    }
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_at_the_wrong_path_stops_the_start() {
    let mut harness = Harness::starting(sim(), &[], 1);
    // The rank that answers says it is the second of two.
    harness.kill(0);
    let directory = harness.directory.path().join("shard-0");
    let wrong = SimConfig { rank: 1, world_size: 2, ..sim() };
    let _sim = lorikeet_bench::sim::SimShard::start(&directory, wrong).unwrap();
    tokio::time::timeout(Duration::from_secs(10), harness.driving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_died_is_noticed() {
    let harness = Harness::with(slow(), &[]).await;
    let running = running(&harness, 2).await;
    harness.driving.abort();
    for generation in running {
        assert_eq!(collect(generation).await.unwrap_err(), Error::Incomplete);
    }
    assert_eq!(harness.state.infer.generate(request("a", 1)).await.err().unwrap(), Error::NotReady);
    tokio::time::timeout(Duration::from_secs(10), harness.driver.stuck()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_with_nothing_to_do_is_not_stuck() {
    let harness = Harness::new().await;
    tokio::time::timeout(Duration::from_secs(8), harness.driver.stuck()).await.unwrap_err();
}
