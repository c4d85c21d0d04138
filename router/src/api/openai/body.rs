//! The fields that the bodies of completions and chat have in common, and what becomes of them: written once.

/// Defines a body: its own fields, then those in common. A macro, since `serde(flatten)` forgets which field
/// was wrong.
macro_rules! body {
    (pub struct $name:ident { $($own:tt)* }) => {
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            /// The base model, or an adapter. Empty, `tgi` and `dummy` are the base model, unless an adapter is named so.
            pub model: String,
            $($own)*
            /// 1 if not given; 0 is greedy.
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(minimum = 0.0)]
            pub temperature: Option<f32>,
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
            pub top_p: Option<f32>,
            /// Extension: 0 and -1 are off.
            #[serde(default)]
            pub top_k: Option<i32>,
            /// Extension.
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
            pub typical_p: Option<f32>,
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(minimum = -2.0, maximum = 2.0)]
            pub frequency_penalty: Option<f32>,
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(minimum = -2.0, maximum = 2.0)]
            pub presence_penalty: Option<f32>,
            /// Extension.
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            #[schema(exclusive_minimum = 0.0)]
            pub repetition_penalty: Option<f32>,
            /// Added to the scores of tokens, by their ids.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub logit_bias: Option<$crate::api::openai::params::Biases>,
            #[serde(default)]
            #[schema(value_type = Option<i64>)]
            pub seed: Option<$crate::api::openai::params::Seed>,
            #[serde(default)]
            pub stop: Option<$crate::api::openai::StopField>,
            /// Choices for each prompt.
            #[serde(default)]
            #[schema(minimum = 1)]
            pub n: Option<u32>,
            #[serde(default)]
            pub stream: Option<bool>,
            #[serde(default, deserialize_with = "crate::api::wire::object")]
            pub stream_options: Option<$crate::api::openai::StreamOptions>,
            /// Refused unless of type `text`.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub response_format: Option<serde_json::Value>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub structured_outputs: Option<serde_json::Value>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub guided_json: Option<serde_json::Value>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub guided_regex: Option<serde_json::Value>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub guided_choice: Option<serde_json::Value>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub guided_grammar: Option<serde_json::Value>,
            /// vLLM's: refused unless 0.
            #[serde(default, deserialize_with = "crate::api::wire::finite")]
            pub min_p: Option<f32>,
            /// vLLM's: refused unless 0.
            #[serde(default)]
            pub min_tokens: Option<u32>,
            /// vLLM's: refused unless empty.
            #[serde(default)]
            pub stop_token_ids: Option<Vec<u32>>,
            /// vLLM's: refused unless empty.
            #[serde(default)]
            pub bad_words: Option<Vec<String>>,
            /// vLLM's: refused.
            #[serde(default)]
            pub allowed_token_ids: Option<Vec<u32>>,
            /// vLLM's: refused when true.
            #[serde(default)]
            pub use_beam_search: Option<bool>,
            /// vLLM's: refused.
            #[serde(default)]
            pub truncate_prompt_tokens: Option<i64>,
            /// vLLM's: refused when false.
            #[serde(default)]
            pub skip_special_tokens: Option<bool>,
            /// vLLM's: refused.
            #[serde(default)]
            pub prompt_logprobs: Option<i64>,
            /// vLLM's: refused when true.
            #[serde(default)]
            pub return_token_ids: Option<bool>,
            /// vLLM's: refused when true.
            #[serde(default)]
            pub return_tokens_as_token_ids: Option<bool>,
            /// vLLM's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub cache_salt: Option<serde_json::Value>,
            /// SGLang's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub lora_path: Option<serde_json::Value>,
            /// SGLang's: refused.
            #[serde(default)]
            pub regex: Option<String>,
            /// SGLang's: refused.
            #[serde(default)]
            pub ebnf: Option<String>,
            /// SGLang's and llama.cpp's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub json_schema: Option<serde_json::Value>,
            /// llama.cpp's: refused.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub grammar: Option<serde_json::Value>,
            /// Extension: the text ends with the stop sequence that was found.
            #[serde(default)]
            pub include_stop_str_in_output: Option<bool>,
            /// Extension: do not end at the model's end-of-sequence tokens.
            #[serde(default)]
            pub ignore_eos: Option<bool>,
            /// Another name of `ignore_eos`.
            #[serde(default)]
            pub ignore_eos_token: Option<bool>,
            /// Extension: the adapter, when `model` is the base model.
            #[serde(default)]
            pub adapter_id: Option<String>,
            /// Extension.
            #[serde(default)]
            pub adapter_source: Option<String>,
            /// Refused: merging adapters is not supported.
            #[serde(default)]
            #[schema(value_type = Option<Object>)]
            pub merged_adapters: Option<serde_json::Value>,
        }

        impl $name {
            /// Refuses what would change the answer and is not served. Other fields that are not known have no
            /// effect.
            pub(in $crate::api::openai) fn refuse_unserved(&self) -> Result<(), $crate::error::Error> {
                use $crate::api::refuse::{CONSTRAINED, constrains, refuse};
                const TOLD: &str = "tokens are told as text";
                refuse(&[
                    ("response_format", constrains(self.response_format.as_ref()), CONSTRAINED),
                    ("structured_outputs", self.structured_outputs.is_some(), CONSTRAINED),
                    ("guided_json", self.guided_json.is_some(), CONSTRAINED),
                    ("guided_regex", self.guided_regex.is_some(), CONSTRAINED),
                    ("guided_choice", self.guided_choice.is_some(), CONSTRAINED),
                    ("guided_grammar", self.guided_grammar.is_some(), CONSTRAINED),
                    ("min_p", self.min_p.is_some_and(|p| p != 0.0), "use `top_p`"),
                    ("min_tokens", self.min_tokens.is_some_and(|count| count > 0), "use `ignore_eos`"),
                    ("regex", self.regex.is_some(), CONSTRAINED),
                    ("ebnf", self.ebnf.is_some(), CONSTRAINED),
                    ("json_schema", self.json_schema.is_some(), CONSTRAINED),
                    ("grammar", self.grammar.is_some(), CONSTRAINED),
                    ("lora_path", self.lora_path.is_some(), "name the adapter as `model`"),
                    ("cache_salt", self.cache_salt.is_some(), "the KV cache is shared unless --disable-prefix-cache"),
                    ("stop_token_ids", self.stop_token_ids.as_ref().is_some_and(|ids| !ids.is_empty()), "use `stop`"),
                    ("bad_words", self.bad_words.as_ref().is_some_and(|words| !words.is_empty()), "use `logit_bias`"),
                    ("allowed_token_ids", self.allowed_token_ids.is_some(), "use `logit_bias`"),
                    ("use_beam_search", self.use_beam_search == Some(true), "leave it out or send false"),
                    ("truncate_prompt_tokens", self.truncate_prompt_tokens.is_some(), "send a shorter prompt"),
                    ("skip_special_tokens", self.skip_special_tokens == Some(false), "the text never has them"),
                    ("prompt_logprobs", self.prompt_logprobs.is_some(), "use `echo` and `logprobs` of /v1/completions"),
                    ("return_token_ids", self.return_token_ids == Some(true), TOLD),
                    ("return_tokens_as_token_ids", self.return_tokens_as_token_ids == Some(true), TOLD),
                ])
            }

            /// How to sample and when to stop; how many tokens, and which are told, is said with fields that
            /// differ.
            pub(in $crate::api::openai) fn params(
                &mut self,
                max_new_tokens: Option<u32>,
                top_logprobs: u32,
                prompt_logprobs: Option<u32>,
            ) -> Result<$crate::request::Params, $crate::error::Error> {
                use $crate::api::openai::params;
                let temperature = self.temperature.unwrap_or(1.0);
                Ok($crate::request::Params {
                    max_new_tokens,
                    do_sample: temperature != 0.0,
                    temperature: Some(temperature),
                    // 0 and -1 are how vLLM's clients write "off".
                    top_k: self.top_k.filter(|top_k| !matches!(top_k, 0 | -1)).map(Into::into),
                    top_p: self.top_p,
                    // 1 is how other servers write "off".
                    typical_p: self.typical_p.filter(|p| ![1.0].contains(p)),
                    repetition_penalty: self.repetition_penalty,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    logit_bias: self.logit_bias.take().unwrap_or_default().pairs()?,
                    seed: self.seed.map(|params::Seed(seed)| seed),
                    stop: params::stops(self.stop.take()),
                    include_stop: self.include_stop_str_in_output == Some(true),
                    ignore_eos_token: self.ignore_eos == Some(true) || self.ignore_eos_token == Some(true),
                    truncate: None,
                    top_logprobs: (top_logprobs > 0).then_some(top_logprobs.into()),
                    prompt_logprobs,
                })
            }

            /// The weights that are asked for, and the name to answer with.
            pub(in $crate::api::openai) fn select_model(
                &mut self,
                base: &str,
            ) -> Result<($crate::request::AdapterRef, String), $crate::error::Error> {
                $crate::api::openai::params::select_model(
                    base,
                    std::mem::take(&mut self.model),
                    self.adapter_id.take(),
                    self.adapter_source.as_deref(),
                    self.merged_adapters.as_ref(),
                )
            }
        }
    };
}

