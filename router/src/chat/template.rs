//! The chat template of the base model: compiled once, run with bounds.
//!
//! A template is code from whoever published the model; it is read at start and never from a request.
//! Messages are data to it. What a run may cost is bounded all the same, since its input comes from a
//! request.

use std::{collections::BTreeMap, io, path::Path};

use minijinja::{
    Environment, Error, ErrorKind,
    syntax::SyntaxConfig,
    value::{Serde, Value},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::{
    error::TemplateError,
    literal::{Specials, pieces},
    python,
    source::{DEFAULT, Source, TOOL_USE},
};

/// Instructions one rendering may take. The longest published template takes a few hundred per message.
const FUEL: u64 = 5_000_000;
/// Bytes one rendering may write: more than any context holds.
const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of template source that are compiled.
const MAX_SOURCE: usize = 1 << 20;

/// The template, or templates, that come with a tokenizer.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// `bos_token`, `eos_token` and the other named special tokens.
    special_tokens: BTreeMap<String, String>,
    /// Tokens that must come from the template and never from a message.
    specials: Specials,
    /// Whether the source mentions the `developer` role; if not, its messages are given the role `system`.
    knows_developer: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special_tokens", &self.special_tokens).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads the templates of a tokenizer's directory. `None`: the model has no template. `specials` are the
    /// tokenizer's special tokens, as they are written.
    ///
    /// # Errors
    /// When a file is there but cannot be read, is not JSON, or holds a template that does not compile.
    pub fn load(
        directory: &Path,
        specials: impl Iterator<Item = String>,
    ) -> Result<Option<Self>, TemplateError> {
        let Source { templates, special_tokens } = Source::read(directory)?;
        if templates.is_empty() {
            return Ok(None);
        }
        Self::compile(templates, special_tokens, Specials::new(specials)).map(Some)
    }

    fn compile(
        sources: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
        specials: Specials,
    ) -> Result<Self, TemplateError> {
        let mut env = Environment::new();
        env.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| TemplateError::Compile(explain(&error)))?,
        );
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(unknown_method_callback);
        env.add_function("raise_exception", python::raise_exception);
        env.add_function("strftime_now", |format: &str| python::strftime_now(format));
        env.add_filter("tojson", python::tojson);
        env.add_test("iterable", python::is_iterable);
        env.add_test("sequence", python::is_sequence);
        let knows_developer = sources.values().any(|source| source.contains("developer"));
        for (name, source) in sources {
            if source.len() > MAX_SOURCE {
                return Err(TemplateError::Compile(format!("it is longer than {MAX_SOURCE} bytes")));
            }
            // As Jinja reads lines, whatever ends them.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            env.add_template_owned(name, without_generation_tags(&source))
                .map_err(|error| TemplateError::Compile(explain(&error)))?;
        }
        Ok(Self { env, special_tokens, specials, knows_developer })
    }

    /// The prompt for these messages, a list of objects with `role` and `content`: pieces to tokenise one by
    /// one, and to concatenate. A special token that is written in a message is in no piece as a whole.
    ///
    /// # Errors
    /// When the template refuses the messages, fails on them, or goes over a bound.
    pub fn render(
        &self,
        mut messages: Json,
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<Vec<String>, TemplateError> {
        self.specials.cut_all(&mut messages);
        if !self.knows_developer {
            developer_to_system(&mut messages);
        }
        let mut context: Vec<(&str, Value)> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .collect();
        context.push(("messages", Value::from(Serde(messages))));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        // `none`, not undefined: templates test both `tools is not none` and `if tools`.
        context.push(("tools", tools.map_or(Value::from(()), |tools| Value::from(Serde(tools)))));
        let name =
            if tools.is_some() && self.env.get_template(TOOL_USE).is_ok() { TOOL_USE } else { DEFAULT };
        let template = self
            .env
            .get_template(name)
            .map_err(|_| TemplateError::Render(format!("the tokenizer has no chat template named {name}")))?;
        let mut output = Bounded { bytes: Vec::with_capacity(1024) };
        template
            .render_captured_to(Value::from_pairs(context), &mut output)
            .map_err(|error| TemplateError::Render(explain(&error)))?;
        let rendered =
            String::from_utf8(output.bytes).map_err(|error| TemplateError::Render(error.to_string()))?;
        Ok(pieces(&rendered))
    }
}

/// A writer that refuses to grow without bound.
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendered prompt is too large"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks what a trainer learns from and means nothing here; it becomes `{% if true %}`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length];
        out.push_str(&rest[..start]);
        match tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

fn developer_to_system(messages: &mut Json) {
    for message in messages.as_array_mut().into_iter().flatten() {
        if message.get("role").and_then(Json::as_str) == Some("developer") {
            message["role"] = Json::from("system");
        }
    }
}

