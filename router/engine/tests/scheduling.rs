//! Who runs when: batching, fairness, preemption, reuse of prefixes, limits. `sim` checks what is said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

mod sim;

use std::time::Duration;

use lorikeet_engine::{
    Engine, EngineConfig, Event, FailureReason, FinishReason, RequestId, SubmitError, UnexpectedResult,
};
use lorikeet_proto::v1::StepResult;
use sim::{Driver, Faults, Job, Outcome};

fn config() -> EngineConfig {
    EngineConfig { max_step_tokens: 32, ..sim::config() }
}

/// A prompt of distinct content.
fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i + seed * 7 + i * seed) % sim::VOCABULARY).collect()
}

fn job(seed: u32, length: u32, max_new_tokens: u32) -> Job {
    Job { prompt: prompt(seed, length), max_new_tokens, ..Job::default() }
}

fn step(driver: &mut Driver) {
    driver.plan();
    driver.answer();
}

#[test]
fn two_steps_are_in_flight_and_no_token_is_planned_beyond_the_limit() {
    let mut driver = Driver::new(config(), &[]);
    driver.submit(job(1, 5, 3)).unwrap();
    assert!(driver.plan(), "the prompt");
    assert!(driver.plan(), "the second token, before the first is known");
    assert!(!driver.plan(), "two are unanswered");
    driver.answer();
    assert!(driver.plan(), "the third token");
    driver.answer();
    assert!(!driver.plan(), "there is no fourth");
    driver.drain(10);
}

#[test]
fn a_stop_token_ends_the_sequence_although_the_next_row_is_in_flight() {
    let ended = (1..60).any(|seed| {
        let mut driver = Driver::new(config(), &[]);
        let id = driver.complete(Job { stops: true, ..job(seed, 6, 40) });
        driver.outcomes[&id] == Outcome::Finished(FinishReason::StopToken) && driver.output[&id].len() < 40
    });
    assert!(ended);
}

#[test]
fn zero_new_tokens_count_as_one() {
    let mut driver = Driver::new(config(), &[]);
    let request = Job { id: 1, ..job(1, 3, 1) };
    let mut request = request.request(None);
    request.max_new_tokens = 0;
    driver.engine.submit(request, Duration::ZERO).unwrap();
    let step = driver.engine.plan(Duration::ZERO, &mut Vec::new()).unwrap();
    assert_eq!(step.prefill.unwrap().sample, [true]);
    assert_eq!(driver.engine.plan(Duration::ZERO, &mut Vec::new()), None);
}

#[test]
fn a_long_prompt_does_not_hold_up_a_short_one() {
    let mut driver = Driver::new(config(), &[]);
    let long = driver.submit(Job { tenant: 1, ..job(1, 600, 1) }).unwrap();
    step(&mut driver);
    let short = driver.submit(Job { tenant: 2, ..job(2, 20, 1) }).unwrap();
    for _ in 0..3 {
        step(&mut driver);
    }
    assert_eq!(driver.outcomes.get(&short), Some(&Outcome::Finished(FinishReason::Length)));
    assert_eq!(driver.outcomes.get(&long), None);
    driver.drain(100);
}

#[test]
fn a_prompt_that_has_begun_ends_before_newcomers_begin() {
    let mut driver = Driver::new(config(), &[]);
    // A step has room for one prompt and a part of another.
    let ids: Vec<_> = (0..8).map(|i| driver.submit(Job { tenant: i, ..job(i, 20, 1) }).unwrap()).collect();
    let mut ended = Vec::new();
    for _ in 0..20 {
        step(&mut driver);
        let mut now: Vec<_> = driver.outcomes.keys().copied().filter(|id| !ended.contains(id)).collect();
        now.sort_unstable();
        ended.extend(now);
    }
    assert_eq!(ended, ids);
}

#[test]
fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let mut driver = Driver::new(config(), &[]);
    for seed in 0..200 {
        driver.submit(Job { tenant: 1, ..job(seed, 16, 8) }).unwrap();
    }
    for _ in 0..20 {
        step(&mut driver);
    }
    let victim = driver.submit(Job { tenant: 2, ..job(999, 16, 8) }).unwrap();
    let before = driver.steps;
    driver.drain(10_000);
    assert!(driver.first_step[&victim] - before < 20, "waited {} steps", driver.first_step[&victim] - before);
}

