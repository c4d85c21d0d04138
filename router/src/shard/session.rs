//! The token path of one connection to the shard group: steps out to every rank, results of rank 0 back.

use std::{collections::VecDeque, future::Future};

use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use lorikeet_proto::v1::{Step, StepResult};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};

/// Why a session ended. It cannot be used any more; neither can anything that was sent through it.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("rank {rank}: {message}")]
    Stream { rank: usize, message: String },
    #[error("rank {rank} takes no steps")]
    Stalled { rank: usize },
    #[error("rank {rank} answered step {given}, the oldest it has not answered is {expected:?}")]
    Mismatch { rank: usize, given: u64, expected: Option<u64> },
    #[error("{0}")]
    Protocol(String),
    #[error("a move failed on rank {rank}, and on rank 0 it did not: {message}")]
    Apart { rank: usize, message: String },
    #[error("a step was not answered within {0:?}")]
    Hung(std::time::Duration),
    #[error("the shards show no sign of life: {0}")]
    Silent(String),
}

/// An adapter that is not in its slot on this rank.
struct FailedMove {
    step: u64,
    slot: u32,
    rank: usize,
    message: String,
}

/// An `Execute` stream on every rank. Dropping it closes them, so a result can never outlive its session.
#[derive(Default)]
pub struct Session {
    steps: Vec<mpsc::Sender<Step>>,
    results: SelectAll<BoxStream<'static, (usize, Result<StepResult, Status>)>>,
    /// By rank, the steps it has not answered, oldest first.
    unanswered: Vec<VecDeque<(u64, Instant)>>,
    /// Moves that failed, until every rank has answered their step. Almost always empty.
    failed_moves: Vec<FailedMove>,
}

impl Session {
    /// Ranks are added in order.
    pub(super) fn add(
        &mut self,
        rank: usize,
        steps: mpsc::Sender<Step>,
        results: impl Future<Output = Result<Streaming<StepResult>, Status>> + Send + 'static,
    ) {
        self.steps.push(steps);
        self.unanswered.push(VecDeque::new());
        let results = results.map(|opened| match opened {
            Ok(results) => results.boxed(),
            Err(status) => stream::once(async move { Err(status) }).boxed(),
        });
        let ended = stream::once(async { Err(Status::unavailable("the stream ended")) });
        let results = results.flatten_stream().chain(ended).map(move |result| (rank, result));
        self.results.push(results.boxed());
    }

    /// Sends a step to every rank. Never waits.
    pub fn send(&mut self, step: Step) -> Result<(), Lost> {
        let now = Instant::now();
        let id = step.id;
        for (rank, steps) in self.steps.iter().enumerate().skip(1) {
            steps.try_send(step.clone()).map_err(|_| Lost::Stalled { rank })?;
        }
        if let Some(first) = self.steps.first() {
            first.try_send(step).map_err(|_| Lost::Stalled { rank: 0 })?;
        }
        for unanswered in &mut self.unanswered {
            unanswered.push_back((id, now));
        }
        Ok(())
    }

    /// The next result of rank 0. What the other ranks answer is checked to be in step. Cancel safe.
    pub async fn next(&mut self) -> Result<StepResult, Lost> {
        loop {
            let Some((rank, result)) = self.results.next().await else {
                return Err(Lost::Stream { rank: 0, message: "every stream ended".into() });
            };
            let result = result.map_err(|status| Lost::Stream { rank, message: describe(&status) })?;
            let expected = self.unanswered.get_mut(rank).and_then(VecDeque::pop_front).map(|(id, _)| id);
            if expected != Some(result.id) {
                return Err(Lost::Mismatch { rank, given: result.id, expected });
            }
            self.compare_moves(rank, &result)?;
            if rank == 0 {
                return Ok(result);
            }
        }
    }

    /// The engine hears of what failed on rank 0. What failed on another alone leaves a slot empty there, and rows of
    /// that adapter would lack this rank's part of it.
    fn compare_moves(&mut self, rank: usize, result: &StepResult) -> Result<(), Lost> {
        let step = result.id;
        self.failed_moves.extend(result.move_errors.iter().map(|error| FailedMove {
            step,
            slot: error.slot,
            rank,
            message: error.message.clone(),
        }));
        if self.failed_moves.is_empty() {
            return Ok(());
        }
        let oldest = |steps: &VecDeque<(u64, Instant)>| steps.front().map_or(u64::MAX, |(id, _)| *id);
        let told = self.unanswered.first().map_or(u64::MAX, oldest);
        let failed = &self.failed_moves;
        let alone = failed.iter().find(|here| {
            let on_first =
                |other: &FailedMove| (other.rank, other.step, other.slot) == (0, here.step, here.slot);
            here.rank > 0 && here.step < told && !failed.iter().any(on_first)
        });
        if let Some(FailedMove { rank, message, .. }) = alone {
            return Err(Lost::Apart { rank: *rank, message: message.clone() });
        }
        let told_by_all = self.unanswered.iter().map(oldest).min().unwrap_or(u64::MAX);
        self.failed_moves.retain(|here| here.step >= told_by_all);
        Ok(())
    }

    /// When the oldest step that some rank has not answered was sent.
    pub fn oldest_unanswered(&self) -> Option<Instant> {
        self.unanswered.iter().filter_map(|steps| steps.front()).map(|&(_, sent)| sent).min()
    }
}

/// A status with what caused it.
fn describe(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {source}", status.message()),
        None => format!("{}: {}", status.code(), status.message()),
    }
}
