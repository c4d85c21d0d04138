//! What is the same on every chunk of a stream, written once.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use super::reply::UsageField;
use crate::api::sse;

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
        let json = serde_json::to_string(empty).unwrap_or_default();
        Self(json.strip_suffix(r#","choices":[]}"#).unwrap_or_default().into())
    }

    /// Writes one event.
    pub(super) fn write<C: Serialize>(&self, choices: &[C], usage: UsageField, out: &mut BytesMut) {
        sse::event_with(out, |out| {
            out.put_slice(&self.0);
            let start = out.len();
            serde_json::to_writer(out.writer(), &Contents { choices, usage })?;
            // The object goes on.
            if let (Some(brace), false) = (out.get_mut(start), self.0.is_empty()) {
                *brace = b',';
            }
            Ok(())
        });
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
