//! The base model, as far as the router knows it.

use std::sync::{Arc, OnceLock};

/// What is known of the model once a shard has answered for the first time. It never changes after that.
#[derive(Clone, Default)]
pub struct ModelHandle(Arc<OnceLock<ModelInfo>>);

impl ModelHandle {
    /// `None` until a shard has answered.
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
    /// Unix seconds at which the model became known, for `created`.
    pub created: u64,
}
