//! What is counted of the requests of one adapter.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::histogram::{Histogram, SECONDS, TOKENS};
use crate::output::FinishReason;

#[derive(Debug)]
pub(crate) struct Series {
    pub(super) accepted: AtomicU64,
    /// In the order of [`REASONS`].
    pub(super) finished: [AtomicU64; 3],
    pub(super) cancelled: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) prompt_length: Histogram,
    pub(super) generated_length: Histogram,
    pub(super) queue: Histogram,
    pub(super) first_token: Histogram,
    pub(super) between_tokens: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) end_to_end: Histogram,
}

pub(super) const REASONS: [&str; 3] = ["length", "eos_token", "stop_sequence"];

/// How long the parts of a finished request took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timings {
    /// From the first step to the first token.
    pub(crate) prefill: Duration,
    /// From the first token to the last.
    pub(crate) decode: Duration,
    /// From arrival to the last token.
    pub(crate) end_to_end: Duration,
}

impl Series {
    pub(super) fn new() -> Self {
        let counter = || AtomicU64::new(0);
        Self {
            accepted: counter(),
            finished: [counter(), counter(), counter()],
            cancelled: counter(),
            prompt_tokens: counter(),
            cached_tokens: counter(),
            generated_tokens: counter(),
            prompt_length: Histogram::new(TOKENS),
            generated_length: Histogram::new(TOKENS),
            queue: Histogram::new(SECONDS),
            first_token: Histogram::new(SECONDS),
            between_tokens: Histogram::new(SECONDS),
            prefill: Histogram::new(SECONDS),
            decode: Histogram::new(SECONDS),
            end_to_end: Histogram::new(SECONDS),
        }
    }

    pub(crate) fn accepted(&self, prompt_tokens: usize) {
        self.accepted.fetch_add(1, Relaxed);
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        self.prompt_length.observe(prompt_tokens as f64);
    }

    pub(crate) fn started(&self, queued: Duration, cached_tokens: u32) {
        self.queue.observe_time(queued);
        self.cached_tokens.fetch_add(cached_tokens.into(), Relaxed);
    }

    /// `since_last` is measured from the request's arrival for the first token, and from the last token for
    /// the others.
    pub(crate) fn token(&self, first: bool, since_last: Duration) {
        self.generated_tokens.fetch_add(1, Relaxed);
        let histogram = if first { &self.first_token } else { &self.between_tokens };
        histogram.observe_time(since_last);
    }

    pub(crate) fn finished(&self, reason: FinishReason, generated_tokens: u32, timings: Timings) {
        let index = match reason {
            FinishReason::Length => 0,
            FinishReason::Eos => 1,
            FinishReason::StopSequence => 2,
        };
        self.finished[index].fetch_add(1, Relaxed);
        self.generated_length.observe(generated_tokens.into());
        self.prefill.observe_time(timings.prefill);
        self.decode.observe_time(timings.decode);
        self.end_to_end.observe_time(timings.end_to_end);
    }

    /// The client went away.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }
}
