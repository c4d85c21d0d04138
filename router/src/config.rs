//! Everything that can be set: flags and environment, read once into a tree of plain values.
//!
//! Names are LoRAX's where they mean the same. No other module reads the environment.

mod check;

use std::{path::PathBuf, time::Duration};

use clap::{Args, builder::BoolishValueParser};

pub use self::check::ConfigError;
use crate::{adapters::name, error::Invalid};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Steps sent to the shards and not yet answered, at most. The protocol allows two.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;
/// Tokens of prompt and output together, unless a flag says more or the model's context has fewer.
pub const DEFAULT_TOTAL_TOKENS: u32 = 4096;
/// Tokens per KV block.
pub const BLOCK_SIZE: u32 = 16;
/// Entries of one `logit_bias`.
pub const MAX_BIAS: usize = 1024;
/// What the kernels are made for.
const LARGEST_LORA_RANK: u32 = 512;

/// The router's configuration. `Config::check` must have passed.
#[derive(Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    pub http: Http,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub batching: Batching,
    #[command(flatten)]
    pub adapters: Adapters,
    #[command(flatten)]
    pub model: Model,
    #[command(flatten)]
    pub shards: Shards,
    #[command(flatten)]
    pub telemetry: Telemetry,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct Http {
    /// Address to listen on
    #[arg(long, env = "LORIKEET_HOSTNAME", default_value = "127.0.0.1")]
    pub hostname: String,
    /// Port to listen on
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,
    /// Origin that browsers may call from; repeatable, `*` for any. Without it, no CORS headers are sent
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,
    /// Largest request body
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 4 << 20)]
    pub max_body_bytes: usize,
    /// Bytes of a request's line and headers; more is answered with 431
    #[arg(long, env = "MAX_HEADER_BYTES", default_value_t = 64 << 10)]
    pub max_header_bytes: usize,
    /// Connections open at once; further ones wait to be accepted
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 8192)]
    pub max_connections: usize,
    /// Seconds within which a request's headers must arrive, and an idle connection is closed
    #[arg(long, env = "HEADER_TIMEOUT", default_value = "15", value_parser = seconds)]
    pub header_timeout: Duration,
    /// Seconds within which a request's body must arrive
    #[arg(long, env = "BODY_TIMEOUT", default_value = "15", value_parser = seconds)]
    pub body_timeout: Duration,
    /// Seconds after which a connection is cut whose client takes nothing of a response
    #[arg(long, env = "WRITE_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub write_timeout: Duration,
    /// Seconds that requests in flight are given to finish once the server is told to stop
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "30", value_parser = seconds)]
    pub drain_timeout: Duration,
    /// Seconds of these in which new requests are still taken, for a balancer to notice that the server is
    /// not ready
    #[arg(long, env = "LAME_DUCK_TIMEOUT", default_value = "1", value_parser = seconds)]
    pub lame_duck_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Requests in the server at once, from validation to the last token; more are answered with 429
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 1024)]
    pub max_concurrent_requests: usize,
    /// Largest `best_of`
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 2)]
    pub max_best_of: usize,
    /// Largest `n`
    #[arg(long, env = "MAX_CHOICES", default_value_t = 16)]
    pub max_choices: usize,
    /// Stop sequences of one request
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 4)]
    pub max_stop_sequences: usize,
    /// Alternatives with each token of one request
    #[arg(long, env = "MAX_ALTERNATIVES", default_value_t = 20)]
    pub max_alternatives: u32,
    /// Tokens of a prompt [default: the model's context less one, at most 4095]
    #[arg(long, env = "MAX_INPUT_LENGTH")]
    pub max_input_length: Option<u32>,
    /// Tokens of prompt and output together [default: the model's context, at most 4096]
    #[arg(long, env = "MAX_TOTAL_TOKENS")]
    pub max_total_tokens: Option<u32>,
    /// Bytes of a prompt, checked before it is tokenised [default: 16 for each token of --max-input-length]
    #[arg(long, env = "MAX_PROMPT_BYTES")]
    pub max_prompt_bytes: Option<usize>,
    /// Seconds a request may take, from its arrival to its last token
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "600", value_parser = seconds)]
    pub request_timeout: Duration,
    /// Threads that render chat templates and tokenise
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2)]
    pub validation_workers: usize,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Batching")]
