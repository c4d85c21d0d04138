//! The host and disk tiers under anything: flights that fail or end in any order, pins, forgotten names, lost shards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lorikeet_engine::residency::{
    Acquire, Digest, Failure, Flight, FlightId, HostConfig, HostTier, Pin, Work,
};
use proptest::prelude::*;

type Tier = HostTier<&'static str>;

fn config() -> HostConfig {
    let failure_ttl = Duration::from_secs(10);
    HostConfig {
        host_bytes: 8,
        disk_bytes: 11,
        max_adapter_bytes: 15,
        failure_ttl,
        max_failures: 2,
        max_names: 6,
    }
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
            Work::Fetch { .. } | Work::Stage { .. } if how == 2 => tier.abandoned(flight.id),
            Work::Fetch { name, .. } => {
                // Two names have the same bytes.
                let number: u64 = name.parse().unwrap();
                let (digest, bytes) = (Digest::new(&format!("sha-{}", number / 2)), 2 + number / 2);
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
        let mut tier = Tier::new(config());
        let (mut world, mut now) = (World::default(), Duration::ZERO);
        for operation in operations {
            match operation {
                Operation::Acquire(name) => match tier.acquire(&name.to_string(), now) {
                    Acquire::Ready(pin) => world.pins.push(pin),
                    Acquire::Start(flight) => world.take_off(flight),
                    Acquire::Wait { until } => {
                        prop_assert!(!world.flights.is_empty() || tier.stats().host_bytes > 0);
                        prop_assert!(now < until && until <= now + Duration::from_secs(1));
                    }
                    Acquire::Failed(Failure::TooManyNames { limit }) => prop_assert_eq!(tier.names().len(), limit),
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
            let fetching = world.flights.iter().filter(|flight| matches!(flight.work, Work::Fetch { .. })).count();
            let without_digest = tier.names().filter(|name| tier.digest(name).is_none()).count();
            prop_assert!(without_digest <= 2 + fetching, "what cannot be had is remembered without bound");
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
            Acquire::Wait { .. } | Acquire::Failed(_) => {}
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