#[test]
fn backlogged_queues_are_served_by_weight() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 4, prefix_cache: false, ..config() }, &[]);
    for seed in 0..300 {
        driver.submit(Job { tenant: 1, weight: 1.0, ..job(seed, 8, 8) }).unwrap();
        driver.submit(Job { tenant: 2, weight: 3.0, ..job(seed, 8, 8) }).unwrap();
    }
    for _ in 0..300 {
        step(&mut driver);
    }
    let served = |tenant| {
        driver
            .output
            .iter()
            .filter(|(id, _)| driver.jobs[id].tenant == tenant)
            .map(|(_, o)| o.len())
            .sum::<usize>()
    };
    let ratio = served(2) as f64 / served(1) as f64;
    assert!((2.7..3.3).contains(&ratio), "ratio {ratio}");
}

#[test]
fn idleness_earns_no_credit() {
    // Those who were there before were waited for all the time, or had all that they asked for.
    for (jobs, tokens) in [(300, 8), (2, 400)] {
        let config = EngineConfig { max_sequences: 2, prefix_cache: false, ..config() };
        let mut driver = Driver::new(config, &[]);
        let submit = |driver: &mut Driver, tenant, seed, tokens| {
            driver.submit(Job { tenant, ..job(seed, 8, tokens) }).unwrap();
        };
        (0..jobs).for_each(|seed| submit(&mut driver, 1, seed, tokens));
        (0..450).for_each(|_| step(&mut driver));
        // A newcomer that was never served gets its share from now on, not what it could have had.
        let started = |driver: &Driver, tenant| {
            driver.started.keys().filter(|id| driver.jobs[id].tenant == tenant).count()
        };
        let before = started(&driver, 1);
        (0..100).for_each(|seed| [2, 1].iter().for_each(|tenant| submit(&mut driver, *tenant, seed, 8)));
        (0..100).for_each(|_| step(&mut driver));
        let (old, new) = (started(&driver, 1) - before, started(&driver, 2));
        assert!(new.abs_diff(old) <= 2, "{old} of the old, {new} of the new");
    }
}

#[test]
fn within_a_queue_the_first_is_first() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 1, ..config() }, &[]);
    let ids: Vec<_> = (0..5).map(|seed| driver.submit(job(seed, 9, 2)).unwrap()).collect();
    driver.drain(100);
    let order: Vec<_> = ids.iter().map(|id| driver.first_step[id]).collect();
    assert!(order.is_sorted());
}

#[test]
fn a_cached_prompt_computes_its_last_token_only() {
    let mut driver = Driver::new(config(), &[]);
    driver.complete(job(1, 17, 1));
    let before = driver.tokens_computed();
    let again = driver.complete(job(1, 17, 1));
    assert_eq!(driver.started[&again], 16);
    assert_eq!(driver.tokens_computed() - before, 1);
    // All of a prompt of whole blocks is cached: its last block is computed again.
    let whole = driver.complete(job(1, 16, 1));
    assert_eq!(driver.started[&whole], 12);
    let stats = driver.engine.stats();
    assert_eq!((stats.prefix_queries_tokens, stats.prefix_hits_tokens), (50, 28));
}

#[test]
fn output_is_reused_by_the_next_turn() {
    let mut driver = Driver::new(config(), &[]);
    let first = driver.complete(job(1, 9, 16));
    let history = [&driver.jobs[&first].prompt[..], &driver.output[&first][..]].concat();
    let turn = driver.complete(Job { prompt: [&history[..], &[1, 2, 3]].concat(), ..job(1, 0, 2) });
    assert_eq!(driver.started[&turn], 24, "all but the last sampled token was computed");
}

#[test]
fn a_prefix_is_shared_within_tenant_and_adapter_only() {
    let mut driver = Driver::new(config(), &[1, 1]);
    driver.complete(Job { tenant: 1, adapter: Some(0), ..job(1, 17, 1) });
    for (tenant, adapter, cached) in [(2, Some(0), 0), (1, Some(1), 0), (1, None, 0), (1, Some(0), 16)] {
        let id = driver.complete(Job { tenant, adapter, ..job(1, 17, 1) });
        assert_eq!(driver.started[&id], cached, "tenant {tenant}, adapter {adapter:?}");
    }
}

