//! What is checked and computed before a request may queue: parameter bounds, chat template, tokens, limits.

pub mod params;
mod pool;
mod tokenizer;

use std::{path::Path, sync::Arc};

use lorikeet_proto::v1::Sampling;
use pool::{Lane, Pool};
use serde_json::Value;
pub use tokenizer::{LoadError, TokenSpan, Tokenizer};

use crate::{
    chat::{ChatTemplate, TemplateError},
    config::{DEFAULT_TOTAL_TOKENS, Limits},
    error::{Error, Invalid},
    model::{ModelHandle, ModelInfo},
    request::{Params, Prompt},
};

/// A prompt of more bytes takes the long lane: some 10 ms of tokenisation.
const LONG_PROMPT: usize = 32 << 10;
/// Bytes of prompt allowed for each token of the input limit, where no flag sets them.
const BYTES_PER_TOKEN: usize = 16;

/// The tokenizer and the chat template on a pool of worker threads. Cloning is cheap.
#[derive(Clone)]
pub struct Validator {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

struct Shared {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    limits: Limits,
    model: ModelHandle,
}

/// Why the validator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tokenizer(#[from] LoadError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("cannot start a validation worker: {0}")]
    Thread(#[from] std::io::Error),
}

/// A prompt as text and as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub text: String,
    pub tokens: Vec<u32>,
}

/// A request that may queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    /// The whole prompt as text.
    pub text: String,
    /// The prompt after `truncate`.
    pub tokens: Vec<u32>,
    pub max_new_tokens: u32,
    pub sampling: Sampling,
    /// `None` for greedy requests.
    pub seed: Option<u64>,
}

impl Validator {
    /// Loads the tokenizer and the chat template of a directory and starts the workers.
    pub fn start(directory: &Path, limits: &Limits, model: ModelHandle) -> Result<Self, StartError> {
        let tokenizer = Arc::new(Tokenizer::load(directory)?);
        let template = ChatTemplate::load(directory, tokenizer.specials().map(str::to_owned))?;
        // A job exists only for a request that holds a permit, or an API call that waits for nothing else.
        let pool =
            Pool::start(limits.validation_workers, limits.max_concurrent_requests, limits.request_timeout)?;
        let shared = Shared { tokenizer, template, limits: limits.clone(), model };
        Ok(Self { shared: Arc::new(shared), pool: Arc::new(pool) })
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }

    /// The tokens of a text with their places in it.
    pub async fn tokenize(&self, text: String, add_special_tokens: bool) -> Result<Vec<TokenSpan>, Error> {
        self.shared.check_bytes(text.len())?;
        let lane = lane(text.len());
        let shared = Arc::clone(&self.shared);
        self.pool.run(lane, move || Ok(shared.tokenizer.spans(&text, add_special_tokens)?)).await
    }

    /// The text and tokens of a prompt, as a generation would see them before `truncate`.
    pub async fn encode(&self, prompt: Prompt) -> Result<Encoded, Error> {
        let lane = lane(size(&prompt));
        let shared = Arc::clone(&self.shared);
        self.pool.run(lane, move || shared.encode(prompt)).await
    }

    /// Refuses a prompt that is too large as it stands, before anything is spent on it.
    pub fn check_size(&self, prompt: &Prompt) -> Result<(), Invalid> {
        self.shared.check_bytes(size(prompt))
    }

    /// Checks everything that can be checked without knowing what else runs.
    pub async fn validate(&self, prompt: Prompt, params: &Params, model: &ModelInfo) -> Result<Valid, Error> {
        params::check(params, &self.shared.limits, model)?;
        let Encoded { text, mut tokens } = self.encode(prompt).await?;
        if let Some(&given) = tokens.iter().find(|&&token| token >= model.vocab_size) {
            return Err(Invalid::TokenId { vocabulary: model.vocab_size, given }.into());
        }
        if let Some(keep) = params.truncate {
            let surplus = tokens.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
            tokens.drain(..surplus);
        }
        if tokens.is_empty() {
            return Err(Invalid::EmptyInputs.into());
        }
        let max_new_tokens = params::new_tokens(params, tokens.len(), model)?;
        let (sampling, seed) = params::sampling(params);
        Ok(Valid { text, tokens, max_new_tokens, sampling, seed })
    }
}

impl Shared {
    fn encode(&self, prompt: Prompt) -> Result<Encoded, Error> {
        match prompt {
            Prompt::Text { text, add_special_tokens } => {
                if text.is_empty() {
                    return Err(Invalid::EmptyInputs.into());
                }
                self.check_bytes(text.len())?;
                let tokens = self.tokenizer.encode(&text, add_special_tokens)?;
                Ok(Encoded { text, tokens })
            }
            Prompt::Tokens(tokens) => {
                self.check_bytes(tokens.len())?;
                Ok(Encoded { text: self.tokenizer.decode(&tokens), tokens })
            }
            Prompt::Chat { messages, tools, add_generation_prompt } => {
                let template = self.template.as_ref().ok_or(Invalid::NoChatTemplate)?;
                let pieces = template.render(messages, tools.as_ref(), add_generation_prompt)?;
                self.check_bytes(pieces.iter().map(String::len).sum())?;
                let mut tokens = Vec::new();
                for piece in &pieces {
                    // The template writes the special tokens itself.
                    tokens.extend(self.tokenizer.encode(piece, false)?);
                }
                Ok(Encoded { text: pieces.concat(), tokens })
            }
        }
    }

    fn check_bytes(&self, given: usize) -> Result<(), Invalid> {
        let max = self.limits.max_prompt_bytes.unwrap_or_else(|| {
            let known = self.model.get().map(|model| model.max_input_tokens);
            known.or(self.limits.max_input_length).unwrap_or(DEFAULT_TOTAL_TOKENS) as usize * BYTES_PER_TOKEN
        });
        if given <= max { Ok(()) } else { Err(Invalid::InputBytes { max, given }) }
    }
}

/// About how many bytes a prompt has, before its template is applied.
fn size(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text { text, .. } => text.len(),
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Chat { messages, tools, .. } => weight(messages) + tools.as_ref().map_or(0, weight),
    }
}

fn lane(bytes: usize) -> Lane {
    if bytes > LONG_PROMPT { Lane::Long } else { Lane::Short }
}

fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + weight(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}
