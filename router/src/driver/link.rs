//! Getting the shards ready, and noticing when they are not any more.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use lorikeet_engine::EngineConfig;
use lorikeet_proto::v1::{InfoResponse, Step, StepResult, WarmupRequest, WarmupResponse};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::{
    adapters::{AdapterSource, Registry},
    clock::unix_time,
    config::{BLOCK_SIZE, Config, ConfigError, DEFAULT_TOTAL_TOKENS, MAX_STEPS_IN_FLIGHT},
    model::{ModelHandle, ModelInfo},
    shard::{Group, Lost, Session},
};

/// Between two signs of life.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A result this young is a sign of life.
const RECENT: Duration = Duration::from_secs(1);
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const LAST_BACK_OFF: Duration = Duration::from_secs(2);

/// Tokens in a step and sequences at once. On a CPU a prompt's token takes as long alone as among many, so
/// that a larger step gains nothing and only holds up the tokens of others: with 256 instead of 128 the p99
/// between tokens of 20 clients was 324 ms and not 172, at the same throughput (two cores, SmolLM2).
const CPU_SIZES: (u32, u32) = (128, 32);
const GPU_SIZES: (u32, u32) = (4096, 256);

/// The connection to the shards.
#[derive(Default)]
pub(super) enum Link {
    #[default]
    Down,
    Up(Box<Up>),
}

/// A session, watched.
pub(super) struct Up {
    group: Arc<Group>,
    session: Session,
    watch: BoxFuture<'static, Lost>,
    last_result: Option<Instant>,
}

/// Shards that can take steps.
pub(super) struct Ready {
    pub(super) up: Box<Up>,
    pub(super) engine: EngineConfig,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    /// They may be later.
    #[error("{0}")]
    Later(Box<Status>),
    /// Trying again is of no use.
    #[error("{0}")]
    Never(String),
}

impl From<Status> for NotReady {
    fn from(status: Status) -> Self {
        Self::Later(Box::new(status))
    }
}

impl From<ConfigError> for NotReady {
    fn from(error: ConfigError) -> Self {
        Self::Never(error.to_string())
    }
}

impl Up {
    fn new(group: &Arc<Group>) -> Self {
        let watch = watch(Arc::clone(group), PING_EVERY).boxed();
        Self { group: Arc::clone(group), session: group.open(), watch, last_result: None }
    }

    pub(super) fn send(&mut self, step: Step) -> Result<(), Lost> {
        self.session.send(step)
    }

    /// The next result, or why there will be none. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<StepResult, Lost> {
        loop {
            let lost = tokio::select! {
                biased;
                result = self.session.next() => {
                    self.last_result = Some(Instant::now());
                    return result;
                }
                lost = &mut self.watch => lost,
            };
            // A shard that computes with all cores may answer pings late. As long as it answers steps, it
            // lives.
            if self.last_result.is_none_or(|last| last.elapsed() > RECENT) {
                return Err(lost);
            }
            self.watch = watch(Arc::clone(&self.group), Duration::ZERO).boxed();
        }
    }

    /// When the oldest step in flight counts as never to be answered.
    pub(super) fn hung_at(&self, timeout: Duration) -> Option<Instant> {
        self.session.oldest_unanswered().map(|sent| sent + timeout)
    }

    pub(super) fn check(&self, timeout: Duration) -> Result<(), Lost> {
        match self.hung_at(timeout) {
            Some(at) if at <= Instant::now() => Err(Lost::Hung(timeout)),
            _ => Ok(()),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.session.oldest_unanswered().is_none()
    }
}

/// Ends when a rank shows no sign of life.
async fn watch(group: Arc<Group>, after: Duration) -> Lost {
    sleep(after).await;
    loop {
        if let Err(status) = group.ping().await {
            return Lost::Silent(status.message().to_owned());
        }
        sleep(PING_EVERY).await;
    }
}

/// How long to wait before the next attempt: doubling, and not in step with others.
pub(super) fn back_off(attempts: &mut u32) -> Duration {
    let wait = FIRST_BACK_OFF.saturating_mul(1 << (*attempts).min(8)).min(LAST_BACK_OFF);
    *attempts = attempts.saturating_add(1);
    wait.mul_f64(rand::random_range(0.75..1.25))
}

/// Brings all ranks to where they take steps.
pub(super) async fn connect(
    group: &Arc<Group>,
    registry: &Arc<Registry>,
    config: &Config,
    model: &ModelHandle,
) -> Result<Ready, NotReady> {
    let infos = group.meet().await?;
    let info = agreed(&infos)?;
    let request = sizes(config, info)?;
    tracing::info!(
        model = info.model_id,
        device = info.device_type,
        dtype = info.dtype,
        "warming up the shards"
    );
    let warmups = group.warmup(request, config.shards.warmup_timeout).await?;
    let engine = engine_config(config, info, &request, &warmups)?;
    let known = model_info(config, info, &request, &engine);
    let first = model.get().is_none();
    let kept = model.set(known.clone());
    if (&kept.base_digest, kept.vocab_size) != (&known.base_digest, known.vocab_size) {
        return Err(NotReady::Never("the shards came back with another model".into()));
    }
    tokio::select! {
        biased;
        lost = watch(Arc::clone(group), Duration::ZERO) => {
            return Err(NotReady::Later(Box::new(Status::unavailable(lost.to_string()))));
        }
        preloaded = preload(registry, &config.adapters.preloaded_adapter_ids, first) => preloaded?,
    }
    Ok(Ready { up: Box::new(Up::new(group)), engine })
}

