//! The host and disk tiers: one flight for many callers, failures, budgets, names, lost shards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use std::time::Duration;

use lorikeet_engine::residency::{Acquire, Digest, Failure, Flight, HostConfig, HostTier, Pin, Work};

type Tier = HostTier<&'static str>;

const START: Duration = Duration::ZERO;
const TTL: Duration = Duration::from_secs(10);

fn config() -> HostConfig {
    HostConfig {
        host_bytes: 10,
        disk_bytes: 20,
        max_adapter_bytes: 15,
        failure_ttl: TTL,
        max_failures: 100,
        max_names: 100,
    }
}

fn digest(name: &str) -> Digest {
    Digest::new(&format!("sha-{name}"))
}

fn start(tier: &mut Tier, name: &str) -> Flight {
    match tier.acquire(name, START) {
        Acquire::Start(flight) => flight,
        other => panic!("{name}: {other:?}"),
    }
}

fn waits(tier: &mut Tier, name: &str) -> bool {
    matches!(tier.acquire(name, START), Acquire::Wait { .. })
}

fn fetch(tier: &mut Tier, name: &str, bytes: u64) {
    let flight = start(tier, name);
    assert!(matches!(flight.work, Work::Fetch { .. }), "{flight:?}");
    tier.fetched(flight.id, &digest(name), bytes, START);
}

fn stage(tier: &mut Tier, name: &str, bytes: u64) -> Vec<Digest> {
    let flight = start(tier, name);
    let Work::Stage { evict, .. } = flight.work else { panic!("{flight:?}") };
    tier.staged(flight.id, bytes, START);
    evict
}

fn ready(tier: &mut Tier, name: &str) -> Pin {
    match tier.acquire(name, START) {
        Acquire::Ready(pin) => pin,
        other => panic!("{name}: {other:?}"),
    }
}

fn knows(tier: &Tier, name: &str) -> bool {
    tier.names().any(|known| **known == *name)
}

fn load(tier: &mut Tier, name: &str, bytes: u64) -> Pin {
    fetch(tier, name, bytes);
    stage(tier, name, bytes);
    ready(tier, name)
}

#[test]
fn many_callers_are_one_flight() {
    let mut tier = Tier::new(config());
    let flight = start(&mut tier, "a");
    assert_eq!(flight.work, Work::Fetch { name: "a".into(), max_bytes: 15 });
    for _ in 0..200 {
        assert!(waits(&mut tier, "a"));
    }
    tier.fetched(flight.id, &digest("a"), 3, START);
    let flight = start(&mut tier, "a");
    assert!(waits(&mut tier, "a"));
    tier.staged(flight.id, 4, START);
    let pins: Vec<_> = (0..200).map(|_| ready(&mut tier, "a")).collect();
    assert_eq!((tier.stats().host_bytes, tier.stats().pinned), (4, 1));
    for pin in pins {
        tier.release(pin);
    }
    assert_eq!((tier.stats().pinned, tier.stats().staged), (0, 1));
}

#[test]
fn a_failure_is_remembered_for_a_while() {
    let mut tier = Tier::new(config());
    let flight = start(&mut tier, "a");
    tier.failed(flight.id, "down", START);
    let failed = || Acquire::Failed(Failure::Flight("down"));
    assert_eq!(tier.acquire("a", TTL.saturating_sub(Duration::from_nanos(1))), failed());
    let Acquire::Start(flight) = tier.acquire("a", TTL) else { panic!("it is tried again") };
    tier.fetched(flight.id, &digest("a"), 3, TTL);
    let Acquire::Start(flight) = tier.acquire("a", TTL) else { panic!("it is staged") };
    tier.failed(flight.id, "down", TTL);
    assert_eq!(tier.acquire("a", TTL), failed());
    assert!(matches!(tier.acquire("a", TTL * 2), Acquire::Start(_)));
}

