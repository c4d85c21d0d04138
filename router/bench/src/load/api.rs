//! What each kind of server is sent, and how its stream is read.

use bytes::Bytes;
use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};

use super::{Args, adapters::Adapters};

/// Below are special tokens, in the vocabularies of the models that are measured.
pub(super) const FIRST_TOKEN: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Api {
    /// Lorikeet's `/v1/completions`
    Lorikeet,
    /// Another server's `/v1/completions`, with adapters as models (vLLM, SGLang)
    Openai,
    /// `/generate_stream` of LoRAX and text-generation-inference. Prompts are words, about a token each
    Lorax,
    /// `/completion` of llama.cpp's server, with adapters by their number on its command line
    LlamaServer,
}

impl Api {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Lorikeet | Self::Openai => "/v1/completions",
            Self::Lorax => "/generate_stream",
            Self::LlamaServer => "/completion",
        }
    }

    /// What an event has in it that brings a token, and not the end or the totals.
    pub(super) fn token_mark(self) -> &'static str {
        match self {
            Self::Lorikeet | Self::Openai => "\"finish_reason\":null",
            Self::Lorax => "\"token\":",
            Self::LlamaServer => "\"stop\":false",
        }
    }

    /// The key whose last value is the number of generated tokens.
    pub(super) fn total_mark(self) -> &'static str {
        match self {
            Self::Lorikeet | Self::Openai => "\"completion_tokens\":",
            Self::Lorax => "\"generated_tokens\":",
            Self::LlamaServer => "\"tokens_predicted\":",
        }
    }
}

/// The requests of a load, by number: the same ones for the same seed, whatever the server.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) api: Api,
    model: String,
    adapters: Adapters,
    prompt: Option<String>,
    prompt_tokens: usize,
    vocabulary: u32,
    max_tokens: u32,
    seed: u64,
}

impl Requests {
    pub(super) fn new(args: &Args, adapters: Adapters) -> Self {
        Self {
            api: args.api,
            model: args.model.clone(),
            adapters,
            prompt: args.prompt.clone(),
            prompt_tokens: args.prompt_tokens,
            vocabulary: args.vocabulary,
            max_tokens: args.max_tokens,
            seed: args.seed,
        }
    }

    /// The body of request `number`.
    pub(super) fn body(&self, number: usize) -> Bytes {
        let mut random =
            SmallRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let adapter = self.adapters.pick(number, &mut random);
        let mut token = || random.random_range(FIRST_TOKEN..self.vocabulary);
        let ids = || -> Value { (0..self.prompt_tokens).map(|_| token()).collect() };
        let body = match self.api {
            Api::Lorikeet | Api::Openai => json!({
                "model": adapter.map_or(self.model.as_str(), |(_, name)| name),
                "prompt": self.prompt.as_ref().map_or_else(ids, |text| json!(text)),
                "max_tokens": self.max_tokens,
                "temperature": 0,
                "ignore_eos": true,
                "stream": true,
                "stream_options": {"include_usage": true},
            }),
            Api::Lorax => json!({
                "inputs": self.prompt.clone().unwrap_or_else(|| words(self.prompt_tokens, &mut random)),
                "parameters": {
                    "adapter_id": adapter.map(|(_, name)| name),
                    "max_new_tokens": self.max_tokens,
                    "ignore_eos_token": true,
                    "details": true,
                },
            }),
            Api::LlamaServer => json!({
                "prompt": self.prompt.as_ref().map_or_else(ids, |text| json!(text)),
                "n_predict": self.max_tokens,
                "temperature": 0,
                "ignore_eos": true,
                "cache_prompt": false,
                "stream": true,
                "lora": adapter.map(|(index, _)| json!({"id": index, "scale": 1.0})).into_iter().collect::<Value>(),
            }),
        };
        body.to_string().into()
    }
}

/// Common words: about a token each in any English vocabulary.
fn words(count: usize, random: &mut SmallRng) -> String {
    const WORDS: [&str; 24] = [
        "the", "of", "and", "to", "in", "that", "it", "with", "as", "for", "was", "on", "be", "at", "by",
        "this", "had", "not", "are", "but", "from", "or", "have", "an",
    ];
    let mut text = String::with_capacity(count * 5);
    for _ in 0..count {
        text.push(' ');
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Mix;

    fn requests(api: Api, adapters: &[String]) -> Requests {
        Requests {
            api,
            model: "base".to_owned(),
            adapters: Adapters::new(adapters, Mix::Distinct).unwrap(),
            prompt: None,
            prompt_tokens: 3,
            vocabulary: 2000,
            max_tokens: 4,
            seed: 7,
        }
    }

    #[test]
    fn requests_are_reproducible_and_differ() {
        let requests = requests(Api::Lorikeet, &["a".to_owned(), "b".to_owned()]);
        assert_eq!(requests.body(3), requests.body(3));
        let bodies: Vec<Value> = (0..2).map(|n| serde_json::from_slice(&requests.body(n)).unwrap()).collect();
        assert_ne!(bodies[0]["prompt"], bodies[1]["prompt"]);
        assert_eq!((&bodies[0]["model"], &bodies[1]["model"]), (&json!("a"), &json!("b")));
        assert_eq!(bodies[0]["prompt"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn every_server_is_spoken_to_in_its_own_words() {
        let parse = |api, adapters: &[String]| -> Value {
            serde_json::from_slice(&requests(api, adapters).body(1)).unwrap()
        };
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(parse(Api::LlamaServer, &names)["lora"], json!([{"id": 1, "scale": 1.0}]));
        assert_eq!(parse(Api::LlamaServer, &[])["lora"], json!([]));
        assert_eq!(parse(Api::Lorax, &names)["parameters"]["adapter_id"], "b");
        assert_eq!(parse(Api::Lorax, &[])["parameters"]["adapter_id"], Value::Null);
        assert_eq!(parse(Api::Openai, &[])["model"], "base");
    }
}
