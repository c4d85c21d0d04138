//! Bounds of sampling and stopping parameters.

use lorikeet_proto::v1::Sampling;

use crate::{
    config::{Limits, MAX_BIAS},
    error::Invalid,
    model::ModelInfo,
    request::Params,
};

/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Below this a temperature is greedy: the quotient would overflow.
const MIN_TEMPERATURE: f32 = 1e-5;

/// Refuses parameters outside their bounds, before anything is spent on the prompt.
pub fn check(params: &Params, limits: &Limits, model: &ModelInfo) -> Result<(), Invalid> {
    for (name, value) in [
        ("temperature", params.temperature),
        ("repetition_penalty", params.repetition_penalty),
        ("frequency_penalty", params.frequency_penalty),
        ("presence_penalty", params.presence_penalty),
        ("top_p", params.top_p),
        ("typical_p", params.typical_p),
    ] {
        ensure(value.is_none_or(f32::is_finite), Invalid::NotFinite(name))?;
    }
    let holds = |value: Option<f32>, bound: fn(f32) -> bool| value.is_none_or(bound);
    ensure(holds(params.temperature, |t| t >= 0.0), Invalid::Temperature)?;
    ensure(holds(params.repetition_penalty, |p| p > 0.0), Invalid::RepetitionPenalty)?;
    ensure(holds(params.frequency_penalty, |p| (-2.0..=2.0).contains(&p)), Invalid::FrequencyPenalty)?;
    ensure(holds(params.presence_penalty, |p| (-2.0..=2.0).contains(&p)), Invalid::PresencePenalty)?;
    ensure(holds(params.top_p, |p| p > 0.0 && p <= 1.0), Invalid::TopP)?;
    ensure(holds(params.typical_p, |p| p > 0.0 && p < 1.0), Invalid::TypicalP)?;
    ensure(params.top_k.is_none_or(|k| k > 0), Invalid::TopK)?;
    if let Some(given) = params.top_logprobs {
        ensure(given > 0, Invalid::Alternatives)?;
    }
    let alternatives = [params.top_logprobs, params.prompt_logprobs.map(i64::from)];
    for given in alternatives.into_iter().flatten() {
        let max = limits.max_alternatives;
        ensure(given <= i64::from(max), Invalid::TooManyAlternatives { max, given })?;
    }
    if let Some(given) = params.truncate {
        let max = model.max_input_tokens;
        ensure(given > 0 && given <= u64::from(max), Invalid::Truncate { max, given })?;
    }
    ensure(params.max_new_tokens != Some(0), Invalid::MaxNewTokens)?;
    check_stop(&params.stop, limits)?;
    check_bias(&params.logit_bias, model.vocab_size)
}

fn check_stop(stop: &[String], limits: &Limits) -> Result<(), Invalid> {
    let max = limits.max_stop_sequences;
    ensure(stop.len() <= max, Invalid::TooManyStops { max, given: stop.len() })?;
    for text in stop {
        ensure(!text.is_empty(), Invalid::EmptyStop)?;
        ensure(text.len() <= MAX_STOP_BYTES, Invalid::StopLength { max: MAX_STOP_BYTES, given: text.len() })?;
    }
    Ok(())
}

fn check_bias(bias: &[(u32, f32)], vocabulary: u32) -> Result<(), Invalid> {
    ensure(bias.len() <= MAX_BIAS, Invalid::BiasCount(bias.len()))?;
    for &(given, value) in bias {
        ensure(given < vocabulary, Invalid::BiasToken { vocabulary, given })?;
        ensure((-100.0..=100.0).contains(&value), Invalid::BiasValue)?;
    }
    Ok(())
}

/// How many tokens to generate after a prompt of `input` tokens.
pub fn new_tokens(params: &Params, input: usize, model: &ModelInfo) -> Result<u32, Invalid> {
    let max = model.max_total_tokens;
    let new =
        params.max_new_tokens.unwrap_or_else(|| max.saturating_sub(u32::try_from(input).unwrap_or(max)));
    ensure(input.saturating_add(new as usize) <= max as usize, Invalid::TotalTokens { max, input, new })?;
    let max = model.max_input_tokens;
    ensure(input <= max as usize, Invalid::InputLength { max, given: input })?;
    Ok(new)
}

/// Tokens of a prompt of `input` tokens that are told, with their alternatives.
pub fn prompt_entries(params: &Params, input: usize) -> u64 {
    params.prompt_logprobs.map_or(0, |alternatives| input as u64 * (1 + u64::from(alternatives)))
}

/// What the shard is told, and the seed if any random number is drawn. Parameters must have passed [`check`].
pub fn sampling(params: &Params) -> (Sampling, Option<u64>) {
    let temperature = params.temperature.unwrap_or(1.0);
    let greedy = !params.samples() || temperature < MIN_TEMPERATURE;
    let seed = (!greedy).then(|| params.seed.unwrap_or_else(random_seed));
    let (bias_tokens, bias_values) = params.logit_bias.iter().copied().unzip();
    let sampling = Sampling {
        temperature: if greedy { 0.0 } else { temperature },
        // Filters mean nothing to a greedy row.
        top_k: if greedy { 0 } else { params.top_k.map_or(0, |k| u32::try_from(k).unwrap_or(u32::MAX)) },
        top_p: if greedy { 0.0 } else { params.top_p.unwrap_or(0.0) },
        typical_p: if greedy { 0.0 } else { params.typical_p.unwrap_or(0.0) },
        repetition_penalty: params.repetition_penalty.unwrap_or(0.0),
        frequency_penalty: params.frequency_penalty.unwrap_or(0.0),
        presence_penalty: params.presence_penalty.unwrap_or(0.0),
        seed: seed.unwrap_or(0),
        top_logprobs: params.top_logprobs.map_or(0, |n| u32::try_from(n).unwrap_or(0)),
        bias_tokens,
        bias_values,
    };
    (sampling, seed)
}

/// A number that every client reads as it is: those that hold all numbers as floats read 53 bits.
fn random_seed() -> u64 {
    rand::random::<u64>() >> 11
}

fn ensure(holds: bool, otherwise: Invalid) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(otherwise) }
}
