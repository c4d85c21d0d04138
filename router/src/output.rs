//! What a request gets back, in no dialect yet.

use std::time::Duration;

/// What is known of an accepted request before its first token.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    pub prompt_tokens: u32,
    /// Of the prompt, where they are told: tokens and alternatives.
    pub prompt_entries: u64,
    /// `None` for greedy requests.
    pub seed: Option<u64>,
    /// The prompt as text, for `return_full_text` and `echo`.
    pub prompt_text: String,
    /// The name the client asked for; `None` is the base model.
    pub adapter: Option<String>,
    /// From arrival until the prompt was tokenised and every bound checked.
    pub validation: Duration,
}

/// One item of a request's stream.
#[derive(Clone, Debug)]
pub enum Output {
    /// The prompt's tokens with their log-probabilities. Only when asked for, and before any token.
    Prompt(Vec<PromptToken>),
    Token(TokenOutput),
    /// The last item of a stream that did not fail.
    Finished {
        reason: FinishReason,
        generated_tokens: u32,
        /// Tokens of the prompt that the KV cache held.
        cached_tokens: u32,
        /// From the engine's queue until the first step.
        queued: Duration,
        /// From the first step to the last token.
        inference: Duration,
    },
}

/// A token of the prompt. Log-probabilities are natural and finite.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub id: u32,
    pub text: String,
    /// `None` where nothing predicts the token: the first one.
    pub logprob: Option<f32>,
    pub alternatives: Vec<Alternative>,
}

/// A generated token. Log-probabilities are natural and finite.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    pub id: u32,
    /// This token alone, as text; special tokens as they are written in the vocabulary.
    pub text: String,
    pub logprob: f32,
    pub special: bool,
    pub alternatives: Vec<Alternative>,
    /// Text that has become final with this token: whole UTF-8 characters, nothing that may still turn out to
    /// begin a stop string, no special tokens. The concatenation over a stream is the generated text.
    pub delta: String,
}

/// A token that might have stood in another's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
    pub special: bool,
}

/// Why a stream that did not fail has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` were generated.
    Length,
    /// A token that ends sequences.
    Eos,
    /// A stop string of the request.
    StopSequence,
}
