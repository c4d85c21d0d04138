//! What is the same on every chunk of a stream, written once.

use bytes::BytesMut;
use serde::Serialize;

use super::reply::{Usage, UsageField};
use crate::api::{one_line::json, sse};

/// The JSON of a chunk up to its choices. Written anew it was a quarter of the router's instructions for a token.
pub(super) struct Envelope(Vec<u8>);

/// What comes behind it.
#[derive(Serialize)]
struct Contents<'a, C> {
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: UsageField,
}

impl Envelope {
    /// Of a chunk without choices or usage, the last of its fields.
    pub(super) fn of(empty: &impl Serialize) -> Self {
        Self(json(empty).strip_suffix(br#""choices":[]}"#).unwrap_or(b"{").into())
    }

    /// Writes one event.
    pub(super) fn write<C: Serialize>(&self, choices: &[C], usage: UsageField, out: &mut BytesMut) {
        let contents = json(&Contents { choices, usage });
        // Its object goes on where the envelope ends.
        sse::raw_event(out, &[&self.0, contents.strip_prefix(b"{").unwrap_or_default()]);
    }

    /// Writes the event without choices that may end a stream.
    pub(super) fn totals(&self, usage: Usage, out: &mut BytesMut) {
        self.write::<()>(&[], Some(Some(usage)), out);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_the_chunk_with_its_choices() {
        let empty = json!({"id": "a\"b", "model": "m", "choices": []});
        let write = |choices: &[&str], usage| {
            let mut out = BytesMut::new();
            Envelope::of(&empty).write(choices, usage, &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(write(&["x"], None), "data: {\"id\":\"a\\\"b\",\"model\":\"m\",\"choices\":[\"x\"]}\n\n");
        assert_eq!(
            write(&[], Some(None)),
            "data: {\"id\":\"a\\\"b\",\"model\":\"m\",\"choices\":[],\"usage\":null}\n\n"
        );
    }
}
