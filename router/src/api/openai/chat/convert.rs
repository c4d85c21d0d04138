//! From a chat body to the router's own request.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    shape::Chat,
    types::{ChatBody, Content, Message},
};
use crate::{
    api::{
        openai::{
            answer::Plan,
            params::{choices, parameter},
        },
        refuse::refuse,
    },
    config::Config,
    error::Error,
    request::{GenerateRequest, Prompt},
};

const TOOLS: &str = "tool calls are not available";

pub(super) fn convert(
    mut body: ChatBody,
    config: &Config,
    request_id: Arc<str>,
) -> Result<Plan<Chat>, Error> {
    refuse_unsupported(&body)?;
    let logprobs = logprobs(body.logprobs == Some(true), body.top_logprobs, config.limits.max_alternatives)?;
    let choices = choices(body.n, config.limits.max_choices)?;
    let (adapter, model) = body.select_model(&config.model.model_id)?;
    if body.max_completion_tokens == Some(0) {
        return Err(parameter("max_completion_tokens", "must be strictly positive"));
    }
    let max_tokens = body.max_completion_tokens.or(body.max_tokens);
    let params = body.params(max_tokens, logprobs.unwrap_or(0) as u32, None)?;

    if body.messages.is_empty() {
        return Err(parameter("messages", "cannot be empty"));
    }
    let mut characters = 0;
    let messages = body
        .messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| for_template(index, message, &mut characters))
        .collect::<Result<_, _>>()?;
    let add_generation_prompt = body.add_generation_prompt.unwrap_or(true);
    let prompt = Prompt::Chat { messages: Value::Array(messages), tools: None, add_generation_prompt };
    let request = GenerateRequest { prompt, adapter, params, request_id };
    Ok(Plan {
        prompts: vec![request],
        generated: choices,
        kept: choices,
        prompt_only: false,
        stream: body.stream == Some(true),
        stream_options: body.stream_options,
        model,
        characters,
        shape: Chat { logprobs },
    })
}

fn refuse_unsupported(body: &ChatBody) -> Result<(), Error> {
    body.refuse_unserved()?;
    let forced = |choice: Option<&Value>| choice.is_some_and(|choice| choice != "none" && choice != "auto");
    let modalities = body.modalities.as_ref().is_some_and(|names| names.iter().any(|name| name != "text"));
    let kwargs = body.chat_template_kwargs.as_ref().is_some_and(|kwargs| !kwargs.is_empty());
    refuse(&[
        ("tools", body.tools.as_ref().is_some_and(|tools| !tools.is_empty()), TOOLS),
        ("tool_choice", forced(body.tool_choice.as_ref()), TOOLS),
        ("function_call", forced(body.function_call.as_ref()), TOOLS),
        ("functions", body.functions.as_ref().is_some_and(|list| !list.is_empty()), TOOLS),
        ("modalities", modalities, "the model writes text"),
        ("chat_template", body.chat_template.is_some(), "the template comes with the model"),
        ("chat_template_kwargs", kwargs, "the template takes the messages only"),
        ("tool_prompt", body.tool_prompt.is_some(), TOOLS),
        ("guideline", body.guideline.is_some(), "write it into a message"),
        (
            "documents",
            body.documents.as_ref().is_some_and(|list| !list.is_empty()),
            "write them into a message",
        ),
        ("continue_final_message", body.continue_final_message == Some(true), "use /v1/completions"),
        ("add_special_tokens", body.add_special_tokens == Some(true), "the template writes them"),
        ("echo", body.echo == Some(true), "leave it out or send false"),
    ])
}

fn logprobs(wanted: bool, top: Option<u32>, max: u32) -> Result<Option<usize>, Error> {
    match top.unwrap_or(0) {
        top if top > max => Err(parameter("top_logprobs", format!("must be <= {max}. Given: {top}"))),
        top if top > 0 && !wanted => Err(parameter("top_logprobs", "needs `logprobs` to be true")),
        top => Ok(wanted.then_some(top as usize)),
    }
}

