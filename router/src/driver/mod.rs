//! The one task that owns the engine and the streams to the shards. Everything else sends it commands.

mod adapters;
mod handle;
mod link;
mod table;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adapters::AdaptersInUse;
use futures::{FutureExt, future::BoxFuture};
use handle::{Cancellations, Command, Submission};
pub use handle::{Driver, Message, Refused, Ticket};
use link::{Link, NotReady};
use lorikeet_engine::{Engine, EngineConfig, Event, SubmitError};
use lorikeet_proto::v1::StepResult;
use table::Table;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::Code;

use crate::{
    adapters::Registry,
    config::Config,
    error::Error,
    model::ModelHandle,
    readiness::Readiness,
    shard::{Group, Lost},
    telemetry::{EngineSnapshot, Metrics},
};

/// Commands that may wait for the driver. Each waits for its answer, so there are never more than requests.
const COMMANDS: usize = 1024;
/// Commands taken between two steps at most: a burst must not delay the tokens of those who run.
const COMMANDS_AT_ONCE: usize = 64;
/// The loop turns at least this often.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How old the published numbers may be.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// What the driver works with.
pub struct Parts {
    pub config: Arc<Config>,
    pub group: Arc<Group>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub model: ModelHandle,
    pub readiness: watch::Sender<Readiness>,
}

/// Prepares the driver. The future is its task: it ends when every handle is gone, or the shards can never be
/// used.
pub fn driver(parts: Parts) -> (Driver, impl Future<Output = ()> + Send) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let cancellations = Arc::new(Cancellations::default());
    let beats = Arc::new(AtomicU64::new(0));
    let handle = Driver::new(commands, Arc::clone(&cancellations), Arc::clone(&beats));
    let task = Task {
        parts,
        commands: receiver,
        cancellations,
        beats,
        engine: None,
        table: Table::default(),
        adapters: AdaptersInUse::default(),
        events: Vec::new(),
        started: Instant::now(),
        stale: false,
        published: Instant::now(),
        link: Link::default(),
    };
    (handle, task.run())
}

struct Task {
    parts: Parts,
    commands: mpsc::Receiver<Command>,
    cancellations: Arc<Cancellations>,
    /// Counts turns of the loop.
    beats: Arc<AtomicU64>,
    /// `None` until the shards have been ready once.
    engine: Option<(EngineConfig, Engine)>,
    /// Who hears of which request.
    table: Table,
    adapters: AdaptersInUse,
    /// Reused between steps.
    events: Vec<Event>,
    started: Instant,
    /// Whether the engine's numbers have changed since they were published.
    stale: bool,
    published: Instant,
    link: Link,
}

/// What woke the task.
enum Wake {
    Command(Option<Command>),
    Cancelled,
    Result(Result<StepResult, Lost>),
    Connected(Result<link::Ready, NotReady>),
    Timer,
}

