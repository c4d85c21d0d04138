//! The host and disk tiers against a shard that fails, forgets and answers in any order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lorikeet_engine::residency::{
    Acquire, Digest, Failure, Flight, FlightId, HostConfig, HostTier, NameState, Pin, Work,
};
use proptest::prelude::*;

type Tier = HostTier<&'static str>;

const START: Duration = Duration::ZERO;
const TTL: Duration = Duration::from_secs(10);

fn config() -> HostConfig {
    HostConfig { host_bytes: 10, disk_bytes: 20, max_adapter_bytes: 15, failure_ttl: TTL, max_names: 100 }
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
        assert_eq!(tier.acquire("a", START), Acquire::Wait);
    }
    tier.fetched(flight.id, &digest("a"), 3, START);
    let flight = start(&mut tier, "a");
    assert_eq!(tier.acquire("a", START), Acquire::Wait);
    tier.staged(flight.id, 4, START);
    let pins: Vec<_> = (0..200).map(|_| ready(&mut tier, "a")).collect();
    assert_eq!((tier.stats().host_bytes, tier.stats().pinned), (4, 1));
    for pin in pins {
        tier.release(pin);
    }
    assert_eq!((tier.stats().pinned, tier.state("a")), (0, Some(NameState::Staged(digest("a")))));
}

#[test]
fn a_failure_is_remembered_for_a_while() {
    let mut tier = Tier::new(config());
    let flight = start(&mut tier, "a");
    tier.failed(flight.id, "down", START);
    let failed = || Acquire::Failed(Failure::Flight("down"));
    assert_eq!(tier.acquire("a", TTL.saturating_sub(Duration::from_nanos(1))), failed());
    assert_eq!(tier.state("a"), Some(NameState::Failed));
    let Acquire::Start(flight) = tier.acquire("a", TTL) else { panic!("it is tried again") };
    tier.fetched(flight.id, &digest("a"), 3, TTL);
    let Acquire::Start(flight) = tier.acquire("a", TTL) else { panic!("it is staged") };
    tier.failed(flight.id, "down", TTL);
    assert_eq!(tier.acquire("a", TTL), failed());
    assert!(matches!(tier.acquire("a", TTL * 2), Acquire::Start(_)));
}

#[test]
fn failed_names_do_not_pile_up_and_declared_ones_stay() {
    let mut tier = Tier::new(HostConfig { max_names: 3, ..config() });
    tier.register("declared").unwrap();
    for name in ["a", "b"] {
        let flight = start(&mut tier, name);
        tier.failed(flight.id, "no such adapter", START);
    }
    assert_eq!(tier.acquire("c", START), Acquire::Failed(Failure::TooManyNames { limit: 3 }));
    assert!(matches!(tier.acquire("c", TTL), Acquire::Start(_)));
    assert_eq!((tier.state("a"), tier.state("declared")), (None, Some(NameState::Registered)));
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
    assert_eq!(tier.acquire("d", START), Acquire::Wait, "all is pinned");
    let mut pins = pins.into_iter();
    tier.release(pins.next().unwrap());
    assert_eq!(stage(&mut tier, "d", 4), [digest("a")]);
    assert_eq!(tier.state("a"), Some(NameState::Stored(digest("a"))));
    assert_eq!(tier.stats().host_bytes, 10);
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
    assert_eq!(tier.acquire("b", START), Acquire::Wait, "a is kept for who asked for it");
    let pin = ready(&mut tier, "a");
    assert_eq!(tier.acquire("b", START), Acquire::Wait);
    tier.release(pin);
    assert_eq!(stage(&mut tier, "b", 3), [digest("a")]);
    // Nobody comes for b: it does not stay for ever.
    assert_eq!(tier.acquire("a", START), Acquire::Wait);
    assert!(matches!(tier.acquire("a", Duration::from_secs(5)), Acquire::Start(_)));
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
    assert_eq!(tier.state("c"), None);
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
    assert_eq!(tier.acquire("a", START), Acquire::Wait);
    tier.fetched(new.id, &digest("new"), 1, START);
    assert_eq!(tier.digest("a"), Some(&digest("new")));
    let dropped = Work::Drop { digest: digest("old"), from_store: true };
    assert_eq!(tier.over_budget().into_iter().map(|flight| flight.work).collect::<Vec<_>>(), [dropped]);
}

#[derive(Clone, Debug)]
enum Operation {
    Acquire(u8),
    Release(prop::sample::Index),
    End(prop::sample::Index, u8),
    Forget(u8),
    Advance(u64),
    LoseShard,
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => (0..8u8).prop_map(Operation::Acquire),
        6 => any::<prop::sample::Index>().prop_map(Operation::Release),
        12 => (any::<prop::sample::Index>(), 0..10u8).prop_map(|(index, how)| Operation::End(index, how)),
        1 => (0..8u8).prop_map(Operation::Forget),
        2 => (1..20u64).prop_map(Operation::Advance),
        1 => Just(Operation::LoseShard),
    ]
}

/// What the shard has, as far as the flights that ended say.
#[derive(Default)]
struct World {
    stored: BTreeMap<Digest, u64>,
    staged: BTreeMap<Digest, u64>,
    flights: Vec<Flight>,
    /// Fetches of names that were forgotten meanwhile.
    stale: BTreeSet<FlightId>,
    pins: Vec<Pin>,
}