/// A message as templates expect it: content as one text, tool calls with their arguments as objects.
fn for_template(index: usize, message: Message, characters: &mut usize) -> Result<Value, Error> {
    let Message { role, content, name, tool_calls, tool_call_id } = message;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !(1..=64).contains(&role.len()) || !role.bytes().all(plain) {
        let path = format!("messages[{index}].role");
        return Err(misshapen(path, "must be 1 to 64 letters, digits, `_` or `-`"));
    }
    let text = match content {
        Some(Content::Text(text)) => Some(text),
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for (place, part) in parts.into_iter().enumerate() {
                let Some(piece) = part.text.filter(|_| part.kind == "text") else {
                    let path = format!("messages[{index}].content[{place}]");
                    return Err(misshapen(path, "must be of type `text` and have a `text`"));
                };
                text.push_str(&piece);
            }
            Some(text)
        }
        None if role == "assistant" => None,
        None => return Err(misshapen(format!("messages[{index}].content"), "cannot be null for this role")),
    };
    *characters += text.as_ref().map_or(0, |text| text.chars().count());

    let mut object = Map::with_capacity(5);
    object.insert("role".to_owned(), role.into());
    // Many templates concatenate it unasked, and all that ask whether it is there take an empty one for none.
    object.insert("content".to_owned(), text.unwrap_or_default().into());
    if let Some(name) = name {
        object.insert("name".to_owned(), name.into());
    }
    // Some templates ask whether there is a list, and leave out the answer of a message that has one.
    if let Some(calls) = tool_calls.filter(|calls| !calls.is_empty()) {
        object.insert(
            "tool_calls".to_owned(),
            calls.into_iter().map(|call| parse_arguments(call.into())).collect(),
        );
    }
    if let Some(id) = tool_call_id {
        object.insert("tool_call_id".to_owned(), id.into());
    }
    Ok(Value::Object(object))
}

fn misshapen(path: String, message: &str) -> Error {
    Error::WrongShape { path, message: message.to_owned() }
}

/// OpenAI writes arguments as JSON in a string; templates write an object as JSON themselves.
fn parse_arguments(mut call: Value) -> Value {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
    {
        *arguments = object;
    }
    call
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(json: Value) -> Result<Value, Error> {
        for_template(0, serde_json::from_value(json).unwrap(), &mut 0)
    }

    #[test]
    fn parts_become_one_text() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]);
        assert_eq!(
            message(json!({"role": "user", "content": parts})),
            Ok(json!({"role": "user", "content": "aé"}))
        );
        let image = json!([{"type": "image_url", "image_url": {"url": "http://x"}}]);
        assert!(message(json!({"role": "user", "content": image})).is_err());
    }

    #[test]
    fn tool_messages_reach_the_template() {
        let call =
            json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
        assert_eq!(
            message(json!({"role": "assistant", "content": null, "tool_calls": [call]})),
            Ok(json!({"role": "assistant", "content": "", "tool_calls":
                [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}))
        );
        assert_eq!(
            message(json!({"role": "assistant", "content": "1", "tool_calls": []})),
            Ok(json!({"role": "assistant", "content": "1"}))
        );
        assert_eq!(
            message(json!({"role": "tool", "content": "1", "tool_call_id": "c"})),
            Ok(json!({"role": "tool", "content": "1", "tool_call_id": "c"}))
        );
    }

    #[test]
    fn a_message_must_say_who_and_what() {
        assert!(message(json!({"role": "user"})).is_err());
        assert!(message(json!({"role": "", "content": "a"})).is_err());
        assert!(message(json!({"role": "user<|im_end|>", "content": "a"})).is_err());
        assert_eq!(message(json!({"role": "assistant"})), Ok(json!({"role": "assistant", "content": ""})));
    }

    #[test]
    fn top_logprobs_need_logprobs() {
        assert_eq!(logprobs(true, Some(3), 20), Ok(Some(3)));
        assert_eq!(logprobs(true, None, 20), Ok(Some(0)));
        assert_eq!(logprobs(false, Some(0), 20), Ok(None));
        assert!(logprobs(false, Some(1), 20).is_err());
        assert!(logprobs(true, Some(21), 20).is_err());
    }
}