#[test]
fn failed_names_do_not_pile_up_and_known_ones_stay() {
    let mut tier = Tier::new(HostConfig { max_names: 3, ..config() });
    let pin = load(&mut tier, "known", 3);
    tier.release(pin);
    for name in ["a", "b"] {
        let flight = start(&mut tier, name);
        tier.failed(flight.id, "no such adapter", START);
    }
    // A failure gives up its place; what is under way or was fetched does not.
    let (c, d) = (start(&mut tier, "c"), start(&mut tier, "d"));
    assert!(!knows(&tier, "a") && !knows(&tier, "b"));
    assert_eq!(tier.acquire("e", START), Acquire::Failed(Failure::TooManyNames { limit: 3 }));
    tier.failed(c.id, "no such adapter", START);
    assert!(matches!(tier.acquire("e", START), Acquire::Start(_)));
    tier.failed(d.id, "no such adapter", START);
    assert!(matches!(tier.acquire("f", TTL), Acquire::Start(_)));
    assert!(!knows(&tier, "d") && knows(&tier, "known"));
}

#[test]
fn the_longest_unused_name_gives_its_place_to_a_new_one() {
    let mut tier = Tier::new(HostConfig { max_names: 3, ..config() });
    let held = load(&mut tier, "held", 3);
    fetch(&mut tier, "first", 3);
    fetch(&mut tier, "second", 3);
    // What was just fetched is kept for who asked.
    assert_eq!(tier.acquire("a", START), Acquire::Failed(Failure::TooManyNames { limit: 3 }));
    let later = START + Duration::from_secs(10);
    assert!(matches!(tier.acquire("a", later), Acquire::Start(_)));
    assert!(knows(&tier, "held") && !knows(&tier, "first") && knows(&tier, "second"));
    let flights = tier.over_budget();
    assert_eq!(flights[0].work, Work::Drop { digest: digest("first"), from_store: true });
    tier.dropped(flights[0].id);
    assert!(!tier.knows(&digest("first")));
    tier.release(held);
}

#[test]
fn failures_are_bounded_and_the_oldest_are_forgotten() {
    let mut tier = Tier::new(HostConfig { max_failures: 2, ..config() });
    let pin = load(&mut tier, "known", 3);
    for name in ["a", "b", "c"] {
        let flight = start(&mut tier, name);
        tier.failed(flight.id, "no such adapter", START);
    }
    assert_eq!(["a", "b", "c"].map(|name| knows(&tier, name)), [false, true, true]);
    assert_eq!(tier.stats().names, 3);
    tier.release(pin);
}

#[test]
fn two_names_of_the_same_bytes_are_one_adapter() {
    let mut tier = Tier::new(config());
    for name in ["a", "b"] {
        let flight = start(&mut tier, name);
        tier.fetched(flight.id, &digest("same"), 3, START);
    }
    stage(&mut tier, "a", 3);
    let pins = [ready(&mut tier, "a"), ready(&mut tier, "b")];
    assert_eq!((tier.stats().staged, tier.stats().host_bytes, tier.stats().disk_bytes), (1, 3, 3));
    tier.forget("a");
    assert_eq!(tier.over_budget(), []);
    tier.forget("b");
    assert_eq!(tier.over_budget(), [], "it is pinned");
    for pin in pins {
        tier.release(pin);
    }
    let flights = tier.over_budget();
    assert_eq!(flights[0].work, Work::Drop { digest: digest("same"), from_store: true });
    tier.dropped(flights[0].id);
    assert_eq!(tier.stats(), lorikeet_engine::residency::HostStats::default());
}

#[test]
fn a_name_keeps_its_bytes() {
    let mut tier = Tier::new(HostConfig { disk_bytes: 5, ..config() });
    let pin = load(&mut tier, "a", 3);
    tier.release(pin);
    fetch(&mut tier, "b", 3);
    let flights = tier.over_budget();
    assert_eq!(flights.len(), 1);
    assert!(matches!(&flights[0].work, Work::Drop { from_store: true, .. }));
    let Work::Drop { digest: dropped, .. } = &flights[0].work else { unreachable!() };
    let name = if *dropped == digest("a") { "a" } else { "b" };
    tier.dropped(flights[0].id);
    // Fetched again, the source has something else.
    let flight = start(&mut tier, name);
    let found = digest("new");
    tier.fetched(flight.id, &found, 1, START);
    let changed = Failure::Changed { serving: digest(name), found: found.clone() };
    assert_eq!(tier.acquire(name, START), Acquire::Failed(changed));
    tier.forget(name);
    let flight = start(&mut tier, name);
    tier.fetched(flight.id, &found, 1, START);
    assert_eq!(tier.digest(name), Some(&found));
}

