//! From a native body to the router's own request.

use std::sync::Arc;

use serde_json::json;

use super::types::GenerateBody;
use crate::{
    api::adapter::{adapter, refuse_merge},
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
    pub(super) prefill: bool,
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
    let limits = &config.limits;
    let parameters = body.parameters.unwrap_or_default();
    refuse_merge(parameters.merged_adapters.as_ref(), parameters.adapter_id.as_deref())?;
    if parameters.watermark == Some(true) {
        return Err(unsupported("watermark", "leave it out or send false"));
    }
    if parameters.grammar.is_some() {
        return Err(unsupported("grammar", "constrained output is not available"));
    }
    if parameters.response_format.as_ref().is_some_and(|format| format["type"] != "text") {
        return Err(unsupported("response_format", "constrained output is not available"));
    }
    let prefill = parameters.decoder_input_details == Some(true);
    if reply == Reply::Stream && prefill {
        return Err(Invalid::PrefillDetailsStream.into());
    }
    let sampling = parameters.do_sample == Some(true)
        || parameters.temperature.is_some()
        || parameters.top_k.is_some()
        || parameters.top_p.is_some()
        || parameters.typical_p.is_some();
    let sequences =
        best_of(parameters.best_of, reply, sampling, parameters.seed.is_some(), limits.max_best_of)?;
    // Clients of TGI write 0 for none.
    let top_tokens = parameters.top_n_tokens.filter(|count| *count != 0);
    let counts = [parameters.return_k_alternatives, top_tokens];
    if counts[0].is_some_and(|count| count <= 0) {
        return Err(Invalid::Alternatives.into());
    }
    if let Some(given) = top_tokens
        && !(1..=i64::from(limits.max_alternatives)).contains(&given.into())
    {
        let message = format!("must be >= 0 and <= {}. Given: {given}", limits.max_alternatives);
        return Err(Invalid::Parameter { param: "top_n_tokens", message }.into());
    }
    if body.inputs.is_empty() {
        return Err(Invalid::EmptyInputs.into());
    }

    let wanted = Wanted {
        sequences,
        details: parameters.details == Some(true) || prefill,
        prefill,
        full_text: parameters.return_full_text == Some(true),
        alternatives: parameters.return_k_alternatives.map(|count| count as usize),
        top_tokens: top_tokens.map(|count| count as usize),
        characters: body.inputs.chars().count(),
    };
    let prompt = if parameters.apply_chat_template == Some(true) {
        let messages = json!([{"role": "user", "content": body.inputs}]);
        Prompt::Chat { messages, tools: None, add_generation_prompt: true }
    } else {
        Prompt::Text { text: body.inputs, add_special_tokens: true }
    };
    let params = Params {
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
        stop: parameters.stop.unwrap_or_default(),
        include_stop: true,
        ignore_eos_token: parameters.ignore_eos_token == Some(true),
        truncate: parameters.truncate,
        top_logprobs: counts.into_iter().flatten().max().map(Into::into),
        prompt_logprobs: prefill.then_some(0),
    };
    let source = parameters.adapter_source.as_deref();
    let adapter = adapter(&config.model.model_id, parameters.adapter_id, source)?;
    Ok((GenerateRequest { prompt, adapter, params, request_id }, wanted))
}

fn best_of(
    given: Option<usize>,
    reply: Reply,
    sampling: bool,
    seeded: bool,
    max: usize,
) -> Result<usize, Invalid> {
    let sequences = given.unwrap_or(1);
    match (sequences, reply) {
        (1, _) => Ok(1),
        (_, Reply::Stream) => Err(Invalid::BestOfStream),
        _ if max == 1 => Err(Invalid::BestOfDisabled),
        (given, _) if given == 0 || given > max => Err(Invalid::BestOf { max, given }),
        _ if !sampling => Err(Invalid::BestOfSampling),
        _ if seeded => Err(Invalid::BestOfSeed),
        (given, _) => Ok(given),
    }
}

fn unsupported(param: &'static str, hint: &'static str) -> Error {
    Invalid::Unsupported { param, hint }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_of_is_checked_in_lorax_order() {
        let whole = Reply::Whole;
        assert_eq!(best_of(None, whole, false, true, 2), Ok(1));
        assert_eq!(best_of(Some(1), Reply::Stream, false, true, 1), Ok(1));
        assert_eq!(best_of(Some(2), whole, true, false, 2), Ok(2));
        assert_eq!(best_of(Some(0), whole, true, false, 2), Err(Invalid::BestOf { max: 2, given: 0 }));
        assert_eq!(best_of(Some(3), whole, true, false, 2), Err(Invalid::BestOf { max: 2, given: 3 }));
        assert_eq!(best_of(Some(2), whole, true, false, 1), Err(Invalid::BestOfDisabled));
        assert_eq!(best_of(Some(2), whole, false, false, 2), Err(Invalid::BestOfSampling));
        assert_eq!(best_of(Some(2), whole, true, true, 2), Err(Invalid::BestOfSeed));
        assert_eq!(best_of(Some(2), Reply::Stream, true, false, 2), Err(Invalid::BestOfStream));
    }
}