/// What went wrong, without the template's source.
fn explain(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "the template takes too long on these messages".to_owned(),
        (ErrorKind::WriteFailure, _) => "the rendered prompt is too large".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &Json) -> Result<String, TemplateError> {
        let tokens =
            [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
        let specials = Specials::new(["<|im_start|>", "<s>"].into_iter().map(str::to_owned));
        let template =
            ChatTemplate::compile([(DEFAULT.into(), source.into())].into(), tokens.into(), specials)?;
        Ok(template.render(messages.clone(), None, true)?.concat())
    }

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn renders_chatml_like_transformers() {
        let text = render(CHATML, &json!([{"role": "user", "content": "Hi"}])).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "  {% for m in messages %}\n{{ m.content.strip().split(' ')[-1] }}|\n  {% endfor %}\n{{ bos_token }}";
        assert_eq!(render(source, &json!([{"role": "user", "content": " a b "}])).unwrap(), "b|\n<s>");
    }

    #[test]
    fn lines_may_end_as_on_windows() {
        let source = "a\r\n{% if true %}\r\nb\r{% endif %}\r\n{{ 'c\\r' }}\r\n";
        assert_eq!(render(source, &json!([])).unwrap(), "a\nb\nc\r");
    }

    #[test]
    fn messages_are_data() {
        let text =
            render("{{ messages[0].content }}", &json!([{"role": "user", "content": "{{ 7*7 }}{% x %}"}]));
        assert_eq!(text.unwrap(), "{{ 7*7 }}{% x %}");
    }

    #[test]
    fn json_is_written_like_python() {
        let source = "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}";
        let text =
            render(source, &json!([{"role": "user", "content": "<é'>", "n": [1, 2.5, null]}])).unwrap();
        assert_eq!(
            text,
            "[{\"role\": \"user\", \"content\": \"<é'>\", \"n\": [1, 2.5, null]}]\
             {\n  \"role\": \"user\",\n  \"content\": \"<é'>\",\n  \"n\": [\n    1,\n    2.5,\n    null\n  ]\n}"
        );
    }

    #[test]
    fn a_raised_exception_is_the_message() {
        let error = render("{{ raise_exception('Roles must alternate') }}", &json!([])).unwrap_err();
        assert_eq!(error.to_string(), "Roles must alternate");
    }

    #[test]
    fn generation_tags_are_transparent() {
        let source = "a {%- generation -%} b {%- endgeneration %} c";
        assert_eq!(render(source, &json!([])).unwrap(), "ab c");
    }

    #[test]
    fn developer_is_system_for_templates_that_do_not_know_it() {
        let messages = json!([{"role": "developer", "content": ""}]);
        assert_eq!(render("{{ messages[0].role }}", &messages).unwrap(), "system");
        assert_eq!(render("{{ messages[0].role }}{# developer #}", &messages).unwrap(), "developer");
    }

    #[test]
    fn a_run_is_bounded() {
        let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        let text = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        let product = "{{ 'x' * 100000000000 }}";
        let nested = "{% if true %}".repeat(50_000);
        let messages = json!([{"role": "user", "content": "x".repeat(10_000)}]);
        for source in [loops, recursion, text, product, &nested] {
            let start = std::time::Instant::now();
            render(source, &messages).unwrap_err();
            assert!(start.elapsed().as_millis() < 2000, "{source:.40}");
        }
    }

    #[test]
    fn names_of_arguments_are_text_too() {
        let specials = Specials::new(std::iter::once("<|im_start|>".to_owned()));
        let source = "<|im_start|>{{ messages[0].tool_calls[0].function.arguments | tojson }}";
        let sources = [(DEFAULT.into(), source.into())].into();
        let template = ChatTemplate::compile(sources, BTreeMap::new(), specials).unwrap();
        let messages = json!([{"tool_calls": [{"function": {"arguments": {"<|im_start|>": 1}}}]}]);
        assert_eq!(
            template.render(messages, None, false).unwrap(),
            ["<|im_start|>{\"<", "|im_start|>\": 1}"]
        );
    }

    #[test]
    fn special_tokens_are_the_templates_alone() {
        let specials = Specials::new(std::iter::once("<|im_start|>".to_owned()));
        let template =
            ChatTemplate::compile([(DEFAULT.into(), CHATML.into())].into(), BTreeMap::new(), specials)
                .unwrap();
        let messages = json!([{"role": "system", "content": "a<|im_start|>b"}]);
        assert_eq!(
            template.render(messages, None, false).unwrap(),
            ["<|im_start|>system\na<", "|im_start|>b<|im_end|>\n"]
        );
    }
}
