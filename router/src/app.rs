//! What every handler shares.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::{adapters::Registry, config::Config, infer::Infer, telemetry::Metrics, validate::Validator};

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

/// Whether the server can take traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// The shards have not been ready yet.
    #[default]
    Starting,
    Ready,
    /// The shards were lost and are being connected again.
    ShardLost,
    /// The server was told to stop.
    Draining,
}

/// What is known of the model once a shard has answered for the first time. It never changes after that.
#[derive(Clone, Default)]
pub struct ModelHandle(Arc<OnceLock<ModelInfo>>);

impl ModelHandle {
    pub fn get(&self) -> Option<&ModelInfo> {
        self.0.get()
    }

    /// Keeps what was set first.
    pub fn set(&self, info: ModelInfo) -> &ModelInfo {
        self.0.get_or_init(|| info)
    }
}

/// The base model and the bounds that follow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub model_id: String,
    pub base_digest: String,
    /// `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// `cpu` or `cuda`.
    pub device_type: String,
    pub architecture: String,
    pub vocab_size: u32,
    /// Tokens of a prompt, at most.
    pub max_input_tokens: u32,
    /// Tokens of prompt and output together, at most.
    pub max_total_tokens: u32,
    /// Tokens in one step.
    pub max_step_tokens: u32,
    /// Sequences that run at once.
    pub max_sequences: u32,
    /// Tokens that the KV cache holds.
    pub kv_tokens: u64,
    pub max_active_adapters: u32,
    /// Bytes of adapters on one device.
    pub adapter_bytes: u64,
    pub world_size: u32,
    /// Names of the modules that adapters may target.
    pub lora_targets: Vec<String>,
    pub shard_version: String,
    /// Unix seconds at which the model became known, for `created`.
    pub created: u64,
}
