//! What the bodies of completions and chat have in common.

use std::fmt;

use indexmap::IndexMap;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use utoipa::ToSchema;

use crate::{
    adapters::Registry,
    api::adapter,
    config::MAX_BIAS,
    error::{Error, Invalid},
    request::AdapterRef,
};

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

/// OpenAI's seed is signed, ours is not: a negative one is the number of the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Seed(pub(super) u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Integer;

        impl Visitor<'_> for Integer {
            type Value = Seed;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an integer of 64 bits")
            }

            fn visit_u64<E>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }

            fn visit_i64<E>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed.cast_unsigned()))
            }
        }

        deserializer.deserialize_i64(Integer)
    }
}

/// Biases by token id. A body has room for a million: more than a request may have are counted and not kept.
#[derive(Debug, Default)]
pub struct Biases {
    kept: IndexMap<u32, f32>,
    given: usize,
    unnamed: bool,
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Biases;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut biases = Biases::default();
                while let Some((key, bias)) = map.next_entry::<String, f32>()? {
                    biases.given += 1;
                    match token_id(&key) {
                        Some(token) if biases.given <= MAX_BIAS => {
                            biases.kept.insert(token, bias);
                        }
                        Some(_) => {}
                        None => biases.unnamed = true,
                    }
                }
                Ok(biases)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Biases {
    pub(super) fn pairs(self) -> Result<Vec<(u32, f32)>, Error> {
        if self.unnamed {
            return Err(parameter("logit_bias", "must have token ids as its keys"));
        }
        if self.given > MAX_BIAS {
            // Validation cannot count what was not kept.
            return Err(Invalid::BiasCount(self.given).into());
        }
        Ok(self.kept.into_iter().collect())
    }
}

pub(super) fn stops(given: Option<StopField>) -> Vec<String> {
    match given {
        None => Vec::new(),
        Some(StopField::One(stop)) => vec![stop],
        Some(StopField::Many(stops)) => stops,
    }
}

/// What clients of text-generation-inference write for the one model that such a server has; the second is
/// `huggingface_hub`'s.
const ALIASES: [&str; 2] = ["tgi", "dummy"];

/// Takes these for the base model, unless an adapter has that name.
pub(super) async fn without_alias(registry: &Registry, model: &mut String) {
    if ALIASES.contains(&model.as_str()) && !registry.has(model).await {
        model.clear();
    }
}

/// The weights that a body's `model` and adapter fields name, and the name to answer with.
///
/// `model` is the base model's id or empty, or else an adapter's; `adapter_id` may name the adapter instead.
pub(super) fn select_model(
    base: &str,
    model: String,
    adapter_id: Option<String>,
    adapter_source: Option<&str>,
    merged_adapters: Option<&serde_json::Value>,
) -> Result<(AdapterRef, String), Error> {
    let adapter_id = adapter_id.filter(|id| !id.is_empty());
    adapter::refuse_merge(merged_adapters, adapter_id.as_deref())?;
    let by_model = Some(model).filter(|model| !["", base].contains(&model.as_str()));
    let chosen = match (by_model, adapter_id) {
        (Some(model), Some(id)) if model != id => {
            return Err(parameter("adapter_id", "names another adapter than `model`"));
        }
        (model, id) => model.or(id),
    };
    let served = chosen.clone().unwrap_or_else(|| base.to_owned());
    Ok((adapter::adapter(base, chosen, adapter_source)?, served))
}

/// A token's id as the key of a bias: written in one way only, so that no token has two biases.
fn token_id(key: &str) -> Option<u32> {
    key.parse().ok().filter(|id: &u32| id.to_string() == key)
}

/// `n` within the server's bound.
pub(super) fn choices(n: Option<u32>, max: usize) -> Result<usize, Error> {
    match n.unwrap_or(1) as usize {
        given if given == 0 || given > max => Err(Invalid::Choices { max, given }.into()),
        n => Ok(n),
    }
}

pub(super) fn parameter(param: &'static str, message: impl Into<String>) -> Error {
    Invalid::Parameter { param, message: message.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::AdapterSource;

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
        assert_eq!(select("", Some("")), Ok(base.clone()));
        assert_eq!(select("base", Some("base")), Ok(base));
        assert_eq!(select("sql", None), Ok(named("sql")));
        assert_eq!(select("base", Some("sql")), Ok(named("sql")));
        assert_eq!(select("sql", Some("sql")), Ok(named("sql")));
        assert!(select("sql", Some("law")).is_err());
    }
}
