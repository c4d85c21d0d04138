//! How the rest of the router talks to the driver.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use lorikeet_engine::{Event, Request, RequestId};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{adapters::Staged, error::Error};

/// How often the driver is seen to turn, with room for a loaded machine, and how often it may be seen not to.
const BEAT_CHECK: Duration = Duration::from_millis(1500);
const MISSED_BEATS: u32 = 4;

/// Sends requests to the driver. Cloning is cheap.
#[derive(Clone)]
pub struct Driver {
    commands: mpsc::Sender<Command>,
    cancellations: Arc<Cancellations>,
    next_id: Arc<AtomicU64>,
    /// Turns of the driver's loop.
    beats: Arc<AtomicU64>,
}

pub(super) enum Command {
    Submit(Box<Submission>),
    /// Ends every request with this error.
    FailAll {
        error: Error,
        done: oneshot::Sender<()>,
    },
}

/// A request on its way into the engine.
pub(super) struct Submission {
    /// Its `adapter` and `deadline` are filled in by the driver.
    pub(super) request: Request,
    pub(super) adapter: Option<Staged>,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<(), Refused>>,
}

/// Why the driver did not take a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Overloaded {
        retry_after: Duration,
    },
    NotReady,
    /// The shards were lost since its adapter was staged.
    Stale,
    AdapterTooLarge {
        given: u64,
        limit: u64,
    },
    /// Validation keeps requests within the KV cache; but shards may have come back with a smaller one.
    TooLong {
        limit: usize,
    },
    Internal,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Message {
    /// From the engine, with the time at which the shard's result was there.
    Event(Event, Instant),
    /// The last message: the request was ended from outside the engine.
    Failed(Error),
}

impl Driver {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        cancellations: Arc<Cancellations>,
        beats: Arc<AtomicU64>,
    ) -> Self {
        Self { commands, cancellations, next_id: Arc::default(), beats }
    }

    /// Resolves when the driver's loop has not turned for several seconds, though it should at least each second. Time
    /// in which the whole process was stopped does not count.
    pub async fn stuck(&self) {
        let mut ticks = interval(BEAT_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut missed) = (None, 0);
        while missed < MISSED_BEATS {
            ticks.tick().await;
            let beats = Some(self.beats.load(Ordering::Relaxed));
            missed = if beats == last { missed + 1 } else { 0 };
            last = beats;
        }
    }

    /// Queues a request. Its `id` and `adapter` are given here.
    pub async fn submit(
        &self,
        mut request: Request,
        adapter: Option<Staged>,
        deadline: Instant,
    ) -> Result<Ticket, Refused> {
        request.id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Room for all that can ever be sent, so that the driver never waits for a reader. The channel grows by what is
        // in it.
        let capacity = request.max_new_tokens as usize + 4;
        let (messages, receiver) = mpsc::channel(capacity);
        let ticket = Ticket {
            id: request.id,
            messages: receiver,
            cancellations: Arc::clone(&self.cancellations),
            ended: false,
        };
        let (reply, answer) = oneshot::channel();
        let submission = Submission { request, adapter, messages, deadline, reply };
        self.commands.send(Command::Submit(Box::new(submission))).await.map_err(|_| Refused::NotReady)?;
        answer.await.unwrap_or(Err(Refused::Internal)).map(|()| ticket)
    }

    /// Ends every request with an error, and waits until it has been told.
    pub async fn fail_all(&self, error: Error) {
        let (done, told) = oneshot::channel();
        if self.commands.send(Command::FailAll { error, done }).await.is_ok() {
            told.await.ok();
        }
    }
}

/// A request's place in the engine. Dropping it takes the request out, wherever it is.
pub struct Ticket {
    id: RequestId,
    messages: mpsc::Receiver<Message>,
    cancellations: Arc<Cancellations>,
    ended: bool,
}

impl Ticket {
    /// `None` when the driver is gone.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.messages.poll_recv(context)
    }

    /// The engine has said its last word about this request: there is nothing to take back.
    pub fn ended(&mut self) {
        self.ended = true;
    }

    /// Takes the request out of the engine. Messages under way are lost.
    pub fn cancel(&mut self) {
        // First: a submission that the driver has not seen yet is then not taken.
        self.messages.close();
        if !std::mem::replace(&mut self.ended, true) {
            self.cancellations.add(self.id);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Requests to take out of the engine. Adding never waits, so it may be done while dropping; each request is added once
/// at most, so it is bounded by the requests there are.
#[derive(Default)]
pub(super) struct Cancellations {
    ids: Mutex<Vec<RequestId>>,
    added: Notify,
}

impl Cancellations {
    fn add(&self, id: RequestId) {
        self.ids.lock().push(id);
        self.added.notify_one();
    }

    pub(super) fn take(&self) -> Vec<RequestId> {
        std::mem::take(&mut *self.ids.lock())
    }

    pub(super) async fn notified(&self) {
        self.added.notified().await;
    }
}
