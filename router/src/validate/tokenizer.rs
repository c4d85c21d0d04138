//! The model's tokenizer: text to tokens and back, its special tokens and the tokens that end a sequence.

use std::{fs, path::Path, sync::OnceLock};

use rustc_hash::FxHashMap;
use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::error::Invalid;

/// Words whose tokens the library remembers, in each thread and for good. Its own bound of 10,000 is 84 MB of
/// hostile words: one of 255 bytes takes 32 for each. Beyond the bound words are tokenised again: 20 % slower
/// if none is remembered.
const REMEMBERED_WORDS: usize = 1024;

/// Why a tokenizer directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("tokenizer.json cannot be loaded: {0}")]
    Tokenizer(String),
    #[error("{file} is not JSON: {message}")]
    Json { file: &'static str, message: String },
}

/// Shared by all requests; immutable.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens, as they are written in the vocabulary.
    special: FxHashMap<u32, String>,
    /// Sorted.
    eos: Vec<u32>,
    /// Whether the text of tokens is the bytes of each one after the other, as GPT-2's decoder has it.
    concatenates: bool,
    /// By token, what `piece` has found: alternatives ask for many.
    pieces: Box<[OnceLock<Box<str>>]>,
}

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

impl Tokenizer {
    /// Reads `tokenizer.json`, and the ids that end a sequence from the files beside it.
    pub fn load(directory: &Path) -> Result<Self, LoadError> {
        let mut inner = tokenizers::Tokenizer::from_file(directory.join("tokenizer.json"))
            .map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        // Some published tokenizers cut or pad what they encode; limits are ours to apply.
        inner.with_truncation(None).map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        inner.with_padding(None);
        let mut model = inner.get_model().clone();
        model.resize_cache(REMEMBERED_WORDS);
        inner.with_model(model);
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let eos = eos_tokens(directory, &inner)?;
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let pieces = (0..=highest).map(|_| OnceLock::new()).collect();
        let concatenates = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        Ok(Self { inner, special, eos, concatenates, pieces })
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Invalid> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| Invalid::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text with their character offsets.
    pub fn spans(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenSpan>, Invalid> {
        let encoding = self
            .inner
            .encode_char_offsets(text, add_special_tokens)
            .map_err(|error| Invalid::Tokenizer(error.to_string()))?;
        let rows = encoding.get_ids().iter().zip(encoding.get_tokens()).zip(encoding.get_offsets());
        Ok(rows
            .map(|((&id, text), &(start, stop))| TokenSpan { id, text: text.clone(), start, stop })
            .collect())
    }

    /// The text of tokens, without special ones. Ids outside the vocabulary have no text.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, true).unwrap_or_default()
    }

    /// How a special token is written; `None` for all other tokens.
    pub fn special(&self, token: u32) -> Option<&str> {
        self.special.get(&token).map(String::as_str)
    }

    /// All special tokens, as they are written.
    pub fn specials(&self) -> impl Iterator<Item = &str> {
        self.special.values().map(String::as_str)
    }

    /// One token's text wherever it may stand, special ones included. Tokens outside the vocabulary have
    /// none.
    pub fn piece(&self, token: u32) -> &str {
        let Some(piece) = self.pieces.get(token as usize) else { return "" };
        piece.get_or_init(|| match self.special(token) {
            Some(special) => special.into(),
            None => self.plain_piece(token).into(),
        })
    }

    /// The text of a token that is whole characters, and the same behind any others; `None`: that is not known of it.
    pub fn fixed_piece(&self, token: u32) -> Option<&str> {
        let piece = self.concatenates.then(|| self.piece(token))?;
        (!piece.ends_with(char::REPLACEMENT_CHARACTER)).then_some(piece)
    }

    fn plain_piece(&self, token: u32) -> String {
        // Decoders may strip a space in front of the first token, so it is decoded behind itself.
        let once = self.decode(&[token]);
        let twice = self.decode(&[token, token]);
        match twice.strip_prefix(once.as_str()) {
            Some(piece) => piece.to_owned(),
            None => once,
        }
    }

    /// The tokens that end a sequence.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// `eos_token_id` of generation_config.json and config.json, and `eos_token` of tokenizer_config.json:
/// published models state some of them in each.
fn eos_tokens(directory: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, LoadError> {
    let mut eos = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        match &json(directory, file)?["eos_token_id"] {
            Value::Array(ids) => eos.extend(ids.iter().filter_map(Value::as_u64)),
            id => eos.extend(id.as_u64()),
        }
    }
    let mut eos: Vec<u32> = eos.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
    let config = json(directory, "tokenizer_config.json")?;
    let written = config["eos_token"].as_str().or_else(|| config["eos_token"]["content"].as_str());
    eos.extend(written.and_then(|token| tokenizer.token_to_id(token)));
    eos.sort_unstable();
    eos.dedup();
    Ok(eos)
}

/// A file that is not there is `null`.
fn json(directory: &Path, file: &'static str) -> Result<Value, LoadError> {
    match fs::read(directory.join(file)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| LoadError::Json { file, message: error.to_string() }),
        Err(_) => Ok(Value::Null),
    }
}
