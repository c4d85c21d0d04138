//! From a native body to the router's own request.

use std::sync::Arc;

use serde_json::json;

use super::types::{GenerateBody, GenerateParameters};
use crate::{
    api::{
        adapter::{adapter, refuse_merge},
        refuse::{CONSTRAINED, constrains, refuse},
    },
    config::Config,
    error::{Error, Invalid},
    request::{GenerateRequest, Params, Prompt},
};

/// How the answer is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Whole,
    Stream,
}

/// What the answer is to contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) sequences: usize,
    pub(super) details: bool,
    pub(super) full_text: bool,
    pub(super) alternatives: Option<usize>,
    pub(super) top_tokens: Option<usize>,
    pub(super) characters: usize,
}

pub(super) fn convert(
    body: GenerateBody,
    reply: Reply,
    config: &Config,
    request_id: Arc<str>,
) -> Result<(GenerateRequest, Wanted), Error> {
    let mut parameters = body.parameters.unwrap_or_default();
    refuse_merge(parameters.merged_adapters.as_ref(), parameters.adapter_id.as_deref())?;
    refuse(&[
        ("adapter_id", body.adapter_id.is_some(), "put it into `parameters`"),
        ("watermark", parameters.watermark == Some(true), "leave it out or send false"),
        ("grammar", parameters.grammar.is_some(), CONSTRAINED),
        ("response_format", constrains(parameters.response_format.as_ref()), CONSTRAINED),
    ])?;
    let prefill = parameters.decoder_input_details == Some(true);
    if reply == Reply::Stream && prefill {
        return Err(Invalid::PrefillDetailsStream.into());
    }
    let params = params(&mut parameters);
    let sequences = best_of(parameters.best_of, reply, &params, config.limits.max_best_of)?;
    let alternatives = parameters.return_k_alternatives.map(positive).transpose()?;
    let top_tokens = top_tokens(parameters.top_n_tokens, config.limits.max_alternatives)?;
    if body.inputs.is_empty() {
        return Err(Invalid::EmptyInputs.into());
    }

    let wanted = Wanted {
        sequences,
        details: parameters.details == Some(true) || prefill,
        full_text: parameters.return_full_text == Some(true),
        alternatives,
        top_tokens,
        characters: body.inputs.chars().count(),
    };
    let prompt = if parameters.apply_chat_template == Some(true) {
        let messages = json!([{"role": "user", "content": body.inputs}]);
        Prompt::Chat { messages, tools: None, add_generation_prompt: true }
    } else {
        Prompt::Text { text: body.inputs, add_special_tokens: true }
    };
    let top_logprobs = alternatives.max(top_tokens).and_then(|count| count.try_into().ok());
    let params = Params { top_logprobs, prompt_logprobs: prefill.then_some(0), ..params };
    let source = parameters.adapter_source.as_deref();
    let adapter = adapter(&config.model.model_id, parameters.adapter_id, source)?;
    Ok((GenerateRequest { prompt, adapter, params, request_id }, wanted))
}

/// How to sample and when to stop.
fn params(parameters: &mut GenerateParameters) -> Params {
    Params {
        max_new_tokens: parameters.max_new_tokens,
        do_sample: parameters.do_sample == Some(true),
        temperature: parameters.temperature,
        top_k: parameters.top_k.map(Into::into),
        top_p: parameters.top_p,
        typical_p: parameters.typical_p,
        repetition_penalty: parameters.repetition_penalty,
        frequency_penalty: parameters.frequency_penalty,
        presence_penalty: parameters.presence_penalty,
        logit_bias: Vec::new(),
        seed: parameters.seed,
        stop: parameters.stop.take().unwrap_or_default(),
        include_stop: true,
        ignore_eos_token: parameters.ignore_eos_token == Some(true),
        truncate: parameters.truncate,
        top_logprobs: None,
        prompt_logprobs: None,
    }
}

fn positive(count: i32) -> Result<usize, Invalid> {
    usize::try_from(count).ok().filter(|count| *count > 0).ok_or(Invalid::Alternatives)
}

/// Clients of TGI write 0 for none.
fn top_tokens(given: Option<i32>, max: u32) -> Result<Option<usize>, Invalid> {
    let Some(given) = given.filter(|count| *count != 0) else { return Ok(None) };
    match usize::try_from(given) {
        Ok(count) if count <= max as usize => Ok(Some(count)),
        _ => {
            let message = format!("must be >= 0 and <= {max}. Given: {given}");
            Err(Invalid::Parameter { param: "top_n_tokens", message })
        }
    }
}

fn best_of(given: Option<usize>, reply: Reply, params: &Params, max: usize) -> Result<usize, Invalid> {
    let sequences = given.unwrap_or(1);
    match (sequences, reply) {
        (1, _) => Ok(1),
        (_, Reply::Stream) => Err(Invalid::BestOfStream),
        _ if max == 1 => Err(Invalid::BestOfDisabled),
        (given, _) if given == 0 || given > max => Err(Invalid::BestOf { max, given }),
        _ if !params.samples() => Err(Invalid::BestOfSampling),
        _ if params.seed.is_some() => Err(Invalid::BestOfSeed),
        (given, _) => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_of_is_checked_in_lorax_order() {
        let params = |do_sample, seed| Params { do_sample, seed, ..Params::default() };
        let (greedy, sampled, seeded) = (params(false, None), params(true, None), params(true, Some(1)));
        let whole = Reply::Whole;
        assert_eq!(best_of(None, whole, &seeded, 2), Ok(1));
        assert_eq!(best_of(Some(1), Reply::Stream, &seeded, 1), Ok(1));
        assert_eq!(best_of(Some(2), whole, &sampled, 2), Ok(2));
        assert_eq!(best_of(Some(0), whole, &sampled, 2), Err(Invalid::BestOf { max: 2, given: 0 }));
        assert_eq!(best_of(Some(3), whole, &sampled, 2), Err(Invalid::BestOf { max: 2, given: 3 }));
        assert_eq!(best_of(Some(2), whole, &sampled, 1), Err(Invalid::BestOfDisabled));
        assert_eq!(best_of(Some(2), whole, &greedy, 2), Err(Invalid::BestOfSampling));
        assert_eq!(best_of(Some(2), whole, &seeded, 2), Err(Invalid::BestOfSeed));
        assert_eq!(best_of(Some(2), Reply::Stream, &sampled, 2), Err(Invalid::BestOfStream));
    }
}
