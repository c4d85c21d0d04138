//! From a completion body to the router's own requests.

use std::sync::Arc;

use super::{
    shape::Text,
    types::{CompletionBody, PromptField},
};
use crate::{
    api::{
        openai::{
            answer::Plan,
            params::{choices, parameter},
        },
        refuse::refuse,
    },
    config::Config,
    error::{Error, Invalid},
    request::{GenerateRequest, Prompt},
};

/// Prompts times choices of one body, at most: each is a request of its own to the scheduler.
const MAX_SEQUENCES: usize = 512;
/// OpenAI's default on this route.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(super) fn convert(
    mut body: CompletionBody,
    config: &Config,
    request_id: &Arc<str>,
) -> Result<Plan<Text>, Error> {
    body.refuse_unserved()?;
    let infill = body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty());
    refuse(&[("suffix", infill, "the model cannot infill")])?;
    let stream = body.stream == Some(true);
    let kept = choices(body.n, config.limits.max_choices)?;
    let generated =
        best_of(body.best_of, kept, stream, config.limits.max_choices.max(config.limits.max_best_of))?;
    if body.logprobs.is_some_and(|count| count > config.limits.max_alternatives) {
        return Err(parameter("logprobs", format!("must be <= {}", config.limits.max_alternatives)));
    }
    let echo = body.echo == Some(true);
    let prompt_only = echo && body.max_tokens == Some(0);
    let (adapter, model) = body.select_model(&config.model.model_id)?;
    let max_tokens = if prompt_only { 1 } else { body.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) };
    let prompt_logprobs = body.logprobs.filter(|_| echo);
    let params = body.params(Some(max_tokens), body.logprobs.unwrap_or(0), prompt_logprobs)?;

    let (prompts, characters) = prompts(body.prompt, body.add_special_tokens.unwrap_or(true));
    if prompts.is_empty() {
        return Err(Invalid::EmptyInputs.into());
    }
    if prompts.len().saturating_mul(generated) > MAX_SEQUENCES {
        let message = format!("times `n` or `best_of` must be <= {MAX_SEQUENCES} sequences");
        return Err(parameter("prompt", message));
    }
    let prompts = prompts
        .into_iter()
        .map(|prompt| GenerateRequest {
            prompt,
            adapter: adapter.clone(),
            params: params.clone(),
            request_id: request_id.clone(),
        })
        .collect();
    Ok(Plan {
        prompts,
        generated,
        kept,
        prompt_only,
        stream,
        stream_options: body.stream_options,
        model,
        characters,
        shape: Text { echo, logprobs: body.logprobs },
    })
}

fn best_of(given: Option<u32>, n: usize, stream: bool, max: usize) -> Result<usize, Error> {
    let best_of = given.map_or(n, |best_of| best_of as usize);
    if best_of < n {
        return Err(parameter("best_of", format!("must be >= `n`. Given: {best_of}")));
    }
    if best_of > max {
        return Err(Invalid::BestOf { max, given: best_of }.into());
    }
    if stream && best_of > n {
        return Err(Invalid::BestOfStream.into());
    }
    Ok(best_of)
}

/// The prompts, and the characters of those that are text.
fn prompts(field: PromptField, add_special_tokens: bool) -> (Vec<Prompt>, usize) {
    let text = |text| Prompt::Text { text, add_special_tokens };
    match field {
        PromptField::Text(one) => {
            let characters = one.chars().count();
            (vec![text(one)], characters)
        }
        PromptField::Texts(texts) => {
            let characters = texts.iter().map(|text| text.chars().count()).sum();
            (texts.into_iter().map(text).collect(), characters)
        }
        PromptField::Tokens(tokens) if tokens.is_empty() => (Vec::new(), 0),
        PromptField::Tokens(tokens) => (vec![Prompt::Tokens(tokens)], 0),
        PromptField::TokenLists(lists) => (lists.into_iter().map(Prompt::Tokens).collect(), 0),
    }
}
