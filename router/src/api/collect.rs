//! A generation that is answered in one piece.

use std::time::{Duration, Instant};

use futures::StreamExt;

use crate::{
    error::Error,
    infer::Generation,
    output::{FinishReason, GenerationInfo, Output, PromptToken, TokenOutput},
};

/// All that a finished generation put out.
pub(super) struct Completed {
    pub(super) info: GenerationInfo,
    /// With log-probabilities; empty unless they were asked for.
    pub(super) prompt: Vec<PromptToken>,
    pub(super) tokens: Vec<TokenOutput>,
    pub(super) text: String,
    pub(super) reason: FinishReason,
    pub(super) generated_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) queued: Duration,
    pub(super) inference: Duration,
    /// When the first token came.
    pub(super) first_token: Instant,
}

impl Completed {
    /// Leaves the prompt only.
    pub(super) fn forget_output(&mut self) {
        self.tokens.clear();
        self.text.clear();
        self.generated_tokens = 0;
        self.reason = FinishReason::Length;
    }

    /// By which the best of several is chosen.
    pub(super) fn mean_logprob(&self) -> f32 {
        if self.tokens.is_empty() {
            return f32::NEG_INFINITY;
        }
        self.tokens.iter().map(|token| token.logprob).sum::<f32>() / self.tokens.len() as f32
    }
}

/// # Errors
/// The generation's, or [`Error::Incomplete`] when it ends without an end.
pub(super) async fn collect(mut generation: Generation) -> Result<Completed, Error> {
    let (mut prompt, mut tokens, mut text) = (Vec::new(), Vec::new(), String::new());
    let mut first_token = None;
    while let Some(output) = generation.next().await {
        match output? {
            Output::Prompt(tokens) => prompt = tokens,
            Output::Token(token) => {
                first_token.get_or_insert_with(Instant::now);
                text.push_str(&token.delta);
                tokens.push(token);
            }
            Output::Finished { reason, generated_tokens, cached_tokens, queued, inference } => {
                return Ok(Completed {
                    first_token: first_token.unwrap_or_else(Instant::now),
                    info: generation.info.clone(),
                    prompt,
                    tokens,
                    text,
                    reason,
                    generated_tokens,
                    cached_tokens,
                    queued,
                    inference,
                });
            }
        }
    }
    Err(Error::Incomplete)
}