#[test]
fn a_prefix_is_shared_once_its_step_is_answered_not_before() {
    let mut driver = Driver::new(config(), &[]);
    driver.submit(job(1, 17, 4)).unwrap();
    driver.plan();
    let early = driver.submit(job(1, 17, 4)).unwrap();
    driver.plan();
    assert_eq!(driver.started[&early], 0);
    driver.answer();
    let late = driver.submit(job(1, 17, 4)).unwrap();
    driver.plan();
    assert_eq!(driver.started[&late], 16);
    driver.drain(100);
}

#[test]
fn prompt_logprobs_reuse_nothing() {
    let mut driver = Driver::new(config(), &[]);
    driver.complete(job(1, 50, 1));
    let id = driver.complete(Job { prompt_logprobs: Some(1), ..job(1, 50, 3) });
    assert_eq!(driver.started[&id], 0);
}

#[test]
fn when_blocks_run_out_the_youngest_is_preempted_and_says_the_same() {
    let config = EngineConfig { num_blocks: 10, prefix_cache: false, ..config() };
    for penalty in [false, true] {
        let mut driver = Driver::new(config.clone(), &[]);
        let ids: Vec<_> =
            (0..4).map(|seed| driver.submit(Job { penalty, ..job(seed, 5, 30) }).unwrap()).collect();
        driver.drain(2000);
        assert!(driver.engine.stats().preemptions > 0);
        assert!(ids.iter().all(|id| driver.output[id].len() == 30));
        assert_eq!(driver.finished, ids, "the older has the blocks of the younger");
    }
}

/// Without `sim`, which would take minutes for so many tokens.
#[test]
fn long_histories_do_not_make_a_step_that_no_shard_takes() {
    let (num_blocks, max_step_tokens, max_queued_tokens) = (1 << 20, 1 << 22, 1 << 22);
    let config = EngineConfig { block_size: 16, num_blocks, max_step_tokens, max_queued_tokens, ..config() };
    let mut engine = Engine::new(config);
    for id in 0..5 {
        let long = Job { id, penalty: true, prompt: vec![1; 300_000], ..Job::default() };
        engine.submit(long.request(None), Duration::ZERO).unwrap();
    }
    let mut admitted = || {
        let step = engine.plan(Duration::ZERO, &mut Vec::new()).unwrap();
        step.admissions.iter().map(|admission| admission.history.len()).collect::<Vec<_>>()
    };
    assert_eq!(admitted(), [300_000; 3]);
    assert_eq!(admitted(), [300_000; 2]);
}

#[test]
fn a_prompt_as_large_as_the_cache_is_served_among_small_ones() {
    let mut driver = Driver::new(EngineConfig { num_blocks: 32, ..config() }, &[]);
    for seed in 0..20 {
        driver.submit(Job { tenant: 1, ..job(seed, 8, 8) }).unwrap();
    }
    let large = driver.submit(Job { tenant: 2, ..job(77, 120, 8) }).unwrap();
    for seed in 20..60 {
        driver.submit(Job { tenant: 1, ..job(seed, 8, 8) }).unwrap();
    }
    driver.drain(10_000);
    let before = driver
        .first_step
        .iter()
        .filter(|(id, step)| **id > large && **step < driver.first_step[&large])
        .count();
    assert_eq!(before, 0, "the large one waits for blocks, not for those who came later");
}

#[test]
fn a_failed_row_fails_its_request_only() {
    let mut driver = Driver::new(config(), &[]);
    let ids: Vec<_> = (0..3).map(|seed| driver.submit(job(seed, 5, 6)).unwrap()).collect();
    step(&mut driver);
    driver.faults = Faults { row: Some(1), ..Faults::default() };
    driver.drain(100);
    let failed = |id: &&u64| matches!(driver.outcomes[*id], Outcome::Failed(FailureReason::Row { .. }));
    assert_eq!(ids.iter().filter(failed).count(), 1);
}

#[test]
fn a_deadline_counts_wherever_the_request_is() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 1, ..config() }, &[]);
    let deadline = Some(Duration::from_millis(50));
    let runs = driver.submit(Job { deadline, ..job(1, 5, 100) }).unwrap();
    let waits = driver.submit(Job { deadline, ..job(2, 5, 100) }).unwrap();
    driver.plan();
    driver.plan();
    assert_eq!(driver.engine.next_deadline(), deadline);
    driver.now = Duration::from_millis(50);
    driver.plan();
    assert_eq!(driver.outcomes[&runs], Outcome::Failed(FailureReason::DeadlineExceeded { queued: false }));
    assert_eq!(driver.outcomes[&waits], Outcome::Failed(FailureReason::DeadlineExceeded { queued: true }));
    driver.drain(10);
}