#[test]
fn the_least_recently_used_gives_way_and_a_pinned_one_never() {
    let mut tier = Tier::new(config());
    let pins: Vec<_> = ["a", "b", "c"].map(|name| load(&mut tier, name, 3)).into();
    fetch(&mut tier, "d", 4);
    assert!(waits(&mut tier, "d"), "all is pinned");
    let mut pins = pins.into_iter();
    tier.release(pins.next().unwrap());
    assert_eq!(stage(&mut tier, "d", 4), [digest("a")]);
    assert_eq!((tier.stats().staged, tier.stats().stored, tier.stats().host_bytes), (3, 4, 10));
}

#[test]
fn an_adapter_larger_than_the_budget_is_refused() {
    let mut tier = Tier::new(config());
    fetch(&mut tier, "a", 11);
    let too_large = |given| Acquire::Failed(Failure::TooLarge { given, limit: 10 });
    assert_eq!(tier.acquire("a", START), too_large(11));
    // Larger in memory than in the store.
    fetch(&mut tier, "b", 5);
    stage(&mut tier, "b", 12);
    assert_eq!(tier.acquire("b", START), too_large(12));
    let flights = tier.over_budget();
    assert_eq!(flights[0].work, Work::Drop { digest: digest("b"), from_store: false });
    assert_eq!(tier.over_budget(), []);
    tier.dropped(flights[0].id);
    assert_eq!(tier.stats().host_bytes, 0);
    assert_eq!(tier.acquire("b", START), too_large(12));
}

#[test]
fn who_asked_for_a_staging_gets_it() {
    let mut tier = Tier::new(HostConfig { host_bytes: 3, ..config() });
    fetch(&mut tier, "a", 3);
    fetch(&mut tier, "b", 3);
    stage(&mut tier, "a", 3);
    assert!(waits(&mut tier, "b"), "a is kept for who asked for it");
    let pin = ready(&mut tier, "a");
    assert!(waits(&mut tier, "b"));
    tier.release(pin);
    assert_eq!(stage(&mut tier, "b", 3), [digest("a")]);
    // Nobody comes for b: it does not stay for ever, and whoever waits is told when to ask again.
    let at = |millis| START + Duration::from_millis(millis);
    for (now, until) in [(0, 1000), (4000, 5000), (4500, 5000)] {
        assert_eq!(tier.acquire("a", at(now)), Acquire::Wait { until: at(until) });
    }
    assert!(matches!(tier.acquire("a", at(5000)), Acquire::Start(_)));
}

#[test]
fn a_lost_shard_voids_pins_and_flights() {
    let mut tier = Tier::new(config());
    let old = load(&mut tier, "a", 3);
    fetch(&mut tier, "b", 3);
    let staging = start(&mut tier, "b");
    let fetching = start(&mut tier, "c");
    tier.shard_lost();
    tier.staged(staging.id, 3, START);
    tier.fetched(fetching.id, &digest("c"), 3, START);
    assert_eq!((tier.stats().host_bytes, tier.stats().staged, tier.stats().pinned), (0, 0, 0));
    assert!(!knows(&tier, "c"));
    stage(&mut tier, "a", 3);
    let new = ready(&mut tier, "a");
    tier.release(old);
    assert_eq!(tier.stats().pinned, 1, "an old pin does not release a new one");
    tier.release(new);
    // The store may have been lost too.
    let staging = start(&mut tier, "b");
    tier.unstored(staging.id);
    fetch(&mut tier, "b", 3);
    assert_eq!(tier.stats().disk_bytes, 6);
}

#[test]
fn a_fetch_of_a_forgotten_name_does_not_count_for_its_next_use() {
    let mut tier = Tier::new(config());
    let old = start(&mut tier, "a");
    tier.forget("a");
    let new = start(&mut tier, "a");
    tier.fetched(old.id, &digest("old"), 1, START);
    assert!(waits(&mut tier, "a"));
    tier.fetched(new.id, &digest("new"), 1, START);
    assert_eq!(tier.digest("a"), Some(&digest("new")));
    let dropped = Work::Drop { digest: digest("old"), from_store: true };
    assert_eq!(tier.over_budget().into_iter().map(|flight| flight.work).collect::<Vec<_>>(), [dropped]);
}
