//! Which adapter gets a device slot, and who waits for it. `sim` checks slots, bytes and use.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

mod sim;

use std::time::Duration;

use lorikeet_engine::{EngineConfig, FailureReason, FinishReason};
use sim::{Driver, Faults, Job, Outcome, config, digest};

fn job(adapter: usize, max_new_tokens: u32) -> Job {
    Job { adapter: Some(adapter), prompt: vec![1, 2, 3], max_new_tokens, ..Job::default() }
}

fn step(driver: &mut Driver) {
    driver.plan();
    driver.now += Duration::from_millis(20);
    driver.answer();
}

const DONE: Option<&Outcome> = Some(&Outcome::Finished(FinishReason::Length));

#[test]
fn a_synchronous_move_is_used_by_its_own_step() {
    let mut driver = Driver::new(config(), &[1]);
    let id = driver.submit(job(0, 1)).unwrap();
    step(&mut driver);
    assert_eq!(driver.outcomes.get(&id), DONE);
}

#[test]
fn an_asynchronous_move_is_polled_for_and_delays_nobody_else() {
    let mut driver = Driver::new(EngineConfig { synchronous_moves: false, ..config() }, &[1]);
    driver.faults = Faults { delay: 5, ..Faults::default() };
    let cold = driver.submit(job(0, 1)).unwrap();
    step(&mut driver);
    let base = driver.submit(Job { adapter: None, ..job(0, 2) }).unwrap();
    step(&mut driver);
    step(&mut driver);
    assert_eq!(driver.outcomes.get(&base), DONE);
    assert_eq!(driver.outcomes.get(&cold), None);
    driver.drain(10);
    assert_eq!(driver.outcomes.get(&cold), DONE);
}

#[test]
fn the_least_recently_used_idle_adapter_gives_way() {
    let mut driver = Driver::new(config(), &[1, 1, 1]);
    for adapter in [0, 1, 0, 2] {
        driver.complete(job(adapter, 2));
    }
    assert_eq!(driver.engine.stats().resident_adapters.len(), 2);
    let resident = driver.engine.stats().resident_adapters;
    assert!([0, 2].iter().all(|adapter| resident.contains(&digest(*adapter).into())), "{resident:?}");
    assert_eq!((driver.engine.stats().adapter_loads, driver.engine.stats().adapter_evictions), (3, 1));
}

#[test]
fn an_adapter_that_does_not_fit_is_passed_by() {
    let mut driver = Driver::new(config(), &[3, 4, 1]);
    driver.submit(job(0, 60)).unwrap();
    step(&mut driver);
    let large = driver.submit(job(1, 1)).unwrap();
    let small = driver.submit(job(2, 1)).unwrap();
    step(&mut driver);
    assert_eq!(driver.outcomes.get(&small), DONE);
    assert_eq!(driver.outcomes.get(&large), None);
    driver.drain(200);
}

/// Adapters that always have work would keep their slots for ever.
#[test]
fn an_adapter_that_waits_too_long_gets_a_slot_of_a_busy_one() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 4, ..config() }, &[1, 1, 1]);
    let busy = |driver: &mut Driver| {
        for adapter in [0, 1] {
            driver.submit(job(adapter, 20)).unwrap();
        }
    };
    for _ in 0..10 {
        busy(&mut driver);
    }
    step(&mut driver);
    let waits = driver.submit(job(2, 1)).unwrap();
    let asked = driver.now;
    while !driver.outcomes.contains_key(&waits) {
        busy(&mut driver);
        step(&mut driver);
        assert!(driver.now < asked + Duration::from_secs(4), "starved");
    }
    assert!(driver.now > asked + Duration::from_secs(2), "its patience comes first");
    driver.drain(20_000);
}

/// One that needs the room of several is not starved by small ones that take each piece as it becomes free.
#[test]
fn a_large_adapter_is_not_starved_by_small_ones() {
    let mut driver =
        Driver::new(EngineConfig { adapter_slots: 4, max_sequences: 4, ..config() }, &[1, 1, 1, 1, 1, 1, 4]);
    let mut next = 0;
    let mut small = |driver: &mut Driver| {
        next += 1;
        driver.submit(job(next % 6, 20)).unwrap();
    };
    for _ in 0..20 {
        small(&mut driver);
    }
    step(&mut driver);
    let large = driver.submit(job(6, 1)).unwrap();
    let asked = driver.now;
    while !driver.outcomes.contains_key(&large) {
        if driver.engine.stats().queued_requests < 20 {
            small(&mut driver);
        }
        step(&mut driver);
        assert!(driver.now < asked + Duration::from_secs(6), "starved");
    }
    driver.drain(20_000);
}

#[test]
fn many_more_adapters_than_slots_are_all_served() {
    let mut driver = Driver::new(EngineConfig { max_sequences: 3, ..config() }, &[1; 40]);
    for round in 0..5 {
        for adapter in 0..40 {
            driver.submit(Job { tenant: round, ..job(adapter, 6) }).unwrap();
        }
    }
    driver.drain(20_000);
    assert!(driver.outcomes.values().all(|outcome| *outcome == Outcome::Finished(FinishReason::Length)));
}

