//! `/info`: what is served, and within which bounds. LoRAX's keys, and what it does not say about adapters.

use axum::{Json as JsonBody, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;

#[derive(Serialize, ToSchema)]
pub struct Info {
    pub model_id: String,
    /// Digest of the base weights. This and the other values of the model are null until a shard has answered.
    #[schema(required)]
    pub model_sha: Option<String>,
    #[schema(required)]
    pub model_dtype: Option<String>,
    #[schema(required)]
    pub model_device_type: Option<String>,
    #[schema(required)]
    pub model_pipeline_tag: Option<String>,
    pub max_concurrent_requests: usize,
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    #[schema(required)]
    pub max_input_length: Option<u32>,
    #[schema(required)]
    pub max_total_tokens: Option<u32>,
    /// LoRAX's; nothing here waits for a ratio.
    #[schema(required)]
    pub waiting_served_ratio: Option<f32>,
    /// Tokens that the KV cache holds.
    #[schema(required)]
    pub max_batch_total_tokens: Option<u64>,
    /// LoRAX's; a prompt joins the next step.
    #[schema(required)]
    pub max_waiting_tokens: Option<u32>,
    pub validation_workers: usize,
    pub eager_prefill: bool,
    pub version: String,
    #[schema(required)]
    pub sha: Option<String>,
    #[schema(required)]
    pub docker_label: Option<String>,
    /// Always null: a log's address is nobody's business.
    #[schema(required)]
    pub request_logger_url: Option<String>,
    #[schema(required)]
    pub architecture: Option<String>,
    /// Shards that hold the model together.
    #[schema(required)]
    pub world_size: Option<u32>,
    /// Tokens in one step.
    #[schema(required)]
    pub max_step_tokens: Option<u32>,
    /// Sequences that run at once.
    #[schema(required)]
    pub max_sequences: Option<u32>,
    #[schema(required)]
    pub max_active_adapters: Option<u32>,
    /// Bytes of adapters on one device.
    #[schema(required)]
    pub adapter_memory_bytes: Option<u64>,
    pub adapter_host_bytes: u64,
    pub max_adapter_bytes: u64,
    pub max_lora_rank: u32,
    /// SHA-256 of what lies below the adapter roots: of each adapter in the order of their names the name, its
    /// `adapter_config.json`, and of `adapter_model.safetensors` the size, the first 64 KiB (with the header) and the
    /// last 4 KiB. Equal on replicas that bring the same adapters when they are first asked for; one that was asked for
    /// before keeps the bytes it had then. Null until the disk has been read.
    #[schema(required)]
    pub adapter_registry_sha: Option<String>,
    /// Modules that adapters may target.
    pub lora_targets: Vec<String>,
}

/// What is served, and within which bounds
#[utoipa::path(get, path = "/info", tag = "Server", responses((status = 200, body = Info)))]
pub async fn info(State(state): State<AppState>) -> JsonBody<Info> {
    let (config, model) = (&state.config, state.model.get());
    let contents = state.registry.catalogue.contents.now().await;
    JsonBody(Info {
        model_id: config.model.model_id.clone(),
        model_sha: model.map(|model| model.base_digest.clone()),
        model_dtype: model.map(|model| model.dtype.clone()),
        model_device_type: model.map(|model| model.device_type.clone()),
        model_pipeline_tag: Some("text-generation".to_owned()),
        max_concurrent_requests: config.limits.max_concurrent_requests,
        max_best_of: config.limits.max_best_of,
        max_stop_sequences: config.limits.max_stop_sequences,
        max_input_length: model.map(|model| model.max_input_tokens),
        max_total_tokens: model.map(|model| model.max_total_tokens),
        waiting_served_ratio: None,
        max_batch_total_tokens: model.map(|model| model.kv_tokens),
        max_waiting_tokens: None,
        validation_workers: config.limits.validation_workers,
        eager_prefill: true,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha: None,
        docker_label: None,
        request_logger_url: None,
        architecture: model.map(|model| model.architecture.clone()),
        world_size: model.map(|model| model.world_size),
        max_step_tokens: model.map(|model| model.max_step_tokens),
        max_sequences: model.map(|model| model.max_sequences),
        max_active_adapters: model.map(|model| model.max_active_adapters),
        adapter_memory_bytes: model.map(|model| model.adapter_bytes),
        adapter_host_bytes: config.adapters.adapter_host_bytes,
        max_adapter_bytes: config.adapters.max_adapter_bytes,
        max_lora_rank: config.adapters.max_lora_rank,
        adapter_registry_sha: contents.map(|contents| contents.sha()),
        lora_targets: model.map(|model| model.lora_targets.clone()).unwrap_or_default(),
    })
}
