//! What is checked and computed before a request may queue: parameter bounds, chat template, tokens, limits.

mod invalid;

pub use invalid::Invalid;

use crate::{error::Error, infer::Prompt};

/// Entries of one `logit_bias`.
pub const MAX_BIAS: usize = 1024;

/// The tokenizer and the chat template on a pool of worker threads. Cloning is cheap.
#[derive(Clone)]
pub struct Validator {}

/// One token of a text, for `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    pub id: u32,
    /// The raw piece of the vocabulary.
    pub text: String,
    /// Character offsets in the text.
    pub start: usize,
    pub stop: usize,
}

impl Validator {
    /// The tokens of a text with their places in it.
    pub async fn tokenize(&self, _text: String, _add_special_tokens: bool) -> Result<Vec<TokenSpan>, Error> {
        Err(Error::NotReady)
    }

    /// The text and tokens of a prompt, as a generation would see them before `truncate`.
    pub async fn encode(&self, _prompt: Prompt) -> Result<Encoded, Error> {
        Err(Error::NotReady)
    }
}

/// A prompt as text and as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub text: String,
    pub tokens: Vec<u32>,
}
