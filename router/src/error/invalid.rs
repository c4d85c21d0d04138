//! What can be wrong with a request's parameters: the texts that LoRAX's clients know, and ours beside them.

use crate::config::MAX_BIAS;

/// A parameter outside its bounds. `param` names it as the caller spelled it where the dialects agree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Invalid {
    #[error("`best_of` must be > 0 and <= {max}. Given: {given}")]
    BestOf { max: usize, given: usize },
    #[error("`best_of` != 1 is not allowed for this endpoint")]
    BestOfDisabled,
    #[error("you must use sampling when `best_of` is > 1")]
    BestOfSampling,
    #[error("`seed` must not be set when `best_of` > 1")]
    BestOfSeed,
    #[error("`best_of` != 1 is not supported when streaming tokens")]
    BestOfStream,
    #[error("`n` must be > 0 and <= {max}. Given: {given}")]
    Choices { max: usize, given: usize },
    #[error(
        "prompts times `n` or `best_of` must be <= {max} sequences (--max-concurrent-requests). Given: {given}"
    )]
    Sequences { max: usize, given: usize },
    #[error(
        "an answer that is not streamed must tell <= {max} tokens and alternatives of its prompts. Given: {given}. Ask \
        for fewer prompts or alternatives, or for a stream"
    )]
    PromptEntries { max: u64, given: u64 },
    #[error("`decoder_input_details` == true is not supported when streaming tokens")]
    PrefillDetailsStream,
    #[error("`temperature` must be non-negative")]
    Temperature,
    #[error("`repetition_penalty` must be strictly positive")]
    RepetitionPenalty,
    #[error("`frequency_penalty` must be >= -2.0 and <= 2.0")]
    FrequencyPenalty,
    #[error("`presence_penalty` must be >= -2.0 and <= 2.0")]
    PresencePenalty,
    #[error("`top_p` must be > 0.0 and < 1.0")]
    TopP,
    #[error("`typical_p` must be > 0.0 and < 1.0")]
    TypicalP,
    #[error("`top_k` must be strictly positive")]
    TopK,
    #[error("`return_k_alternatives` must be strictly positive")]
    Alternatives,
    #[error("`return_k_alternatives` must be <= {max}. Given: {given}")]
    TooManyAlternatives { max: u32, given: i64 },
    #[error("`{0}` must be finite")]
    NotFinite(&'static str),
    #[error("`truncate` must be strictly positive and less than {max}. Given: {given}")]
    Truncate { max: u32, given: u64 },
    #[error("`max_new_tokens` must be strictly positive")]
    MaxNewTokens,
    #[error(
        "`inputs` tokens + `max_new_tokens` must be <= {max}. Given: {input} `inputs` tokens and {new} `max_new_tokens`"
    )]
    TotalTokens { max: u32, input: usize, new: u32 },
    #[error("`inputs` must have less than {max} tokens. Given: {given}")]
    InputLength { max: u32, given: usize },
    #[error("`inputs` must have at most {max} bytes (--max-prompt-bytes). Given: {given}")]
    InputBytes { max: usize, given: usize },
    #[error("`inputs` cannot be empty")]
    EmptyInputs,
    #[error("`inputs` must have token ids below {vocabulary}. Given: {given}")]
    TokenId { vocabulary: u32, given: u32 },
    #[error("`stop` supports up to {max} stop sequences. Given: {given}")]
    TooManyStops { max: usize, given: usize },
    #[error("`stop` must not contain an empty string")]
    EmptyStop,
    #[error("`stop` sequences must have at most {max} bytes. Given: {given}")]
    StopLength { max: usize, given: usize },
    #[error("`logit_bias` supports up to {MAX_BIAS} tokens. Given: {0}")]
    BiasCount(usize),
    #[error("`logit_bias` must have token ids below {vocabulary}. Given: {given}")]
    BiasToken { vocabulary: u32, given: u32 },
    #[error("`logit_bias` values must be >= -100 and <= 100")]
    BiasValue,
    #[error("at most one of `adapter_id` or `adapters` may be provided")]
    AdapterAndMerge,
    #[error("an adapter's id must have at most {max} bytes. Given: {given}")]
    AdapterIdLength { max: usize, given: usize },
    #[error(
        "an adapter's id must consist of letters, digits and `._/@+=-`, and be a relative path without `..`, whose \
        parts begin with a letter, a digit or `_` and do not end with a dot"
    )]
    AdapterId,
    #[error("`adapter_source` must be one of: {allowed}")]
    AdapterSource { allowed: &'static str },
    #[error("tokenizer error {0}")]
    Tokenizer(String),
    #[error("this model has no chat template")]
    NoChatTemplate,
    /// A parameter that this server knows and does not support.
    #[error("`{param}` is not supported: {hint}")]
    Unsupported { param: &'static str, hint: &'static str },
    /// Anything else that a dialect finds wrong with a parameter of its own.
    #[error("`{param}` {message}")]
    Parameter { param: &'static str, message: String },
}

impl Invalid {
    /// `error.param` under `/v1`.
    #[must_use]
    pub fn param(&self) -> Option<&'static str> {
        Some(match self {
            Self::BestOf { .. } | Self::BestOfDisabled | Self::BestOfSampling | Self::BestOfStream => {
                "best_of"
            }
            Self::BestOfSeed => "seed",
            Self::Choices { .. } => "n",
            // Several fields together.
            Self::Sequences { .. } | Self::PromptEntries { .. } => return None,
            Self::PrefillDetailsStream => "decoder_input_details",
            Self::Temperature => "temperature",
            Self::RepetitionPenalty => "repetition_penalty",
            Self::FrequencyPenalty => "frequency_penalty",
            Self::PresencePenalty => "presence_penalty",
            Self::TopP => "top_p",
            Self::TypicalP => "typical_p",
            Self::TopK => "top_k",
            Self::Alternatives | Self::TooManyAlternatives { .. } => "top_logprobs",
            Self::NotFinite(param) | Self::Unsupported { param, .. } | Self::Parameter { param, .. } => param,
            Self::Truncate { .. } => "truncate",
            Self::MaxNewTokens => "max_tokens",
            Self::TooManyStops { .. } | Self::EmptyStop | Self::StopLength { .. } => "stop",
            Self::BiasCount(_) | Self::BiasToken { .. } | Self::BiasValue => "logit_bias",
            Self::AdapterAndMerge | Self::AdapterIdLength { .. } | Self::AdapterId => "model",
            Self::AdapterSource { .. } => "adapter_source",
            Self::TotalTokens { .. }
            | Self::InputLength { .. }
            | Self::InputBytes { .. }
            | Self::EmptyInputs
            | Self::TokenId { .. }
            | Self::Tokenizer(_) => "prompt",
            Self::NoChatTemplate => "messages",
        })
    }

    /// `error.code` under `/v1`.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::TotalTokens { .. } | Self::InputLength { .. } | Self::InputBytes { .. } => {
                Some("context_length_exceeded")
            }
            _ => None,
        }
    }
}
