//! A group of shards on several machines: rank 0 tells where the others are, each machine has its store.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use std::{path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

use common::{Harness, collect, for_adapter, request, sim, start_sim, write_tokenizer};
use lorikeet_bench::sim::{SimConfig, SimShard, Store};
use lorikeet_router::{error::Error, readiness::Readiness};

const TOKEN: &str = "of-this-group";
const ADAPTERS: [&str; 2] = ["known/a", "known/b"];

/// Rank 2 of 3, alone on its machine.
fn other_machine(store: Store, token: &str) -> (SimShard, String) {
    let place = SimConfig { rank: 2, world_size: 3, local_rank: 0, token: token.into(), store, ..slow() };
    let (shard, address) = SimShard::start_apart(place).unwrap();
    (shard, address.to_string())
}

fn slow() -> SimConfig {
    SimConfig { step_time: Duration::from_millis(5), ..sim() }
}

/// Ranks 0 and 1 beside the router, with one store.
fn this_machine(directory: &Path, rank_2: &str, store: &Store) -> impl Iterator<Item = Option<SimShard>> {
    let start = |(rank, endpoints)| {
        let place = SimConfig { rank, world_size: 3, local_rank: rank, endpoints, ..slow() };
        Some(start_sim(directory, SimConfig { token: TOKEN.into(), store: store.clone(), ..place }))
    };
    let told = vec![String::new(), String::new(), rank_2.to_owned()];
    [(0, told), (1, Vec::new())].into_iter().map(start)
}

fn started(rank_2: (SimShard, String)) -> Harness {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    let store = Store::default();
    let mut sims: Vec<_> = this_machine(directory.path(), &rank_2.1, &store).collect();
    sims.push(Some(rank_2.0));
    Harness::over(directory, sims, SimConfig { store, ..slow() }, &[])
}

/// The whole group starts again, and rank 2 finds another port.
async fn restarted(harness: &mut Harness) {
    let (shard, address) = other_machine(Store::default(), TOKEN);
    let here: Vec<_> = this_machine(harness.directory.path(), &address, &harness.sim_config.store).collect();
    harness.sims = here;
    harness.sims.push(Some(shard));
    harness.wait_ready().await;
    harness.serves(&ADAPTERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_reach_every_machine_and_each_has_its_own_store() {
    let harness = started(other_machine(Store::default(), TOKEN));
    harness.wait_ready().await;
    harness.serves(&ADAPTERS).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let controls: Vec<_> = harness.sims.iter().flatten().map(SimShard::control).collect();
    let counts =
        |of: fn(&lorikeet_bench::sim::Control) -> u64| controls.iter().map(|c| of(c)).collect::<Vec<_>>();
    let steps = counts(|control| control.steps.load(Relaxed));
    assert!(steps[0] > 0 && steps.iter().all(|count| *count == steps[0]), "{steps:?}");
    assert_eq!(counts(|control| control.fetches.load(Relaxed)), [2, 0, 2], "once on each machine");
    assert_eq!(counts(|control| control.stagings.load(Relaxed)), [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_whose_files_differ_between_machines_is_refused() {
    let harness = started(other_machine(Store::default(), TOKEN));
    harness.wait_ready().await;
    let asked = for_adapter("differing/a", request("a", 1));
    let Error::AdapterInvalid { message, .. } = harness.generate(asked).await.unwrap_err() else { panic!() };
    for part in ["differ between machines", "rank 0 has ", "rank 2 has ", "--adapter-root"] {
        assert!(message.contains(part), "{message} lacks {part}");
    }
    harness.serves(&ADAPTERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_machine_is_asked_for_again_where_it_is_then() {
    let mut harness = started(other_machine(Store::default(), TOKEN));
    harness.wait_ready().await;
    let running = harness.state.infer.generate(request("running", 2000)).await.unwrap();
    harness.sims[2] = None;
    harness.wait_readiness(Readiness::ShardLost).await;
    assert_eq!(collect(running).await.unwrap_err(), Error::ShardLost);
    restarted(&mut harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_another_group_is_not_driven() {
    let stranger = other_machine(Store::default(), "of another group");
    let mut harness = started(stranger);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(*harness.state.readiness.borrow(), Readiness::Starting);
    restarted(&mut harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_nobody_tells_of_stops_the_start() {
    let harness = started((other_machine(Store::default(), TOKEN).0, String::new()));
    tokio::time::timeout(Duration::from_secs(10), harness.driving).await.unwrap().unwrap();
}