pub(super) use body;

#[cfg(test)]
#[expect(dead_code, unreachable_pub, reason = "a body of which only the parameters are read")]
mod tests {
    use serde_json::{Value, json};

    use crate::{error::Error, request::Params};

    super::body! {
        pub struct Plain {}
    }

    fn params(mut fields: Value) -> Result<Params, Error> {
        fields["model"] = "".into();
        serde_json::from_value::<Plain>(fields).unwrap().params(None, 0, None)
    }

    #[test]
    fn temperature_decides_whether_to_sample() {
        let asked = params(json!({})).unwrap();
        assert_eq!((asked.do_sample, asked.temperature), (true, Some(1.0)));
        assert!(!params(json!({"temperature": 0})).unwrap().do_sample);
    }

    #[test]
    fn off_has_several_names() {
        for off in [json!(null), json!(0), json!(-1)] {
            assert_eq!(params(json!({"top_k": off})).unwrap().top_k, None);
        }
        assert_eq!(
            params(json!({"top_k": -2})).unwrap().top_k,
            Some(-2),
            "refused later, and not taken for off"
        );
        for name in ["ignore_eos", "ignore_eos_token"] {
            assert!(params(json!({name: true})).unwrap().ignore_eos_token, "{name}");
        }
    }

    #[test]
    fn extensions_of_vllm_are_as_there() {
        assert_eq!(params(json!({"typical_p": 0.5})).unwrap().typical_p, Some(0.5));
        assert_eq!(params(json!({"typical_p": 1})).unwrap().typical_p, None);
        assert!(params(json!({"include_stop_str_in_output": true})).unwrap().include_stop);
        assert!(!params(json!({})).unwrap().include_stop);
    }

