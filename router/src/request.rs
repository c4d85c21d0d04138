//! What every API dialect translates into.

use std::sync::Arc;

use crate::adapters::AdapterSource;

/// A request, before validation. Field meanings and bounds: `validate::params`.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt: Prompt,
    pub adapter: AdapterRef,
    pub params: Params,
    /// The `x-request-id` of the HTTP request, for logs.
    pub request_id: Arc<str>,
}

/// What the request continues.
#[derive(Clone, Debug)]
pub enum Prompt {
    Text {
        text: String,
        add_special_tokens: bool,
    },
    Tokens(Vec<u32>),
    /// Messages as the chat template sees them; rendered and tokenised on the worker pool.
    Chat {
        messages: serde_json::Value,
        tools: Option<serde_json::Value>,
        add_generation_prompt: bool,
    },
}

/// Which weights the request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdapterRef {
    #[default]
    Base,
    /// An adapter that may not exist, by the name that the client wrote.
    Named { id: String, source: AdapterSource },
}

/// Sampling and stopping parameters as the caller gave them; `None` is the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    pub max_new_tokens: Option<u32>,
    pub do_sample: bool,
    pub temperature: Option<f32>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    /// Token ids, each with what is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    /// Whether the text of a stop string is part of the output (native routes) or not (OpenAI).
    pub include_stop: bool,
    pub ignore_eos_token: bool,
    /// Tokens of the prompt's end that are kept.
    pub truncate: Option<u64>,
    /// Alternatives with each generated token.
    pub top_logprobs: Option<i64>,
    /// Log-probabilities of the prompt, with this many alternatives.
    pub prompt_logprobs: Option<u32>,
}

impl Params {
    /// Whether sampling is asked for. Any of its parameters asks for it.
    pub fn samples(&self) -> bool {
        self.do_sample
            || self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.typical_p.is_some()
    }
}
