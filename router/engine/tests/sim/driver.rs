//! A caller of the engine that knows what every request must say, and holds the engine to it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use lorikeet_engine::{
    AdapterId, Engine, EngineConfig, Event, FailureReason, FinishReason, RequestId, SubmitError, Time,
};
use lorikeet_proto::v1::StepResult;

use super::{
    model::{Job, digest, empty, extend, logprob},
    shard::{Faults, Shard},
};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished(FinishReason),
    Failed(FailureReason),
    Cancelled,
}

pub struct Driver {
    pub engine: Engine,
    pub config: EngineConfig,
    pub now: Time,
    pub jobs: HashMap<u64, Job>,
    pub output: HashMap<u64, Vec<u32>>,
    pub outcomes: HashMap<u64, Outcome>,
    /// Requests that have started, and how many tokens they reused.
    pub started: HashMap<u64, u32>,
    /// When a request's first step was planned, in steps.
    pub first_step: HashMap<u64, u64>,
    /// Finished requests, in the order in which they ended.
    pub finished: Vec<u64>,
    pub faults: Faults,
    pub steps: u64,
    bytes: Vec<u64>,
    prompts: HashMap<u64, usize>,
    shard: Shard,
    results: VecDeque<StepResult>,
    answered: u64,
    next_job: u64,
}

impl Driver {
    /// `adapters`: the bytes each takes in a slot.
    pub fn new(config: EngineConfig, adapters: &[u64]) -> Self {
        let mut driver = Self {
            engine: Engine::new(config.clone()),
            now: Duration::ZERO,
            jobs: HashMap::new(),
            output: HashMap::new(),
            outcomes: HashMap::new(),
            started: HashMap::new(),
            first_step: HashMap::new(),
            finished: Vec::new(),
            faults: Faults::default(),
            steps: 0,
            bytes: adapters.to_vec(),
            prompts: HashMap::new(),
            shard: Shard::new(config.clone(), HashMap::new()),
            results: VecDeque::new(),
            answered: 0,
            next_job: 1,
            config,
        };
        driver.restart_shard();
        driver
    }

    pub fn submit(&mut self, mut job: Job) -> Result<u64, SubmitError> {
        job.id = self.next_job;
        self.next_job += 1;
        let adapter = job.adapter.map(|adapter| self.register(adapter));
        self.engine.submit(job.request(adapter), self.now)?;
        self.output.insert(job.id, Vec::new());
        self.jobs.insert(job.id, job);
        Ok(self.next_job - 1)
    }

    pub fn cancel(&mut self, id: u64) {
        self.engine.cancel(RequestId(id));
        if self.jobs.contains_key(&id) {
            self.outcomes.entry(id).or_insert(Outcome::Cancelled);
        }
    }

    /// Requests without an outcome.
    pub fn live(&self) -> Vec<u64> {
        let mut live: Vec<_> =
            self.jobs.keys().copied().filter(|id| !self.outcomes.contains_key(id)).collect();
        live.sort_unstable();
        live
    }

    /// Lets the engine plan, and the shard run what it planned. False: there was no step.
    pub fn plan(&mut self) -> bool {
        let mut events = Vec::new();
        let step = self.engine.plan(self.now, &mut events);
        self.take(events);
        if let Some(step) = &step {
            self.steps += 1;
            let history = |id: u64| [&self.jobs[&id].prompt[..], &self.output[&id][..]].concat();
            let faults = std::mem::take(&mut self.faults);
            let result = self.shard.execute(step, self.answered, faults, &self.jobs, history);
            self.results.push_back(result);
            assert!(self.results.len() <= self.config.max_steps_in_flight);
        }
        self.check();
        step.is_some()
    }

    /// Gives the engine the oldest result. False: there is none.
    pub fn answer(&mut self) -> bool {
        let Some(result) = self.results.pop_front() else { return false };
        let mut events = Vec::new();
        self.answered = result.id;
        self.engine.apply(&result, self.now, &mut events).unwrap();
        self.take(events);
        self.check();
        true
    }

    pub fn lose_shard(&mut self) {
        let mut events = Vec::new();
        self.engine.shard_lost(&mut events);
        self.take(events);
        assert_eq!(self.live(), [0; 0], "every request ends when the shard is lost");
        self.results.clear();
        self.restart_shard();
        self.check();
    }

    pub fn register(&mut self, adapter: usize) -> AdapterId {
        self.engine.register_adapter(&digest(adapter), self.bytes[adapter])
    }