impl Task {
    async fn run(mut self) {
        let mut connecting: BoxFuture<'static, _> = self.connect(Duration::ZERO);
        let mut attempts = 0_u32;
        loop {
            self.beats.fetch_add(1, Ordering::Relaxed);
            self.take_cancellations();
            for _ in 0..COMMANDS_AT_ONCE {
                let Ok(command) = self.commands.try_recv() else { break };
                self.command(command);
            }
            if let Err(lost) = self.plan() {
                self.lose(&lost);
                connecting = self.connect(link::back_off(&mut attempts));
            }
            self.publish();
            let timer = self.timer();
            let wake = match &mut self.link {
                Link::Up(up) => {
                    tokio::select! {
                        biased;
                        result = up.next() => Wake::Result(result),
                        () = self.cancellations.notified() => Wake::Cancelled,
                        command = self.commands.recv() => Wake::Command(command),
                        () = sleep_until(timer) => Wake::Timer,
                    }
                }
                Link::Down => {
                    tokio::select! {
                        () = self.cancellations.notified() => Wake::Cancelled,
                        command = self.commands.recv() => Wake::Command(command),
                        outcome = &mut connecting => Wake::Connected(outcome),
                        () = sleep_until(timer) => Wake::Timer,
                    }
                }
            };
            match wake {
                Wake::Command(None) => return,
                Wake::Command(Some(command)) => self.command(command),
                Wake::Result(result) => match result.and_then(|result| self.apply(&result)) {
                    Ok(()) => attempts = 0,
                    Err(lost) => {
                        self.lose(&lost);
                        connecting = self.connect(link::back_off(&mut attempts));
                    }
                },
                Wake::Connected(Ok(ready)) => self.connected(ready),
                Wake::Connected(Err(NotReady::Never(reason))) => {
                    tracing::error!(reason, "the shards cannot be used");
                    return;
                }
                Wake::Connected(Err(NotReady::Later(status))) => {
                    // Unavailable: they load, or start again.
                    if status.code() == Code::Unavailable {
                        tracing::debug!(%status, "the shards are not ready");
                    } else {
                        tracing::warn!(%status, "the shards are not ready; trying again");
                    }
                    // Some adapters may have been staged on them, and loads may be under way.
                    self.parts.registry.shard_lost();
                    connecting = self.connect(link::back_off(&mut attempts));
                }
                Wake::Cancelled | Wake::Timer => {}
            }
        }
    }

