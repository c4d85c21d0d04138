//! Refuses values that cannot work, alone or together, naming the flag, the value and the bound.

use std::time::Duration;

use super::{Adapters, Batching, Config, Http, LARGEST_LORA_RANK, Limits, Shards};

/// A value that contradicts another one or a fixed bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} is {given}, it must be {bound}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub given: String,
    pub bound: String,
}

type Checked = Result<(), ConfigError>;

impl Config {
    /// # Errors
    /// The first value that cannot work.
    pub fn check(&self) -> Checked {
        self.http.check()?;
        self.limits.check()?;
        self.batching.check()?;
        self.adapters.check(&self.model.model_id)?;
        self.shards.check()
    }
}

impl Http {
    fn check(&self) -> Checked {
        at_least("--max-body-bytes", self.max_body_bytes as u64, 1024)?;
        // Clients send some kilobytes.
        at_least("--max-header-bytes", self.max_header_bytes as u64, 8192)?;
        at_least("--max-connections", self.max_connections as u64, 1)?;
        more_than_zero("--header-timeout", self.header_timeout)?;
        more_than_zero("--body-timeout", self.body_timeout)?;
        more_than_zero("--write-timeout", self.write_timeout)?;
        let (lame_duck, drain) = (self.lame_duck_timeout, self.drain_timeout);
        refuse_if(
            lame_duck > drain,
            "--lame-duck-timeout",
            format!("{} seconds", lame_duck.as_secs_f64()),
            format!("at most {}, the value of --drain-timeout", drain.as_secs_f64()),
        )
    }
}

impl Limits {
    fn check(&self) -> Checked {
        at_least("--max-concurrent-requests", self.max_concurrent_requests as u64, 1)?;
        at_least("--max-best-of", self.max_best_of as u64, 1)?;
        at_least("--max-choices", self.max_choices as u64, 1)?;
        at_least("--validation-workers", self.validation_workers as u64, 1)?;
        at_least("--max-input-length", self.max_input_length.unwrap_or(1).into(), 1)?;
        at_least("--max-total-tokens", self.max_total_tokens.unwrap_or(2).into(), 2)?;
        if let (Some(input), Some(total)) = (self.max_input_length, self.max_total_tokens) {
            below("--max-input-length", input.into(), "--max-total-tokens", total.into())?;
        }
        more_than_zero("--request-timeout", self.request_timeout)
    }
}

impl Batching {
    fn check(&self) -> Checked {
        let (sequences, tokens) = (self.max_batch_size, self.max_batch_prefill_tokens);
        at_least("--max-batch-size", sequences.unwrap_or(1).into(), 1)?;
        at_least("--max-batch-prefill-tokens", tokens.unwrap_or(1).into(), 1)?;
        if let (Some(sequences), Some(tokens)) = (sequences, tokens) {
            at_most("--max-batch-size", sequences.into(), "--max-batch-prefill-tokens", tokens.into())?;
        }
        at_least("--max-waiting-requests", self.max_waiting_requests as u64, 1)?;
        at_least("--max-waiting-prompt-tokens", self.max_waiting_prompt_tokens as u64, 1)
    }
}

impl Adapters {
    fn check(&self, base: &str) -> Checked {
        at_least("--max-lora-rank", self.max_lora_rank.into(), 1)?;
        refuse_if(
            self.max_lora_rank > LARGEST_LORA_RANK,
            "--max-lora-rank",
            self.max_lora_rank.to_string(),
            format!("at most {LARGEST_LORA_RANK}, which the kernels are made for"),
        )?;
        let largest = self.max_adapter_bytes;
        at_most("--max-adapter-bytes", largest, "--adapter-host-bytes", self.adapter_host_bytes)?;
        at_most("--max-adapter-bytes", largest, "--adapter-disk-bytes", self.adapter_disk_bytes)?;
        at_least("--max-adapter-names", self.max_adapter_names as u64, 1)?;
        refuse_if(
            self.preloaded_adapter_ids.iter().any(|id| id == base),
            "an id of --preloaded-adapter-ids",
            base.to_owned(),
            "another name than --model-id, which is the base model's".to_owned(),
        )?;
        at_most(
            "the number of --preloaded-adapter-ids",
            self.preloaded_adapter_ids.len() as u64,
            "--max-adapter-names",
            self.max_adapter_names as u64,
        )?;
        more_than_zero("--adapter-load-timeout", self.adapter_load_timeout)
    }
}

impl Shards {
    fn check(&self) -> Checked {
        more_than_zero("--step-timeout", self.step_timeout)?;
        more_than_zero("--warmup-timeout", self.warmup_timeout)
    }
}

fn refuse_if(wrong: bool, flag: &'static str, given: String, bound: String) -> Checked {
    if wrong { Err(ConfigError { flag, given, bound }) } else { Ok(()) }
}

fn at_least(flag: &'static str, given: u64, bound: u64) -> Checked {
    refuse_if(given < bound, flag, given.to_string(), format!("at least {bound}"))
}

fn at_most(flag: &'static str, given: u64, other: &str, bound: u64) -> Checked {
    refuse_if(given > bound, flag, given.to_string(), format!("at most {bound}, the value of {other}"))
}

fn below(flag: &'static str, given: u64, other: &str, bound: u64) -> Checked {
    refuse_if(given >= bound, flag, given.to_string(), format!("less than {bound}, the value of {other}"))
}

fn more_than_zero(flag: &'static str, given: Duration) -> Checked {
    refuse_if(given.is_zero(), flag, "0".to_owned(), "more than 0 seconds".to_owned())
}