#[test]
fn a_failed_move_fails_those_who_asked_for_it_only() {
    let mut driver = Driver::new(config(), &[1, 1]);
    driver.submit(job(0, 5)).unwrap();
    step(&mut driver);
    driver.faults = Faults { moves: true, ..Faults::default() };
    let asked = driver.submit(job(1, 5)).unwrap();
    driver.plan();
    let later = driver.submit(job(1, 5)).unwrap();
    driver.plan();
    driver.drain(100);
    assert!(matches!(driver.outcomes[&asked], Outcome::Failed(FailureReason::Adapter { .. })));
    assert_eq!(driver.outcomes.get(&later), DONE);
    assert_eq!(driver.outcomes.values().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count(), 1);
}

/// Ten failures, and the budget is what it was.
#[test]
fn failed_moves_give_back_their_room() {
    let mut driver = Driver::new(config(), &[4]);
    for _ in 0..10 {
        driver.faults = Faults { moves: true, ..Faults::default() };
        driver.submit(job(0, 1)).unwrap();
        driver.drain(10);
        assert_eq!(
            (driver.engine.stats().adapter_slots_used, driver.engine.stats().adapter_bytes_used),
            (0, 0)
        );
    }
    let id = driver.complete(job(0, 1));
    assert_eq!(driver.outcomes.get(&id), DONE);
}

/// As many are known as can have a cached block, beside those in slots: whatever else was asked for leaves nothing.
#[test]
fn adapters_that_nobody_asks_for_are_forgotten() {
    let many = 600;
    let mut driver = Driver::new(config(), &vec![1; many]);
    let used = driver.submit(job(0, 2)).unwrap();
    let queued = driver.register(0);
    for adapter in 1..many {
        driver.register(adapter);
    }
    assert_eq!(driver.register(0), queued, "it is in use");
    assert_eq!(driver.engine.stats().adapters_known, 256 + 1);
    driver.drain(10);
    assert_eq!(driver.outcomes.get(&used), DONE);
    assert_eq!(driver.register(0), queued, "it is in a slot");
    for adapter in 1..many {
        driver.complete(job(adapter, 1));
    }
    assert_eq!(driver.engine.stats().adapters_known, 256 + 2);
    assert_ne!(driver.register(0), queued);
    let again = driver.complete(Job { prompt: vec![1; 9], ..job(0, 2) });
    assert_eq!(driver.started[&again], 0, "what was cached under the forgotten id is not reused");
}

#[test]
fn a_lost_shard_forgets_everything() {
    let mut driver = Driver::new(config(), &[1, 1, 1]);
    driver.complete(job(0, 20));
    driver.submit(job(0, 9)).unwrap();
    driver.submit(job(1, 9)).unwrap();
    driver.plan();
    driver.submit(job(2, 9)).unwrap();
    driver.lose_shard();
    let stats = driver.engine.stats();
    assert_eq!((stats.adapter_slots_used, stats.blocks_cached, stats.steps_in_flight), (0, 0, 0));
    assert_eq!(stats.adapters_known, 0);
    let id = driver.complete(job(0, 20));
    assert_eq!((driver.outcomes.get(&id), driver.started[&id]), (DONE, 0));
}

#[test]
fn without_device_slots_adapters_are_refused() {
    let mut driver = Driver::new(EngineConfig { adapter_slots: 0, ..config() }, &[1]);
    assert!(driver.submit(job(0, 1)).is_err());
    driver.complete(Job { adapter: None, ..job(0, 1) });
}

/// How long a prompt that takes most of the KV cache waits, for an adapter that others compete with for a slot or for
/// the base, in seconds.
fn wait_of_a_long_prompt(adapter: Option<usize>) -> u64 {
    let small = EngineConfig { num_blocks: 64, adapter_bytes: 100, ..config() };
    let mut driver = Driver::new(small, &[1; 5]);
    let mut count = 0;
    let mut turn = |driver: &mut Driver| {
        while driver.engine.stats().queued_requests < 24 {
            count += 1;
            driver
                .submit(Job { prompt: vec![1, 2, 3, count % 7], ..job(1 + count as usize % 4, 60) })
                .unwrap();
        }
        driver.plan();
        driver.plan();
        driver.now += Duration::from_millis(300);
        driver.answer();
    };
    for _ in 0..400 {
        turn(&mut driver);
    }
    let prompt = (0..240).map(|token| token % 11).collect();
    let long =
        driver.submit(Job { adapter, tenant: 1, prompt, max_new_tokens: 1, ..Job::default() }).unwrap();
    let asked = driver.now;
    while !driver.outcomes.contains_key(&long) && driver.now < asked + Duration::from_secs(1200) {
        turn(&mut driver);
    }
    driver.now.saturating_sub(asked).as_secs()
}

#[test]
fn what_a_long_prompt_waits_for_is_not_given_to_others() {
    let (base, adapter) = (wait_of_a_long_prompt(None), wait_of_a_long_prompt(Some(0)));
    assert!(adapter < 4 * base, "{adapter} s, and without an adapter {base} s");
}
