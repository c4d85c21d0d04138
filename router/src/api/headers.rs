//! The response headers that LoRAX sends beside a generation.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::collect::Completed;
use crate::{adapters::source_name, app::AppState, request::AdapterRef};

/// What the headers of a stream say already before its first token.
pub(super) struct Compute {
    start: Instant,
    device: &'static str,
    model_id: String,
    adapter: AdapterRef,
    /// Of the prompt as the client sent it.
    characters: usize,
}

impl Compute {
    pub(super) fn start(state: &AppState, adapter: AdapterRef, characters: usize) -> Self {
        let cpu = state.model.get().is_some_and(|model| model.device_type == "cpu");
        Self {
            start: Instant::now(),
            device: if cpu { "cpu+optimized" } else { "gpu+optimized" },
            model_id: state.config.model.model_id.clone(),
            adapter,
            characters,
        }
    }

    pub(super) fn stream_headers(&self) -> HeaderMap {
        let mut headers = Headers(HeaderMap::with_capacity(8));
        headers.text("x-compute-type", self.device);
        headers.number("x-compute-characters", self.characters as u64);
        headers.text("x-accel-buffering", "no");
        self.names(&mut headers);
        headers.0
    }

    /// The headers of a whole answer, its times from the sequence that took longest. All times are
    /// milliseconds.
    pub(super) fn headers(
        &self,
        completed: &[Completed],
        prompt_tokens: u64,
        generated_tokens: u64,
    ) -> HeaderMap {
        let longest = |of: fn(&Completed) -> Duration| completed.iter().map(of).max().unwrap_or_default();
        let total = self.start.elapsed();
        let inference = longest(|c| c.inference);
        let first_token =
            completed.iter().map(|c| c.first_token).min().map_or(total, |first| first - self.start);
        let tokens = completed.iter().map(|c| c.generated_tokens).max().unwrap_or(0);
        let after_first = total.saturating_sub(first_token);

        let mut headers = Headers(HeaderMap::with_capacity(20));
        headers.text("x-compute-type", self.device);
        headers.time("x-compute-time", total);
        headers.number("x-compute-characters", self.characters as u64);
        headers.time("x-total-time", total);
        headers.number("x-prompt-tokens", prompt_tokens);
        headers.number("x-generated-tokens", generated_tokens);
        headers.number("x-skipped-tokens", 0);
        headers.number("x-total-tokens", prompt_tokens + generated_tokens);
        headers.time("x-validation-time", longest(|c| c.info.validation));
        headers.time("x-queue-time", longest(|c| c.queued));
        headers.time("x-inference-time", inference);
        headers.time("x-time-per-token", inference / tokens.max(1));
        headers.time("x-time-to-first-token", first_token);
        headers.time("x-time-per-output-token", after_first / tokens.saturating_sub(1).max(1));
        self.names(&mut headers);
        headers.0
    }

    fn names(&self, headers: &mut Headers) {
        headers.text("x-model-id", &self.model_id);
        if let AdapterRef::Named { id, source } = &self.adapter {
            headers.text("x-adapter-id", id);
            headers.text("x-adapter-source", source_name(*source));
        }
    }
}

struct Headers(HeaderMap);

impl Headers {
    /// A value that cannot stand in a header is left out: it never adds one, and never fails the answer.
    fn text(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.insert(HeaderName::from_static(name), value);
        }
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.0.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }

    fn time(&mut self, name: &'static str, value: Duration) {
        self.number(name, value.as_millis() as u64);
    }
}
