//! Metrics. Names, units, labels and help are declared here only; the rest of the router calls functions.

mod engine;
mod exposition;
mod histogram;
mod log_writer;
mod series;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use engine::EngineSnapshot;
use histogram::{Histogram, SECONDS};
pub use log_writer::LogWriter;
use parking_lot::Mutex;
pub(crate) use series::{Series, Timings};

use crate::{config, error::Error};

/// Everything the router counts. One per router.
#[derive(Debug)]
pub struct Metrics {
    config: config::Telemetry,
    /// What vLLM's dashboards select by.
    model_id: String,
    /// By adapter, the first so many that asked; the rest share `other`.
    series: Mutex<BTreeMap<Arc<str>, Arc<Series>>>,
    base: Arc<Series>,
    other: Arc<Series>,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    validation: Histogram,
    fetches: Histogram,
    stagings: Histogram,
    adapter_failures: AtomicU64,
    host_drops: AtomicU64,
    store_drops: AtomicU64,
    steps: Histogram,
    shard_losses: AtomicU64,
    engine: Mutex<Arc<EngineSnapshot>>,
}

impl Metrics {
    /// What [`Metrics::encode`] writes.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    pub fn new(config: config::Telemetry, model_id: String) -> Self {
        Self {
            config,
            model_id,
            series: Mutex::default(),
            base: Arc::new(Series::new()),
            other: Arc::new(Series::new()),
            failures: Mutex::default(),
            validation: Histogram::new(SECONDS),
            fetches: Histogram::new(SECONDS),
            stagings: Histogram::new(SECONDS),
            adapter_failures: AtomicU64::new(0),
            host_drops: AtomicU64::new(0),
            store_drops: AtomicU64::new(0),
            steps: Histogram::new(SECONDS),
            shard_losses: AtomicU64::new(0),
            engine: Mutex::default(),
        }
    }

    /// A request that was refused by the API layer. What fails within `Infer::generate` or a `Generation` is
    /// counted there.
    pub fn rejected(&self, error: &Error) {
        *self.failures.lock().entry(error.info().metric_label).or_default() += 1;
    }

    /// The series of an adapter; `None` is the base model. Looked up once per request.
    pub(crate) fn series(&self, adapter: Option<&str>) -> Arc<Series> {
        let Some(adapter) = adapter else { return Arc::clone(&self.base) };
        let mut series = self.series.lock();
        if let Some(known) = series.get(adapter) {
            return Arc::clone(known);
        }
        if series.len() >= self.config.max_adapter_labels {
            return Arc::clone(&self.other);
        }
        let new = Arc::new(Series::new());
        series.insert(adapter.into(), Arc::clone(&new));
        new
    }

    pub(crate) fn validated(&self, time: Duration) {
        self.validation.observe_time(time);
    }

    pub(crate) fn adapter_fetched(&self, time: Duration) {
        self.fetches.observe_time(time);
    }

    pub(crate) fn adapter_staged(&self, time: Duration) {
        self.stagings.observe_time(time);
    }

    pub(crate) fn adapter_failed(&self) {
        self.adapter_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn adapter_dropped(&self, from_store: bool) {
        let drops = if from_store { &self.store_drops } else { &self.host_drops };
        drops.fetch_add(1, Relaxed);
    }

    pub(crate) fn step_computed(&self, time: Duration) {
        self.steps.observe_time(time);
    }

    pub(crate) fn shard_lost(&self) {
        self.shard_losses.fetch_add(1, Relaxed);
    }

    pub(crate) fn set_engine(&self, snapshot: EngineSnapshot) {
        *self.engine.lock() = Arc::new(snapshot);
    }

    /// The engine's numbers, at most a tenth of a second old; exact when nothing runs.
    pub fn engine(&self) -> Arc<EngineSnapshot> {
        Arc::clone(&self.engine.lock())
    }
}
