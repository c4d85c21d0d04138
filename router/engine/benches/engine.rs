//! What the router adds to every step: planning it and taking its result, with requests coming and going; and the
//! admission of a prompt whose prefix is cached.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lorikeet_engine::{Engine, EngineConfig, Priority, Request, RequestId, TenantId};
use lorikeet_proto::v1::{Sampling, Step, StepResult};

const ADAPTERS: u32 = 32;
const PROMPT: u32 = 256;
const OUTPUT: u32 = 256;

fn config(sequences: u32) -> EngineConfig {
    EngineConfig {
        block_size: 16,
        num_blocks: sequences.max(16) * 64,
        max_sequences: sequences,
        max_step_tokens: 2048,
        adapter_slots: ADAPTERS,
        adapter_bytes: u64::from(ADAPTERS),
        synchronous_moves: true,
        max_queued_requests: 1024,
        max_queued_tokens: 1 << 20,
        max_steps_in_flight: 2,
        prefix_cache: true,
    }
}

/// An engine with as many requests as it can run and some more, and a shard that answers at once.
struct Load {
    engine: Engine,
    digests: Vec<String>,
    next: u64,
    now: Duration,
}

impl Load {
    fn new(config: EngineConfig) -> Self {
        let digests = (0..ADAPTERS).map(|i| format!("sha-{i}")).collect();
        Self { engine: Engine::new(config), digests, next: 0, now: Duration::ZERO }
    }

    fn submit(&mut self, tokens: Vec<u32>, max_new_tokens: u32) {
        let digest = &self.digests[self.next as usize % self.digests.len()];
        let adapter = self.engine.register_adapter(digest, 1);
        let request = Request {
            id: RequestId(self.next),
            tenant: TenantId(0),
            priority: Priority::default(),
            adapter: Some(adapter),
            tokens,
            max_new_tokens,
            stop_tokens: Arc::from([0]),
            sampling: Sampling { seed: self.next, ..Sampling::default() },
            prompt_logprobs: None,
            deadline: Some(self.now + Duration::from_secs(600)),
        };
        self.next += 1;
        self.engine.submit(request, self.now).unwrap();
    }

    fn plan(&mut self) -> Option<Step> {
        self.now += Duration::from_millis(10);
        let mut events = Vec::new();
        self.engine.plan(self.now, &mut events)
    }

    fn apply(&mut self, result: &StepResult) {
        let mut events = Vec::new();
        self.engine.apply(result, self.now, &mut events).unwrap();
        black_box(&events);
    }

    /// Fills the engine with sequences at every stage of their output.
    fn fill(&mut self, sequences: u32) {
        for i in 0..sequences {
            let left = OUTPUT * (i + 1) / sequences;
            self.submit((0..PROMPT).map(|token| 1 + token + i).collect(), left.max(1));
        }
        while self.engine.stats().queued_requests > 0 {
            let step = self.plan().unwrap();
            self.apply(&answer(&step));
        }
    }
}

fn answer(step: &Step) -> StepResult {
    let mut slot = Vec::new();
    if let Some(prefill) = &step.prefill {
        slot.extend(
            prefill.slot.iter().zip(&prefill.sample).filter(|(_, sample)| **sample).map(|(slot, _)| *slot),
        );
    }
    slot.extend(step.decode.iter().flat_map(|decode| decode.slot.iter().copied()));
    let rows = slot.len();
    StepResult {
        id: step.id,
        slot,
        token: vec![7; rows],
        logprob: vec![-1.0; rows],
        alternatives: vec![0; rows],
        ..StepResult::default()
    }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    for sequences in [8, 64, 256] {
        let mut load = Load::new(config(sequences));
        load.fill(sequences);
        group.bench_function(BenchmarkId::new("plan+apply", sequences), |bencher| {
            bencher.iter(|| {
                let step = load.plan().unwrap();
                load.apply(&answer(&step));
                let stats = load.engine.stats();
                for i in (stats.running_sequences + stats.queued_requests) as u32..sequences {
                    load.submit((0..PROMPT).map(|token| 1 + token + i).collect(), OUTPUT);
                }
            });
        });
    }
    group.finish();
}

fn prefix(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefix");
    for tokens in [256, 4096] {
        let mut load = Load::new(EngineConfig { num_blocks: 4096, ..config(8) });
        load.digests.truncate(1);
        group.bench_function(BenchmarkId::new("cached prompt, one token", tokens), |bencher| {
            bencher.iter(|| {
                load.submit((0..tokens).collect(), 1);
                while let Some(step) = load.plan() {
                    load.apply(&answer(&step));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps, prefix);
criterion_main!(benches);