impl World {
    fn take_off(&mut self, flight: Flight) {
        match &flight.work {
            Work::Stage { digest, evict } => {
                assert!(self.stored.contains_key(digest), "what is staged is in the store");
                for evicted in evict.iter().chain([digest]) {
                    assert!(!self.pinned().contains(evicted), "{evicted} is pinned");
                }
                for evicted in evict {
                    assert!(self.staged.remove(evicted).is_some());
                }
            }
            Work::Drop { digest, .. } => assert!(!self.pinned().contains(digest), "{digest} is pinned"),
            Work::Fetch { .. } => {}
        }
        let current = self.flights.iter().filter(|flight| !self.stale.contains(&flight.id));
        let busy: Vec<_> = current.map(|flight| subject(&flight.work)).collect();
        assert!(!busy.contains(&subject(&flight.work)), "{flight:?} is in flight twice");
        self.flights.push(flight);
    }

    fn land(&mut self, tier: &mut Tier, flight: Flight, how: u8, now: Duration) {
        match flight.work {
            Work::Fetch { .. } | Work::Stage { .. } if how == 0 => tier.failed(flight.id, "broken", now),
            Work::Fetch { name, .. } => {
                // Two names have the same bytes.
                let number: u64 = name.parse().unwrap();
                let (digest, bytes) = (digest(&(number / 2).to_string()), 2 + number / 2);
                self.stored.insert(digest.clone(), bytes);
                tier.fetched(flight.id, &digest, bytes, now);
            }
            Work::Stage { digest, .. } if how == 1 => {
                self.stored.remove(&digest);
                tier.unstored(flight.id);
            }
            Work::Stage { digest, .. } => {
                let bytes = self.stored[&digest];
                self.staged.insert(digest, bytes);
                tier.staged(flight.id, bytes, now);
            }
            Work::Drop { digest, from_store } => {
                self.staged.remove(&digest);
                if from_store {
                    self.stored.remove(&digest);
                }
                tier.dropped(flight.id);
            }
        }
    }

    fn pinned(&self) -> BTreeSet<&Digest> {
        self.pins.iter().map(Pin::digest).collect()
    }
}

fn subject(work: &Work) -> String {
    match work {
        Work::Fetch { name, .. } => format!("name {name}"),
        Work::Stage { digest, .. } | Work::Drop { digest, .. } => digest.to_string(),
    }
}

proptest! {
    /// Pinned adapters are staged, nothing is done twice at a time, the counted bytes are the real ones, and budgets
    /// are kept once the drops that were asked for are done.
    #[test]
    fn tiers_are_what_they_say(operations in prop::collection::vec(operations(), 1..200)) {
        let mut tier = Tier::new(HostConfig { host_bytes: 8, disk_bytes: 11, ..config() });
        let (mut world, mut now) = (World::default(), START);
        for operation in operations {
            match operation {
                Operation::Acquire(name) => match tier.acquire(&name.to_string(), now) {
                    Acquire::Ready(pin) => world.pins.push(pin),
                    Acquire::Start(flight) => world.take_off(flight),
                    Acquire::Wait => prop_assert!(!world.flights.is_empty() || tier.stats().host_bytes > 0),
                    Acquire::Failed(failure) => prop_assert_eq!(failure, Failure::Flight("broken")),
                },
                Operation::Release(index) if !world.pins.is_empty() => {
                    let pin = world.pins.swap_remove(index.index(world.pins.len()));
                    tier.release(pin);
                }
                Operation::End(index, how) if !world.flights.is_empty() => {
                    let flight = world.flights.swap_remove(index.index(world.flights.len()));
                    world.land(&mut tier, flight, how, now);
                }
                Operation::Release(_) | Operation::End(..) => {}
                Operation::Forget(name) => {
                    tier.forget(&name.to_string());
                    let of_name = |flight: &&Flight| subject(&flight.work) == format!("name {name}");
                    world.stale.extend(world.flights.iter().filter(of_name).map(|flight| flight.id));
                }
                Operation::Advance(seconds) => now += Duration::from_secs(seconds),
                Operation::LoseShard => {
                    tier.shard_lost();
                    world.staged.clear();
                    world.flights.clear();
                    world.pins.clear();
                }
            }
            for flight in tier.over_budget() {
                world.take_off(flight);
            }
            let stats = tier.stats();
            prop_assert!(world.pinned().iter().all(|digest| world.staged.contains_key(digest)));
            prop_assert_eq!(stats.pinned, world.pinned().len());
            prop_assert!(stats.host_bytes <= 8, "{} bytes in host memory", stats.host_bytes);
            prop_assert_eq!(stats.flights, world.flights.len());
        }
        while let Some(flight) = world.flights.pop() {
            world.land(&mut tier, flight, 5, now);
            for flight in tier.over_budget() {
                world.take_off(flight);
            }
        }
        prop_assert_eq!(tier.stats().host_bytes, world.staged.values().sum::<u64>());
        for pin in world.pins.drain(..) {
            tier.release(pin);
        }
        // A reservation that nobody takes up ends in time.
        match tier.acquire("0", now + Duration::from_secs(60)) {
            Acquire::Start(flight) => tier.failed(flight.id, "broken", now),
            Acquire::Ready(pin) => tier.release(pin),
            Acquire::Wait | Acquire::Failed(_) => {}
        }
        for name in 0..8 {
            tier.forget(&name.to_string());
        }
        for flight in tier.over_budget() {
            tier.dropped(flight.id);
        }
        prop_assert_eq!(tier.stats().stored, 0);
    }
}