pub struct Batching {
    /// Tokens in one step, decodes and prefill chunks together [default: 128 on a CPU, 4096 on a GPU]
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS")]
    pub max_batch_prefill_tokens: Option<u32>,
    /// Sequences that run at once [default: 32 on a CPU, 256 on a GPU]
    #[arg(long, env = "MAX_BATCH_SIZE")]
    pub max_batch_size: Option<u32>,
    /// Bytes of the KV cache on each shard; 0: what the device has left
    #[arg(long, env = "KV_CACHE_BYTES", default_value_t = 0)]
    pub kv_cache_bytes: u64,
    /// Requests that wait for their first step; more are answered with 429
    #[arg(long, env = "MAX_WAITING_REQUESTS", default_value_t = 512)]
    pub max_waiting_requests: usize,
    /// Prompt tokens of the requests that wait; more are answered with 429
    #[arg(long, env = "MAX_WAITING_PROMPT_TOKENS", default_value_t = 1 << 20)]
    pub max_waiting_prompt_tokens: usize,
    /// Compute every prompt from its first token, whatever is in the KV cache
    #[arg(long, env = "DISABLE_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    pub disable_prefix_cache: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Adapters")]
pub struct Adapters {
    /// Directory whose adapters are listed; repeatable. The shards decide what may be loaded
    #[arg(long, env = "ADAPTER_ROOT", value_name = "DIR", value_delimiter = ',')]
    pub adapter_root: Vec<PathBuf>,
    /// Adapters on the device at once
    #[arg(long, env = "MAX_ACTIVE_ADAPTERS", default_value_t = 128)]
    pub max_active_adapters: u32,
    /// Bytes of adapters on each device; 0: the shard's default share
    #[arg(long, env = "ADAPTER_MEMORY_BYTES", default_value_t = 0)]
    pub adapter_memory_bytes: u64,
    /// Bytes of adapters in host memory, all shards together
    #[arg(long, env = "ADAPTER_HOST_BYTES", default_value_t = 4 * GIB)]
    pub adapter_host_bytes: u64,
    /// Bytes of adapters in the store on disk
    #[arg(long, env = "ADAPTER_DISK_BYTES", default_value_t = 64 * GIB)]
    pub adapter_disk_bytes: u64,
    /// Bytes of the largest adapter that is accepted
    #[arg(long, env = "MAX_ADAPTER_BYTES", default_value_t = 2048 * MIB)]
    pub max_adapter_bytes: u64,
    /// Largest rank of an adapter that is accepted; a GPU sets memory aside for it. The shards decide
    #[arg(long, env = "MAX_LORA_RANK", default_value_t = LARGEST_LORA_RANK)]
    pub max_lora_rank: u32,
    /// Seconds an adapter may take from its first request to host memory
    #[arg(long, env = "ADAPTER_LOAD_TIMEOUT", default_value = "60", value_parser = seconds)]
    pub adapter_load_timeout: Duration,
    /// Seconds that a failed adapter is answered from memory before it is tried again; less than 0.1 is 0.1
    #[arg(long, env = "ADAPTER_FAILURE_TTL", default_value = "10", value_parser = seconds)]
    pub adapter_failure_ttl: Duration,
    /// Adapter names remembered at once, with their digests; past it the longest unused is forgotten
    #[arg(long, env = "MAX_ADAPTER_NAMES", default_value_t = 20_000)]
    pub max_adapter_names: usize,
    /// Adapters that load before the server is ready
    #[arg(long, env = "PRELOADED_ADAPTER_IDS", value_delimiter = ',', value_parser = adapter_id)]
    pub preloaded_adapter_ids: Vec<String>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct Model {
    /// Name of the base model, as clients write it
    #[arg(long, env = "MODEL_ID")]
    pub model_id: String,
    /// Directory with tokenizer.json and the model's JSON configuration
    #[arg(long, env = "TOKENIZER_PATH")]
    pub tokenizer_path: PathBuf,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Shards")]
pub struct Shards {
    /// Unix socket of a shard on this machine; repeatable, in the order of the ranks. Rank 0 tells where those
    /// of other machines are
    #[arg(long, env = "SHARD_SOCKET", required = true, value_delimiter = ',')]
    pub shard_socket: Vec<PathBuf>,
    /// Seconds a step may take before the shards count as hung
    #[arg(long, env = "STEP_TIMEOUT", default_value = "120", value_parser = seconds)]
    pub step_timeout: Duration,
    /// Seconds that sizing memory and running the kernels once may take
    #[arg(long, env = "WARMUP_TIMEOUT", default_value = "600", value_parser = seconds)]
    pub warmup_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
pub struct Telemetry {
    /// Write one JSON object per log record
    #[arg(long, env = "JSON_OUTPUT", value_parser = BoolishValueParser::new())]
    pub json_output: bool,
    /// Leave out the metrics under vLLM's names, which gateways and dashboards read
    #[arg(long, env = "DISABLE_VLLM_METRICS", value_parser = BoolishValueParser::new())]
    pub disable_vllm_metrics: bool,
    /// Adapters that have metrics of their own; the others share the label `(other)`
    #[arg(long, env = "MAX_ADAPTER_LABELS", default_value_t = 100)]
    pub max_adapter_labels: usize,
}

/// A year: what is to end never ends after it, and times can be added to it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Parses a flag that is a number of seconds.
///
/// # Errors
/// What was expected.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(format!("expected a number of seconds from 0 to {}", LONGEST.as_secs())),
    }
}

fn adapter_id(text: &str) -> Result<String, Invalid> {
    name::check(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(flags: &[&str]) -> Config {
        let required = ["router", "--model-id", "m", "--tokenizer-path", "t", "--shard-socket", "s"];
        Cli::parse_from(required.iter().chain(flags)).config
    }

    #[test]
    fn the_defaults_pass() {
        parse(&[]).check().unwrap();
    }

    #[test]
    fn contradictions_name_flag_value_and_bound() {
        for (flags, message) in [
            (
                &["--max-input-length", "10", "--max-total-tokens", "10"][..],
                "--max-input-length is 10, it must be less than 10, the value of --max-total-tokens",
            ),
            (&["--max-total-tokens", "1"], "--max-total-tokens is 1, it must be at least 2"),
            (
                &["--max-batch-size", "9", "--max-batch-prefill-tokens", "8"],
                "--max-batch-size is 9, it must be at most 8, the value of --max-batch-prefill-tokens",
            ),
            (
                &["--max-adapter-bytes", "9", "--adapter-host-bytes", "8"],
                "--max-adapter-bytes is 9, it must be at most 8, the value of --adapter-host-bytes",
            ),
            (&["--max-lora-rank", "0"], "--max-lora-rank is 0, it must be at least 1"),
            (
                &["--max-lora-rank", "513"],
                "--max-lora-rank is 513, it must be at most 512, which the kernels are made for",
            ),
            (&["--validation-workers", "0"], "--validation-workers is 0, it must be at least 1"),
            (
                &["--preloaded-adapter-ids", "a,m"],
                "an id of --preloaded-adapter-ids is m, it must be another name than --model-id, which is the base \
                 model's",
            ),
            (&["--request-timeout", "0"], "--request-timeout is 0, it must be more than 0 seconds"),
        ] {
            assert_eq!(parse(flags).check().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn nonsense_is_refused_by_the_parser() {
        for flags in [
            ["--port", "70000"],
            ["--drain-timeout", "-1"],
            ["--request-timeout", "soon"],
            ["--nonsense", "1"],
            ["--preloaded-adapter-ids", ""],
            ["--preloaded-adapter-ids", "a, b"],
        ] {
            let required = ["router", "--model-id", "m", "--tokenizer-path", "t", "--shard-socket", "s"];
            assert!(Cli::try_parse_from(required.iter().chain(&flags)).is_err(), "{flags:?}");
        }
    }
}
