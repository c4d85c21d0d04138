//! What messages say stays text. A special token written in a message, `<|im_start|>system` say, would otherwise end
//! the message's turn and begin one that nobody sent.
//!
//! Before the template runs, each special token in a message is cut behind its first character; after it, the prompt
//! is taken apart at the cuts. The pieces are tokenised one by one, so no special token is ever whole in them but
//! those that the template itself writes.

use std::borrow::Cow;

use serde_json::Value;

/// A code point that is never a character: it has no other use in a text, and is removed from messages that hold it.
const CUT: char = '\u{fdd0}';

/// The special tokens of a tokenizer, as they are written.
#[derive(Debug)]
pub(super) struct Specials(Vec<String>);

impl Specials {
    pub(super) fn new(tokens: impl Iterator<Item = String>) -> Self {
        // One character cannot be cut.
        Self(tokens.filter(|token| token.chars().nth(1).is_some()).collect())
    }

    /// Cuts the special tokens in all strings of a value, and in the names of fields.
    pub(super) fn cut_all(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(cut) = self.cut(text) {
                    *text = cut;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.cut_all(value)),
            Value::Object(fields) => {
                fields.values_mut().for_each(|value| self.cut_all(value));
                if fields.keys().any(|name| matches!(self.cut(name), Cow::Owned(_))) {
                    let named = std::mem::take(fields).into_iter();
                    *fields = named.map(|(name, value)| (self.cut(&name).into_owned(), value)).collect();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let text: Cow<'a, str> = if text.contains(CUT) { text.replace(CUT, "").into() } else { text.into() };
        let mut places: Vec<usize> = self
            .0
            .iter()
            .flat_map(|token| {
                let first = token.chars().next().map_or(0, char::len_utf8);
                starts(&text, token).map(move |start| start + first)
            })
            .collect();
        if places.is_empty() {
            return text;
        }
        places.sort_unstable();
        places.dedup();
        let mut out = String::with_capacity(text.len() + places.len() * CUT.len_utf8());
        let mut done = 0;
        for place in places {
            out.push_str(&text[done..place]);
            out.push(CUT);
            done = place;
        }
        out.push_str(&text[done..]);
        out.into()
    }
}

/// Where `token` begins in `text`; occurrences may overlap.
fn starts(text: &str, token: &str) -> impl Iterator<Item = usize> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text.get(from..)?.find(token)?;
        from = start + text[start..].chars().next().map_or(1, char::len_utf8);
        Some(start)
    })
}

/// The pieces between the cuts.
pub(super) fn pieces(rendered: &str) -> Vec<String> {
    rendered.split(CUT).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_special_token_is_left_whole() {
        let specials = Specials::new(["<|a|>", "</s>", "<<", "x"].into_iter().map(str::to_owned));
        for text in ["<|a|>", "é<|a|><|a|>é", "<<<<", "</s></s", "<\u{fdd0}|a|>", "a</s>b<|a|>c"] {
            let cut = specials.cut(text);
            let pieces = pieces(&cut);
            assert!(
                pieces.iter().all(|piece| !["<|a|>", "</s>", "<<"].iter().any(|s| piece.contains(s))),
                "{pieces:?}"
            );
            assert_eq!(pieces.concat(), text.replace(CUT, ""));
        }
        for text in ["", "plain < text |", "x"] {
            assert!(matches!(specials.cut(text), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn every_string_of_a_message_is_cut() {
        let specials = Specials::new(std::iter::once("<s>".to_owned()));
        let arguments = json!({"b": {"q<s>": "<s>", "c": 2}});
        let mut messages =
            json!([{"content": "a<s>", "tool_calls": [{"function": {"arguments": arguments}}], "n": 1}]);
        let whole = messages.to_string();
        specials.cut_all(&mut messages);
        assert!(!messages.to_string().contains("<s>"));
        assert_eq!(pieces(&messages.to_string()).concat(), whole, "in the same order");
    }
}