    #[test]
    fn seeds_may_be_negative() {
        let seed = |seed: Value| params(json!({"seed": seed})).unwrap().seed;
        assert_eq!(seed(json!(null)), None);
        assert_eq!(seed(json!(7)), Some(7));
        assert_eq!(seed(json!(u64::MAX - 1)), Some(u64::MAX - 1), "as on the native routes");
        assert_eq!(seed(json!(-1)), Some(u64::MAX));
        assert_eq!(seed(json!(i64::MIN)), Some(1 << 63));
        for no in [json!(1.5), json!("1"), json!(1e30), json!(-1e30)] {
            let body = serde_json::from_value::<Plain>(json!({"model": "", "seed": no}));
            assert!(body.is_err_and(|error| error.to_string().contains("an integer of 64 bits")), "{no}");
        }
    }

    #[test]
    fn biases_are_keyed_by_token_id() {
        let with = |key: &str| params(json!({"logit_bias": {key: 1.5}})).map(|params| params.logit_bias);
        assert_eq!(with("50256"), Ok(vec![(50256, 1.5)]));
        for key in ["-1", "a", "", " 1", "+1", "01", "1.0", "4294967296"] {
            assert!(with(key).is_err(), "{key}");
        }
    }

    #[test]
    fn biases_beyond_the_bound_are_only_counted() {
        let many: serde_json::Map<_, _> = (0..5000).map(|token| (token.to_string(), 1.into())).collect();
        let error = params(json!({"logit_bias": many})).unwrap_err().to_string();
        assert_eq!(error, "Input validation error: `logit_bias` supports up to 1024 tokens. Given: 5000");
    }
}