#[test]
fn a_cancelled_request_is_gone_with_the_next_step() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 2, ..config() }, &[]);
    let ids: Vec<_> = (0..3).map(|seed| driver.submit(job(seed, 40, 50)).unwrap()).collect();
    driver.plan();
    driver.plan();
    driver.cancel(ids[0]);
    driver.cancel(ids[2]);
    driver.cancel(12345);
    driver.answer();
    driver.plan();
    assert_eq!(driver.engine.stats().running_sequences + driver.engine.stats().queued_requests, 1);
    driver.drain(200);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let mut driver =
        Driver::new(EngineConfig { max_queued_requests: 3, max_queued_tokens: 100, ..config() }, &[9]);
    assert_eq!(driver.submit(job(0, 0, 1)), Err(SubmitError::Empty));
    assert_eq!(driver.submit(job(0, 1000, 25)), Err(SubmitError::NeverFits { given: 1025, limit: 1024 }));
    let too_large = Job { adapter: Some(0), ..job(0, 1, 1) };
    assert_eq!(driver.submit(too_large), Err(SubmitError::AdapterNeverFits { given: 9, limit: 4 }));
    driver.submit(job(0, 60, 1)).unwrap();
    assert_eq!(
        driver.submit(job(0, 41, 1)),
        Err(SubmitError::TooManyTokens { queued: 60, given: 41, limit: 100 })
    );
    driver.submit(job(1, 1, 1)).unwrap();
    driver.submit(job(2, 1, 1)).unwrap();
    assert_eq!(driver.submit(job(0, 1, 1)), Err(SubmitError::TooManyRequests { queued: 3 }));
    driver.drain(100);
}

#[test]
fn an_answer_to_another_step_is_refused() {
    let mut engine = Engine::new(config());
    let mut events = Vec::new();
    let result = |id| StepResult { id, ..StepResult::default() };
    let none = UnexpectedResult::Step { given: 1, expected: None };
    assert_eq!(engine.apply(&result(1), Duration::ZERO, &mut events), Err(none));
    engine.submit(Job { id: 7, ..job(1, 5, 2) }.request(None), Duration::ZERO).unwrap();
    let id = engine.plan(Duration::ZERO, &mut events).unwrap().id;
    let other = UnexpectedResult::Step { given: id + 1, expected: Some(id) };
    assert_eq!(engine.apply(&result(id + 1), Duration::ZERO, &mut events), Err(other));
    let rows = UnexpectedResult::Rows { step: id, expected: 1 };
    assert_eq!(engine.apply(&result(id), Duration::ZERO, &mut events), Err(rows));
    engine.shard_lost(&mut events);
    assert_eq!(events.last(), Some(&Event::Failed { id: RequestId(7), reason: FailureReason::ShardLost }));
    assert_eq!(engine.plan(Duration::ZERO, &mut events), None);
}

#[test]
fn a_flooded_queue_leaves_room_for_others() {
    let limits = EngineConfig { max_queued_requests: 90, max_queued_tokens: 900, ..config() };
    for length in [1, 20] {
        let mut driver = Driver::new(limits.clone(), &[1]);
        let flood = || Job { adapter: Some(0), ..job(0, length, 8) };
        let (mut served, mut refused) = (0, 0);
        for round in 0..400 {
            while driver.submit(flood()).is_ok() {}
            if round % 10 == 0 {
                match driver.submit(job(0, length, 8)) {
                    Ok(_) => served += 1,
                    Err(_) => refused += 1,
                }
            }
            driver.plan();
            driver.now += Duration::from_millis(20);
            driver.answer();
        }
        assert_eq!((served, refused), (40, 0), "prompts of {length} tokens");
        driver.drain(4000);
    }
}

#[test]
fn a_prompt_that_waits_alone_may_be_longer_than_the_queue() {
    let mut driver = Driver::new(EngineConfig { max_queued_tokens: 10, ..config() }, &[]);
    driver.submit(job(0, 40, 1)).unwrap();
    assert_eq!(
        driver.submit(job(0, 1, 1)),
        Err(SubmitError::TooManyTokens { queued: 40, given: 1, limit: 10 })
    );
    driver.drain(10);
    driver.submit(job(0, 40, 1)).unwrap();
    driver.drain(10);
}
