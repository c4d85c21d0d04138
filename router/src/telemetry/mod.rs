//! Metrics. Names, units, labels and help are declared here only; the rest of the router calls functions.

use crate::error::Error;

pub struct Metrics {}

impl Metrics {
    /// The text that `/metrics` answers, in the OpenMetrics format ([`Metrics::CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        String::new()
    }

    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// A request that was refused by the API layer. What fails within `Infer::generate` or a `Generation` is counted
    /// there.
    pub fn rejected(&self, _error: &Error) {}
}
