//! What every API dialect translates into, and what it gets back.

use std::{sync::Arc, time::Duration};

/// A request, before validation. Field meanings and bounds: `validate::params`.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt: Prompt,
    pub adapter: AdapterRef,
    pub params: Params,
    /// The `x-request-id` of the HTTP request, for logs.
    pub request_id: Arc<str>,
}

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
    Named {
        id: String,
        source: AdapterSource,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterSource {
    Local,
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
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    /// Whether the text of a stop string is part of the output (native routes) or not (OpenAI).
    pub include_stop: bool,
    pub ignore_eos_token: bool,
    pub truncate: Option<u64>,
    /// Alternatives with each generated token.
    pub top_logprobs: Option<i64>,
    /// Log-probabilities of the prompt, with this many alternatives.
    pub prompt_logprobs: Option<u32>,
}

/// What is known of an accepted request before its first token.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    pub prompt_tokens: u32,
    /// `None` for greedy requests.
    pub seed: Option<u64>,
    /// The prompt as text, for `return_full_text` and `echo`.
    pub prompt_text: String,
    /// The name the client asked for; `None` is the base model.
    pub adapter: Option<String>,
    pub validation: Duration,
}

#[derive(Clone, Debug)]
pub enum Output {
    /// The prompt's tokens with their log-probabilities. Only when asked for, and before any token.
    Prompt(Vec<PromptToken>),
    Token(TokenOutput),
    /// The last item of a stream that did not fail.
    Finished {
        reason: FinishReason,
        generated_tokens: u32,
        cached_tokens: u32,
        queued: Duration,
        inference: Duration,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub id: u32,
    pub text: String,
    pub logprob: Option<f32>,
    pub alternatives: Vec<Alternative>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    pub id: u32,
    /// This token alone, as text; special tokens as they are written in the vocabulary.
    pub text: String,
    pub logprob: f32,
    pub special: bool,
    pub alternatives: Vec<Alternative>,
    /// Text that has become final with this token: whole UTF-8 characters, nothing that may still turn out to begin a
    /// stop string, no special tokens. The concatenation over a stream is the generated text.
    pub delta: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Length,
    Eos,
    StopSequence,
}