/// What the ranks say of themselves, if it is the same.
fn agreed(infos: &[InfoResponse]) -> Result<&InfoResponse, NotReady> {
    let first = infos.first().ok_or_else(|| NotReady::Never("no shards".into()))?;
    for (rank, info) in infos.iter().enumerate() {
        if info.rank as usize != rank || info.world_size as usize != infos.len() {
            return Err(NotReady::Never(format!(
                "the shard at the place of rank {rank} of {} is rank {} of {} (--shard-socket)",
                infos.len(),
                info.rank,
                info.world_size
            )));
        }
        if info.base_digest != first.base_digest {
            return Err(NotReady::Never(format!("ranks 0 and {rank} serve different weights")));
        }
        // On several machines anything may differ.
        for (what, own, other) in [
            ("version", &first.version, &info.version),
            ("--dtype", &first.dtype, &info.dtype),
            ("--device", &first.device_type, &info.device_type),
        ] {
            if own != other {
                return Err(NotReady::Never(format!(
                    "{what} is {own} on rank 0 and {other} on rank {rank}, it must be the same on every machine"
                )));
            }
        }
    }
    Ok(first)
}

/// What to ask of the shards: the flags, or what suits the device.
fn sizes(config: &Config, info: &InfoResponse) -> Result<WarmupRequest, NotReady> {
    let (default_tokens, default_sequences) = if info.device_type == "cpu" { CPU_SIZES } else { GPU_SIZES };
    let batching = &config.batching;
    let (tokens, sequences) = match (batching.max_batch_prefill_tokens, batching.max_batch_size) {
        (Some(tokens), Some(sequences)) => (tokens, sequences),
        (Some(tokens), None) => (tokens, default_sequences.min(tokens)),
        (None, Some(sequences)) => (default_tokens.max(sequences), sequences),
        (None, None) => (default_tokens, default_sequences),
    };
    let context = info.max_position_embeddings;
    let total = config.limits.max_total_tokens.unwrap_or(context.min(DEFAULT_TOTAL_TOKENS));
    if total > context {
        let bound = format!("at most {context}, the model's context");
        return Err(ConfigError { flag: "--max-total-tokens", given: total.to_string(), bound }.into());
    }
    if let Some(input) = config.limits.max_input_length
        && input >= total
    {
        let bound = format!("less than {total}, the tokens of prompt and output together");
        return Err(ConfigError { flag: "--max-input-length", given: input.to_string(), bound }.into());
    }
    Ok(WarmupRequest {
        block_size: BLOCK_SIZE,
        max_sequences: sequences,
        max_step_tokens: tokens,
        adapter_slots: config.adapters.max_active_adapters,
        kv_bytes: batching.kv_cache_bytes,
        adapter_bytes: config.adapters.adapter_memory_bytes,
        max_sequence_tokens: total,
    })
}

/// The engine plans with what every rank has.
fn engine_config(
    config: &Config,
    info: &InfoResponse,
    request: &WarmupRequest,
    warmups: &[WarmupResponse],
) -> Result<EngineConfig, NotReady> {
    let num_blocks = warmups.iter().map(|warmup| warmup.num_blocks).min().unwrap_or(0);
    if num_blocks == 0 {
        return Err(NotReady::Never(
            "the KV cache has no blocks, give it more bytes (--kv-cache-bytes)".into(),
        ));
    }
    Ok(EngineConfig {
        block_size: request.block_size,
        num_blocks,
        max_sequences: request.max_sequences,
        max_step_tokens: request.max_step_tokens,
        adapter_slots: request.adapter_slots,
        adapter_bytes: warmups.iter().map(|warmup| warmup.adapter_bytes).min().unwrap_or(0),
        synchronous_moves: info.synchronous_moves,
        max_queued_requests: config.batching.max_waiting_requests,
        max_queued_tokens: config.batching.max_waiting_prompt_tokens,
        max_steps_in_flight: MAX_STEPS_IN_FLIGHT,
        prefix_cache: !config.batching.disable_prefix_cache,
    })
}

fn model_info(
    config: &Config,
    info: &InfoResponse,
    request: &WarmupRequest,
    engine: &EngineConfig,
) -> ModelInfo {
    let kv_tokens = u64::from(engine.num_blocks) * u64::from(engine.block_size);
    // One sequence can have no more than the whole KV cache.
    let total = request.max_sequence_tokens.min(u32::try_from(kv_tokens).unwrap_or(u32::MAX));
    let input = config.limits.max_input_length.unwrap_or(DEFAULT_TOTAL_TOKENS - 1);
    ModelInfo {
        base_digest: info.base_digest.clone(),
        dtype: info.dtype.clone(),
        device_type: info.device_type.clone(),
        architecture: info.architecture.clone(),
        vocab_size: info.vocab_size,
        max_input_tokens: input.min(total.saturating_sub(1)),
        max_total_tokens: total,
        max_step_tokens: request.max_step_tokens,
        max_sequences: request.max_sequences,
        kv_tokens,
        max_active_adapters: engine.adapter_slots,
        adapter_bytes: engine.adapter_bytes,
        world_size: info.world_size,
        lora_targets: info.lora_targets.clone(),
        created: unix_time().as_secs(),
    }
}

/// Stages the adapters that must be there from the start. One that cannot be had stops the start, but not a
/// server that has been serving.
async fn preload(registry: &Arc<Registry>, ids: &[String], first: bool) -> Result<(), NotReady> {
    for id in ids {
        match registry.resolve(id, AdapterSource::Local).await {
            Ok(_) => {}
            Err(error) if first => return Err(NotReady::Never(format!("--preloaded-adapter-ids: {error}"))),
            Err(error) => tracing::warn!(adapter = id, %error, "cannot load a preloaded adapter again"),
        }
    }
    Ok(())
}
