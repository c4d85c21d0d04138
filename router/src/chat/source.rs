//! What the files of a tokenizer say about chats: the templates, and the special tokens that these name.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde_json::Value as Json;

use super::error::TemplateError;

pub(super) const DEFAULT: &str = "default";
pub(super) const TOOL_USE: &str = "tool_use";
/// Where transformers writes the templates that are used here.
const FILES: [(&str, &str); 2] =
    [(DEFAULT, "chat_template.jinja"), (TOOL_USE, "additional_chat_templates/tool_use.jinja")];

/// Names with what they stand for.
pub(super) struct Source {
    /// Sources of templates.
    pub(super) templates: BTreeMap<String, String>,
    /// `bos_token`, `eos_token` and so on, as they are written.
    pub(super) special_tokens: BTreeMap<String, String>,
}

impl Source {
    /// Reads a tokenizer's directory: `chat_template.jinja` and `additional_chat_templates`, or else
    /// `chat_template` of `tokenizer_config.json`, a string or a list of named ones.
    ///
    /// # Errors
    /// When a file is there but cannot be read, or is not JSON.
    pub(super) fn read(directory: &Path) -> Result<Self, TemplateError> {
        let config = read_json(directory, "tokenizer_config.json")?;
        let mut templates = BTreeMap::new();
        for (name, file) in FILES {
            templates.extend(read(directory, file)?.map(|source| (name.to_owned(), source)));
        }
        if templates.is_empty() {
            templates = configured(&config["chat_template"]);
        }
        let mut special_tokens = self::special_tokens(&config);
        if config.get("added_tokens_decoder").is_none() {
            // Older tokenizers have them in a file of their own, which counts.
            special_tokens.extend(self::special_tokens(&read_json(directory, "special_tokens_map.json")?));
        }
        Ok(Self { templates, special_tokens })
    }
}

fn configured(value: &Json) -> BTreeMap<String, String> {
    match value {
        Json::String(source) => [(DEFAULT.to_owned(), source.clone())].into(),
        Json::Array(named) => named
            .iter()
            .filter_map(|entry| {
                Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()))
            })
            .collect(),
        _ => BTreeMap::new(),
    }
}

/// `bos_token` and so on: a string, or an object with `content`.
fn special_tokens(config: &Json) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.clone(), token.to_owned()))
        })
        .collect()
}

/// A file that is not there is `null`.
fn read_json(directory: &Path, file: &'static str) -> Result<Json, TemplateError> {
    let text = read(directory, file)?;
    text.map_or(Ok(Json::Null), |text| serde_json::from_str(&text))
        .map_err(|source| TemplateError::Json { file, source })
}

fn read(directory: &Path, file: &'static str) -> Result<Option<String>, TemplateError> {
    match fs::read_to_string(directory.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Read { file, source }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(directory: &Path, files: &[(&str, &Json)]) -> Source {
        for (file, content) in files {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.as_str().map_or_else(|| content.to_string(), str::to_owned)).unwrap();
        }
        Source::read(directory).unwrap()
    }

    fn owned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn templates_in_files_replace_those_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert!(written(at, &[]).templates.is_empty());
        let named = json!({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]});
        let read = written(at, &[("tokenizer_config.json", &named)]);
        assert_eq!(read.templates, owned(&[("default", "plain"), ("tool_use", "tools")]));
        let read = written(at, &[("chat_template.jinja", &json!("file"))]);
        assert_eq!(read.templates, owned(&[("default", "file")]));
        let read = written(at, &[("additional_chat_templates/tool_use.jinja", &json!("tools file"))]);
        assert_eq!(read.templates, owned(&[("default", "file"), ("tool_use", "tools file")]));
    }

    #[test]
    fn special_tokens_are_strings_or_objects() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let config = json!({"bos_token": {"content": "<b>"}, "eos_token": null, "pad_token": "<p>"});
        let read = written(at, &[("tokenizer_config.json", &config)]);
        assert_eq!(read.special_tokens, owned(&[("bos_token", "<b>"), ("pad_token", "<p>")]));
        let read = written(at, &[("special_tokens_map.json", &json!({"pad_token": "<old>"}))]);
        assert_eq!(read.special_tokens, owned(&[("bos_token", "<b>"), ("pad_token", "<old>")]));
        let config = json!({"pad_token": "<p>", "added_tokens_decoder": {}});
        let read = written(at, &[("tokenizer_config.json", &config)]);
        assert_eq!(read.special_tokens, owned(&[("pad_token", "<p>")]));
    }
}