    /// Runs with full pipelining until every request has ended, at most this many steps.
    pub fn drain(&mut self, steps: u64) {
        let limit = self.steps + steps;
        while !self.live().is_empty() {
            assert!(self.steps < limit, "requests {:?} are not served", self.live());
            while self.plan() {}
            self.now += Duration::from_millis(20);
            let answered = self.answer();
            assert!(answered || self.live().is_empty(), "requests {:?} wait for nothing", self.live());
        }
        while self.answer() {}
        let stats = self.engine.stats();
        assert_eq!((stats.queued_requests, stats.queued_tokens, stats.running_sequences), (0, 0, 0));
        assert_eq!((stats.blocks_used, stats.adapters_pinned, stats.steps_in_flight), (0, 0, 0));
        assert_eq!(stats.waiting_adapters, []);
        assert_eq!(self.engine.next_deadline(), None);
    }

    /// Runs one request to its end.
    pub fn complete(&mut self, job: Job) -> u64 {
        let id = self.submit(job).unwrap();
        self.drain(10_000);
        id
    }

    pub fn tokens_computed(&self) -> usize {
        self.shard.tokens_computed
    }

    fn restart_shard(&mut self) {
        let bytes = self.bytes.iter().enumerate().map(|(i, bytes)| (digest(i), *bytes)).collect();
        self.shard = Shard::new(self.config.clone(), bytes);
    }

    /// The bounds that hold at any time.
    fn check(&self) {
        let stats = self.engine.stats();
        assert!(
            stats.queued_requests <= self.config.max_queued_requests + self.config.max_sequences as usize
        );
        assert!(stats.running_sequences <= self.config.max_sequences as usize);
        assert_eq!(stats.running_sequences + stats.queued_requests, self.live().len());
        assert!(stats.blocks_used <= stats.blocks_total);
        assert!(stats.adapter_bytes_used <= self.config.adapter_bytes);
        assert!(stats.adapter_slots_used <= self.config.adapter_slots as usize);
        let known = self.config.num_blocks as usize + stats.adapter_slots_used + self.live().len();
        assert!(stats.adapters_known <= known, "{} adapters are known", stats.adapters_known);
        if stats.running_sequences == 0 {
            assert_eq!(stats.blocks_used, 0, "blocks are lost");
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let id = event.id().0;
            let job = &self.jobs[&id];
            assert_eq!(self.outcomes.get(&id), None, "{event:?} after the request has ended");
            let output = self.output.get_mut(&id).unwrap();
            match event {
                Event::Started { cached_tokens, .. } => {
                    assert!(self.started.insert(id, cached_tokens).is_none(), "started twice");
                    self.first_step.insert(id, self.steps);
                }
                Event::Prompt { tokens, .. } => {
                    assert!(job.prompt_logprobs.is_some() && output.is_empty());
                    assert!(self.prompts.insert(id, tokens.len()).is_none(), "two prompts");
                    let mut kv = empty(job.digest().as_deref());
                    assert_eq!(tokens.len(), job.prompt.len());
                    for (position, (given, token)) in tokens.iter().zip(&job.prompt).enumerate() {
                        assert_eq!(given.token, *token);
                        assert_eq!(given.logprob, (position > 0).then(|| logprob(kv, *token)));
                        kv = extend(kv, *token);
                    }
                }
                Event::Token { token, finish, alternatives, .. } => {
                    assert!(self.started.contains_key(&id));
                    assert!(job.prompt_logprobs.is_none() || self.prompts.contains_key(&id));
                    assert_eq!(alternatives.len(), (id % 3) as usize);
                    output.push(token);
                    let solo = job.solo();
                    assert_eq!(output[..], solo[..output.len()], "job {id} says something else than alone");
                    assert_eq!(finish.is_some(), output.len() == solo.len());
                    if let Some(finish) = finish {
                        let stopped = job.stops && token == super::STOP;
                        assert_eq!(finish == FinishReason::StopToken, stopped);
                        self.outcomes.insert(id, Outcome::Finished(finish));
                        self.finished.push(id);
                    }
                }
                Event::Failed { reason, .. } => {
                    if let FailureReason::DeadlineExceeded { queued } = reason {
                        assert!(job.deadline.unwrap() <= self.now);
                        assert_eq!(queued, !self.started.contains_key(&id));
                    }
                    self.outcomes.insert(id, Outcome::Failed(reason));
                }
            }
        }
    }
}
