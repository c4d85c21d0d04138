//! What every handler shares.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    adapters::Registry, config::Config, infer::Infer, model::ModelHandle, readiness::Readiness,
    telemetry::Metrics, validate::Validator,
};

/// Shared by every handler; cloning is cheap.
#[derive(Clone)]
pub struct AppState {
    pub config: Arc<Config>,
    pub infer: Infer,
    /// The tokenizer and chat template, on their worker pool.
    pub validator: Validator,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub model: ModelHandle,
    pub readiness: watch::Receiver<Readiness>,
}

impl AppState {
    /// Whether the server can take traffic now.
    pub fn is_ready(&self) -> bool {
        *self.readiness.borrow() == Readiness::Ready
    }
}