    fn connect(&self, after: Duration) -> BoxFuture<'static, Result<link::Ready, NotReady>> {
        let (group, registry) = (Arc::clone(&self.parts.group), Arc::clone(&self.parts.registry));
        let (config, model) = (Arc::clone(&self.parts.config), self.parts.model.clone());
        async move {
            tokio::time::sleep(after).await;
            link::connect(&group, &registry, &config, &model).await
        }
        .boxed()
    }

    fn connected(&mut self, ready: link::Ready) {
        // The engine keeps what it knows of adapters unless the memory it plans with has changed.
        if self.engine.as_ref().is_none_or(|(config, _)| *config != ready.engine) {
            self.engine = Some((ready.engine.clone(), Engine::new(ready.engine)));
            self.adapters = AdaptersInUse::default();
        }
        self.link = Link::Up(ready.up);
        self.parts.readiness.send_if_modified(|readiness| {
            let connects = matches!(readiness, Readiness::Starting | Readiness::ShardLost);
            if connects {
                *readiness = Readiness::Ready;
            }
            connects
        });
        self.stale = true;
        tracing::info!("the shards are ready");
    }

    /// The shards are gone: whoever waits is told, and nothing that was sent to them counts any more.
    fn lose(&mut self, lost: &Lost) {
        tracing::error!(reason = %lost, requests = self.table.len(), "lost the shards");
        self.link = Link::Down;
        self.parts.readiness.send_if_modified(|readiness| {
            let serves = *readiness == Readiness::Ready;
            if serves {
                *readiness = Readiness::ShardLost;
            }
            serves
        });
        self.parts.metrics.shard_lost();
        if let Some((_, engine)) = &mut self.engine {
            engine.shard_lost(&mut self.events);
        }
        self.table.deliver(&mut self.events);
        // What the engine did not know of any more.
        self.table.fail_all(&Error::ShardLost);
        self.table.take_released();
        self.adapters.let_go();
        self.parts.registry.shard_lost();
        self.stale = true;
    }

    /// Sends every step that may be sent.
    fn plan(&mut self) -> Result<(), Lost> {
        let Some((_, engine)) = &mut self.engine else { return Ok(()) };
        let Link::Up(up) = &mut self.link else { return Ok(()) };
        up.check(self.parts.config.shards.step_timeout)?;
        let now = self.started.elapsed();
        while let Some(step) = engine.plan(now, &mut self.events) {
            up.send(step)?;
            self.stale = true;
        }
        self.stale |= !self.events.is_empty();
        self.table.deliver(&mut self.events).into_iter().for_each(|id| engine.cancel(id));
        self.adapters.release(self.table.take_released(), engine);
        Ok(())
    }

    fn apply(&mut self, result: &StepResult) -> Result<(), Lost> {
        let Some((_, engine)) = &mut self.engine else { return Ok(()) };
        self.parts.metrics.step_computed(Duration::from_micros(result.compute_us));
        engine
            .apply(result, self.started.elapsed(), &mut self.events)
            .map_err(|unexpected| Lost::Protocol(unexpected.to_string()))?;
        self.table.deliver(&mut self.events).into_iter().for_each(|id| engine.cancel(id));
        self.adapters.release(self.table.take_released(), engine);
        self.adapters.review(engine);
        self.stale = true;
        Ok(())
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::FailAll { error, done } => {
                for id in self.table.fail_all(&error) {
                    if let Some((_, engine)) = &mut self.engine {
                        engine.cancel(id);
                    }
                }
                done.send(()).ok();
            }
        }
        self.stale = true;
    }

    fn submit(&mut self, submission: Submission) {
        let now = self.started.elapsed();
        let Submission { mut request, adapter, messages, deadline, reply } = submission;
        if messages.is_closed() {
            return;
        }
        let (Some((_, engine)), Link::Up(_)) = (&mut self.engine, &self.link) else {
            reply.send(Err(Refused::NotReady)).ok();
            return;
        };
        if adapter.as_ref().is_some_and(|staged| !staged.is_current()) {
            reply.send(Err(Refused::Stale)).ok();
            return;
        }
        let adapter = adapter.map(|staged| {
            let id = engine.register_adapter(staged.digest.as_str(), staged.device_bytes);
            (id, staged)
        });
        request.adapter = adapter.as_ref().map(|(id, _)| *id);
        request.deadline = Some(now + deadline.saturating_duration_since(Instant::now()));
        let id = request.id;
        let outcome = engine.submit(request, now).map_err(|refused| refusal(&refused, &self.table));
        if outcome.is_ok() {
            self.table.insert(id, messages, adapter);
        }
        reply.send(outcome).ok();
    }

    fn take_cancellations(&mut self) {
        for id in self.cancellations.take() {
            if self.table.remove(id)
                && let Some((_, engine)) = &mut self.engine
            {
                engine.cancel(id);
            }
            self.stale = true;
        }
    }

    /// When to wake up although nothing happens.
    fn timer(&self) -> Instant {
        let beat = Instant::now() + BEAT_EVERY;
        let deadline =
            self.engine.as_ref().and_then(|(_, engine)| engine.next_deadline()).map(|at| self.started + at);
        let hung = match &self.link {
            Link::Up(up) => up.hung_at(self.parts.config.shards.step_timeout),
            Link::Down => None,
        };
        let publish = self.stale.then(|| self.published + PUBLISH_EVERY);
        [deadline, hung, publish].into_iter().flatten().fold(beat, Instant::min)
    }

    /// Publishes the engine's numbers, often enough, and always when it has nothing left to do.
    fn publish(&mut self) {
        let idle = match &self.link {
            Link::Up(up) => up.is_idle(),
            Link::Down => true,
        };
        if !self.stale || !(idle || self.published.elapsed() >= PUBLISH_EVERY) {
            return;
        }
        self.stale = false;
        self.published = Instant::now();
        let Some((config, engine)) = &self.engine else { return };
        let snapshot = EngineSnapshot { config: Some(config.clone()), stats: engine.stats() };
        self.parts.metrics.set_engine(snapshot);
    }
}

fn refusal(refused: &SubmitError, table: &Table) -> Refused {
    match *refused {
        SubmitError::TooManyRequests { .. } | SubmitError::TooManyTokens { .. } => {
            Refused::Overloaded { retry_after: table.retry_after() }
        }
        SubmitError::AdapterNeverFits { given, limit } => Refused::AdapterTooLarge { given, limit },
        SubmitError::NeverFits { limit, .. } => Refused::TooLong { limit },
        SubmitError::Empty | SubmitError::UnknownAdapter(_) => Refused::Internal,
    }
}
