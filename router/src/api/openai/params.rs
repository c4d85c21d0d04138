//! What the bodies of completions and chat have in common.

use indexmap::IndexMap;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{api::adapter, error::Error, infer::AdapterRef, infer::Params, validate::Invalid};

/// One stop sequence or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum StopField {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// A last chunk with the totals.
    pub include_usage: Option<bool>,
    /// Running totals on every chunk.
    pub continuous_usage_stats: Option<bool>,
}

/// The fields that say how to sample and when to stop, by their names in a body.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) logit_bias: Option<IndexMap<String, f32>>,
    pub(super) seed: Option<u64>,
    pub(super) stop: Option<StopField>,
    pub(super) ignore_eos: bool,
    pub(super) top_logprobs: u32,
    pub(super) prompt_logprobs: Option<u32>,
}

impl Sampling {
    pub(super) fn into_params(self) -> Result<Params, Error> {
        let temperature = self.temperature.unwrap_or(1.0);
        let logit_bias = self.logit_bias.unwrap_or_default();
        Ok(Params {
            max_new_tokens: self.max_tokens,
            do_sample: temperature != 0.0,
            temperature: Some(temperature),
            // 0 and -1 are how vLLM's clients write "off".
            top_k: self.top_k.filter(|top_k| !matches!(top_k, 0 | -1)).map(Into::into),
            top_p: self.top_p,
            typical_p: None,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: logit_bias
                .into_iter()
                .map(|(token, bias)| token.parse().map(|token| (token, bias)))
                .collect::<Result<_, _>>()
                .map_err(|_| parameter("logit_bias", "must have token ids as its keys"))?,
            seed: self.seed,
            stop: match self.stop {
                None => Vec::new(),
                Some(StopField::One(stop)) => vec![stop],
                Some(StopField::Many(stops)) => stops,
            },
            include_stop: false,
            ignore_eos_token: self.ignore_eos,
            truncate: None,
            top_logprobs: (self.top_logprobs > 0).then_some(self.top_logprobs.into()),
            prompt_logprobs: self.prompt_logprobs,
        })
    }
}

/// What clients of text-generation-inference write for the one model that such a server has.
const TGI_MODEL: &str = "tgi";

/// The weights that a body's `model` and adapter fields name, and the name to answer with.
///
/// `model` is the base model's id, empty or `tgi`, or else an adapter's; `adapter_id` may name the adapter instead.
pub(super) fn select_model(
    base: &str,
    model: String,
    adapter_id: Option<String>,
    adapter_source: Option<&str>,
    merged_adapters: Option<&serde_json::Value>,
) -> Result<(AdapterRef, String), Error> {
    let adapter_id = adapter_id.filter(|id| !id.is_empty());
    adapter::refuse_merge(merged_adapters, adapter_id.as_deref())?;
    let by_model = Some(model).filter(|model| !["", TGI_MODEL, base].contains(&model.as_str()));
    let chosen = match (by_model, adapter_id) {
        (Some(model), Some(id)) if model != id => {
            return Err(parameter("adapter_id", "names another adapter than `model`"));
        }
        (model, id) => model.or(id),
    };
    let served = chosen.clone().unwrap_or_else(|| base.to_owned());
    Ok((adapter::adapter(chosen, adapter_source)?, served))
}

/// `n` within the server's bound.
pub(super) fn choices(n: Option<u32>, max: usize) -> Result<usize, Error> {
    match n.unwrap_or(1) as usize {
        given if given == 0 || given > max => Err(Invalid::Choices { max, given }.into()),
        n => Ok(n),
    }
}

/// Fields that this server knows and must not ignore, each with whether the body sets it.
pub(super) fn refuse(fields: &[(&'static str, bool, &'static str)]) -> Result<(), Error> {
    match fields.iter().find(|(_, set, _)| *set) {
        Some((param, _, hint)) => Err(Invalid::Unsupported { param, hint }.into()),
        None => Ok(()),
    }
}

pub(super) fn parameter(param: &'static str, message: impl Into<String>) -> Error {
    Invalid::Parameter { param, message: message.into() }.into()
}

/// Whether a `response_format` asks for more than text.
pub(super) fn constrains(response_format: Option<&serde_json::Value>) -> bool {
    response_format.is_some_and(|format| format["type"] != "text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::AdapterSource;

    fn select(model: &str, adapter_id: Option<&str>) -> Result<(AdapterRef, String), Error> {
        select_model("base", model.to_owned(), adapter_id.map(str::to_owned), None, None)
    }

    fn named(id: &str) -> (AdapterRef, String) {
        (AdapterRef::Named { id: id.to_owned(), source: AdapterSource::Local }, id.to_owned())
    }

    #[test]
    fn the_model_names_the_adapter() {
        let base = (AdapterRef::Base, "base".to_owned());
        assert_eq!(select("base", None), Ok(base.clone()));
        assert_eq!(select("", Some("")), Ok(base));
        assert_eq!(select("sql", None), Ok(named("sql")));
        assert_eq!(select("base", Some("sql")), Ok(named("sql")));
        assert_eq!(select("sql", Some("sql")), Ok(named("sql")));
        assert!(select("sql", Some("law")).is_err());
    }

    #[test]
    fn temperature_decides_whether_to_sample() {
        let params = |temperature| Sampling { temperature, ..Sampling::default() }.into_params().unwrap();
        assert!(params(None).do_sample);
        assert_eq!(params(None).temperature, Some(1.0));
        assert!(!params(Some(0.0)).do_sample);
    }

    #[test]
    fn biases_are_keyed_by_token_id() {
        let with = |key: &str| {
            let logit_bias = Some(IndexMap::from_iter([(key.to_owned(), 1.5)]));
            Sampling { logit_bias, ..Sampling::default() }.into_params().map(|params| params.logit_bias)
        };
        assert_eq!(with("50256"), Ok(vec![(50256, 1.5)]));
        assert!(with("-1").is_err() && with("a").is_err() && with("4294967296").is_err());
    }
}
