//! The engine under anything its caller and the shards may do: every request says what it would say alone, and every
//! bound is kept. The checks are in `sim`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

mod sim;

use std::time::Duration;

use lorikeet_engine::{EngineConfig, FailureReason};
use proptest::prelude::*;
use sim::{Driver, Faults, Job, Outcome, VOCABULARY};

/// More than some engines have KV blocks: those that nobody asks for are forgotten.
const ADAPTERS: usize = 24;

#[derive(Clone, Debug)]
enum Operation {
    Submit(Job, Option<u64>),
    Cancel(prop::sample::Index),
    Plan,
    Answer,
    Advance(u64),
    Fault(Faults),
    LoseShard,
    Register(usize),
}

fn configs() -> impl Strategy<Value = EngineConfig> {
    (
        (1..5u32, 6..40u32, 1..7u32, 1..24u32, 1..4u32, 4..9u64),
        any::<bool>(),
        1..4usize,
        prop::bool::weighted(0.8),
    )
        .prop_map(|(sizes, synchronous_moves, max_steps_in_flight, prefix_cache)| {
            let (block_size, num_blocks, max_sequences, max_step_tokens, adapter_slots, adapter_bytes) =
                sizes;
            EngineConfig {
                block_size,
                num_blocks,
                max_sequences,
                max_step_tokens,
                adapter_slots,
                adapter_bytes,
                synchronous_moves,
                max_queued_requests: 20,
                max_queued_tokens: 400,
                max_steps_in_flight,
                prefix_cache,
            }
        })
}

fn adapter_bytes() -> Vec<u64> {
    (0..ADAPTERS).map(|adapter| [1, 2, 3, 4, 2][adapter % 5]).collect()
}

/// Prompts that share prefixes often: a prefix of one of three texts, then something of their own.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    (0..3u32, 0..30usize, prop::collection::vec(0..VOCABULARY, 1..6)).prop_map(|(text, shared, own)| {
        let shared = (0..shared as u32).map(|i| (i * (text + 2) + text) % VOCABULARY);
        shared.chain(own).collect()
    })
}

fn jobs() -> impl Strategy<Value = Job> {
    (
        (0..2u32, prop::option::weighted(0.7, 0..ADAPTERS), prompts(), 1..16u32),
        (any::<bool>(), prop::bool::weighted(0.2), prop::option::weighted(0.15, 0..2u32), 0.2..4f32),
    )
        .prop_map(
            |((tenant, adapter, prompt, max_new_tokens), (stops, penalty, prompt_logprobs, weight))| Job {
                tenant,
                adapter,
                prompt,
                max_new_tokens,
                stops,
                penalty,
                prompt_logprobs,
                weight,
                ..Job::default()
            },
        )
}

fn operations() -> impl Strategy<Value = Operation> {
    let faults = (prop::option::of(0..8usize), prop::bool::weighted(0.2), 0..3u64);
    prop_oneof![
        6 => (jobs(), prop::option::weighted(0.1, 1..500u64)).prop_map(|(job, deadline)| Operation::Submit(job, deadline)),
        1 => any::<prop::sample::Index>().prop_map(Operation::Cancel),
        10 => Just(Operation::Plan),
        9 => Just(Operation::Answer),
        2 => (1..3000u64).prop_map(Operation::Advance),
        2 => faults.prop_map(|(row, moves, delay)| Operation::Fault(Faults { row, moves, delay })),
        1 => (0..ADAPTERS).prop_map(Operation::Register),
    ]
}

fn run(driver: &mut Driver, operation: Operation) {
    match operation {
        Operation::Submit(mut job, deadline) => {
            job.deadline = deadline.map(|millis| driver.now + Duration::from_millis(millis));
            let _ = driver.submit(job);
        }
        Operation::Cancel(index) => {
            let live = driver.live();
            if !live.is_empty() {
                driver.cancel(*index.get(&live));
            }
        }
        Operation::Plan => drop(driver.plan()),
        Operation::Answer => drop(driver.answer()),
        Operation::Advance(millis) => driver.now += Duration::from_millis(millis),
        Operation::Fault(faults) => driver.faults = faults,
        Operation::LoseShard => driver.lose_shard(),
        Operation::Register(adapter) => drop(driver.register(adapter)),
    }
}

proptest! {
    #[test]
    fn anything_goes(
        config in configs(),
        operations in prop::collection::vec(prop_oneof![40 => operations(), 1 => Just(Operation::LoseShard)], 1..160),
    ) {
        let mut driver = Driver::new(config, &adapter_bytes());
        for operation in operations {
            run(&mut driver, operation);
        }
        driver.drain(20_000);
        let allowed = |outcome: &Outcome| !matches!(outcome, Outcome::Failed(FailureReason::Row { code, .. }) if code == "adapter_missing");
        prop_assert!(driver.outcomes.values().all(allowed), "a sequence ran without its adapter: {:?}", driver.outcomes);
    }

    /// Without faults, deadlines and cancellations every request is served to its end.
    #[test]
    fn everybody_is_served(config in configs(), jobs in prop::collection::vec(jobs(), 1..40)) {
        let mut driver = Driver::new(config, &adapter_bytes());
        for job in jobs {
            let _ = driver.submit(job);
            driver.plan();
        }
        driver.drain(20_000);
        prop_assert!(driver.outcomes.values().all(|outcome| matches!(outcome, Outcome::Finished(_))));
    }
}
