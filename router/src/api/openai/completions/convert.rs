//! From a completion body to the router's own requests.

use std::sync::Arc;

use super::types::{CompletionBody, PromptField};
use crate::{
    api::openai::{
        StreamOptions,
        batch::MAX_SEQUENCES,
        params::{Sampling, choices, constrains, parameter, refuse, select_model},
    },
    config::Config,
    error::Error,
    infer::{GenerateRequest, Prompt},
    validate::Invalid,
};

/// OpenAI's default on this route.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What is to be generated and how it is to be answered.
pub(super) struct Plan {
    /// One request for each prompt.
    pub(super) prompts: Vec<GenerateRequest>,
    /// Sequences for each prompt, and how many of them are answered.
    pub(super) generated: usize,
    pub(super) kept: usize,
    pub(super) echo: bool,
    /// Only the prompt is answered: `echo` with no tokens to generate. One is generated and dropped.
    pub(super) prompt_only: bool,
    pub(super) logprobs: Option<u32>,
    pub(super) stream: bool,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) model: String,
    /// Of the prompts that came as text.
    pub(super) characters: usize,
}

pub(super) fn convert(body: CompletionBody, config: &Config, request_id: &Arc<str>) -> Result<Plan, Error> {
    refuse(&[
        ("suffix", body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()), "the model cannot infill"),
        ("response_format", constrains(body.response_format.as_ref()), "constrained output is not available"),
    ])?;
    let stream = body.stream == Some(true);
    let kept = choices(body.n, config.limits.max_choices)?;
    let generated =
        best_of(body.best_of, kept, stream, config.limits.max_choices.max(config.limits.max_best_of))?;
    if body.logprobs.is_some_and(|count| count > config.limits.max_alternatives) {
        return Err(parameter("logprobs", format!("must be <= {}", config.limits.max_alternatives)));
    }
    let echo = body.echo == Some(true);
    let prompt_only = echo && !stream && body.max_tokens == Some(0);
    let (adapter, model) = select_model(
        &config.model.model_id,
        body.model,
        body.adapter_id,
        body.adapter_source.as_deref(),
        body.merged_adapters.as_ref(),
    )?;
    let params = Sampling {
        max_tokens: Some(if prompt_only { 1 } else { body.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) }),
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        frequency_penalty: body.frequency_penalty,
        presence_penalty: body.presence_penalty,
        repetition_penalty: body.repetition_penalty,
        logit_bias: body.logit_bias,
        seed: body.seed,
        stop: body.stop,
        ignore_eos: body.ignore_eos == Some(true) || body.ignore_eos_token == Some(true),
        top_logprobs: body.logprobs.unwrap_or(0),
        prompt_logprobs: body.logprobs.filter(|_| echo),
    }
    .into_params()?;

    let (prompts, characters) = prompts(body.prompt);
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
    let (logprobs, stream_options) = (body.logprobs, body.stream_options);
    Ok(Plan {
        prompts,
        generated,
        kept,
        echo,
        prompt_only,
        logprobs,
        stream,
        stream_options,
        model,
        characters,
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
fn prompts(field: PromptField) -> (Vec<Prompt>, usize) {
    let text = |text| Prompt::Text { text, add_special_tokens: true };
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
