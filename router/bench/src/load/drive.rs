//! When requests start: as soon as a client is free, or at random times of a given rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{sync::Mutex, task::JoinSet, time::sleep_until};

use super::{
    api::Requests,
    client::{Client, Sample, Target},
};

/// When no further request starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    Count(usize),
    After(Duration),
}

impl Stop {
    fn reached(self, number: usize, start: Instant) -> bool {
        match self {
            Self::Count(count) => number >= count,
            Self::After(time) => start.elapsed() >= time,
        }
    }
}

/// Everything that a load showed.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) elapsed: Duration,
    pub(super) samples: Vec<Sample>,
    pub(super) errors: Vec<String>,
}

impl Outcome {
    fn of(start: Instant, results: Vec<anyhow::Result<Sample>>) -> Self {
        let elapsed = start.elapsed();
        let (mut samples, mut errors) = (Vec::with_capacity(results.len()), Vec::new());
        for result in results {
            match result {
                Ok(sample) => samples.push(sample),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        Self { elapsed, samples, errors }
    }
}

pub(super) async fn closed_loop(target: Target, requests: Requests, stop: Stop, clients: usize) -> Outcome {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (mut client, requests, next) = (Client::new(target.clone()), requests.clone(), next.clone());
        tasks.spawn(async move {
            let mut results = Vec::new();
            loop {
                let number = next.fetch_add(1, Relaxed);
                if stop.reached(number, start) {
                    return results;
                }
                results.push(client.request(requests.api, requests.body(number)).await);
            }
        });
    }
    Outcome::of(start, tasks.join_all().await.into_iter().flatten().collect())
}

pub(super) async fn open_loop(
    target: Target,
    requests: Requests,
    stop: Stop,
    rate: f64,
    seed: u64,
) -> Outcome {
    let mut random = SmallRng::seed_from_u64(seed);
    let idle: Arc<Mutex<Vec<Client>>> = Arc::default();
    let requests = Arc::new(requests);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut due = Duration::ZERO;
    for number in 0.. {
        // Intervals of a Poisson process are exponentially distributed.
        due += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
        sleep_until((start + due).into()).await;
        if stop.reached(number, start) {
            break;
        }
        let (target, requests, idle) = (target.clone(), requests.clone(), idle.clone());
        tasks.spawn(async move {
            let reused = idle.lock().await.pop();
            let mut client = reused.unwrap_or_else(|| Client::new(target));
            let result = client.request(requests.api, requests.body(number)).await;
            idle.lock().await.push(client);
            result
        });
    }
    Outcome::of(start, tasks.join_all().await)
}
