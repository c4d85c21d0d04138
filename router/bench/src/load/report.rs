//! The figures of a load.

use std::{fmt::Write, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::drive::Outcome;

/// Different messages of failed requests that a report repeats.
const MESSAGES: usize = 3;

/// Times are milliseconds. A percentile of nothing is 0.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub requests: usize,
    pub errors: usize,
    pub seconds: f64,
    pub requests_per_second: f64,
    /// Generated.
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// From the request to its first token.
    pub ttft_p50_ms: f64,
    pub ttft_p99_ms: f64,
    /// Between one token and the next.
    pub itl_p50_ms: f64,
    pub itl_p99_ms: f64,
    /// Of a whole request.
    pub latency_p50_ms: f64,
    pub latency_p99_ms: f64,
    pub error_messages: Vec<String>,
}

impl Report {
    pub(super) fn new(outcome: &Outcome) -> Self {
        let (mut first, mut between, mut whole) = (Times::new(), Times::new(), Times::new());
        for sample in &outcome.samples {
            whole.record(sample.end - sample.start);
            if let Some(at) = sample.tokens_at.first() {
                first.record(*at - sample.start);
            }
            for pair in sample.tokens_at.windows(2) {
                between.record(pair[1] - pair[0]);
            }
        }
        let seconds = outcome.elapsed.as_secs_f64();
        let tokens = outcome.samples.iter().map(|sample| sample.tokens).sum();
        let mut error_messages = outcome.errors.clone();
        error_messages.sort_unstable();
        error_messages.dedup();
        error_messages.truncate(MESSAGES);
        Self {
            requests: outcome.samples.len() + outcome.errors.len(),
            errors: outcome.errors.len(),
            seconds,
            requests_per_second: outcome.samples.len() as f64 / seconds,
            tokens,
            tokens_per_second: tokens as f64 / seconds,
            ttft_p50_ms: first.percentile(50.0),
            ttft_p99_ms: first.percentile(99.0),
            itl_p50_ms: between.percentile(50.0),
            itl_p99_ms: between.percentile(99.0),
            latency_p50_ms: whole.percentile(50.0),
            latency_p99_ms: whole.percentile(99.0),
            error_messages,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, value: String| {
            // Writing into a string cannot fail.
            let _ = writeln!(table, "{name:<26}{value:>12}");
        };
        row("requests", self.requests.to_string());
        row("errors", self.errors.to_string());
        row("seconds", format!("{:.2}", self.seconds));
        row("requests per second", format!("{:.2}", self.requests_per_second));
        row("tokens", self.tokens.to_string());
        row("tokens per second", format!("{:.1}", self.tokens_per_second));
        for (name, p50, p99) in [
            ("time to first token", self.ttft_p50_ms, self.ttft_p99_ms),
            ("time between tokens", self.itl_p50_ms, self.itl_p99_ms),
            ("request", self.latency_p50_ms, self.latency_p99_ms),
        ] {
            row(&format!("{name} p50"), format!("{p50:.2} ms"));
            row(&format!("{name} p99"), format!("{p99:.2} ms"));
        }
        for message in &self.error_messages {
            let _ = writeln!(table, "error: {message}");
        }
        table
    }
}

/// Microseconds up to an hour, to three digits.
struct Times(Option<Histogram<u64>>);

impl Times {
    fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 3_600_000_000, 3).ok())
    }

    fn record(&mut self, time: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(time.as_micros() as u64);
        }
    }

    fn percentile(&self, percentile: f64) -> f64 {
        self.0.as_ref().map_or(0.0, |histogram| histogram.value_at_percentile(percentile) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::load::client::Sample;

    #[test]
    fn figures_follow_from_the_samples() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample = Sample { start, tokens_at: vec![at(100), at(110), at(120)], end: at(125), tokens: 3 };
        let errors = vec!["b".to_owned(), "a".to_owned(), "b".to_owned()];
        let report = Report::new(&Outcome { elapsed: Duration::from_secs(2), samples: vec![sample], errors });
        assert_eq!((report.requests, report.errors, report.tokens), (4, 3, 3));
        assert!((report.tokens_per_second - 1.5).abs() < 1e-9);
        let near = |value: f64, expected: f64| (value - expected).abs() < 0.2;
        assert!(
            near(report.ttft_p50_ms, 100.0)
                && near(report.itl_p99_ms, 10.0)
                && near(report.latency_p50_ms, 125.0)
        );
        assert_eq!(report.error_messages, ["a", "b"]);
        assert!(report.table().contains("tokens per second                  1.5"), "{}", report.table());
    }
}
