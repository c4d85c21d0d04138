//! JSON that is one line to everyone.

use std::io;

use serde::Serialize;
use serde_json::{Serializer, ser::Formatter};

/// In a vector, which takes JSON's many small pieces faster than the buffer of a stream would.
pub(super) fn json(payload: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    match payload.serialize(&mut Serializer::with_formatter(&mut out, OneLine)) {
        Ok(()) => out,
        Err(_) => b"{}".to_vec(), // plain structs into memory: this cannot fail
    }
}

/// JSON without the characters that end a line in Unicode and not in an event stream: some clients, httpx's
/// `iter_lines` among them, cut events there. Other ends of lines are control characters, which JSON escapes.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes()); // most of them, and all keys
        }
        let mut done = 0;
        for (at, end) in fragment.match_indices(['\u{85}', '\u{2028}', '\u{2029}']) {
            writer.write_all(&fragment.as_bytes()[done..at])?;
            for unit in end.encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
            done = at + end.len();
        }
        writer.write_all(&fragment.as_bytes()[done..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_sees_two_lines() {
        let text = "a\u{2028}b\u{2029}\u{85}é\u{2027}\r\n\u{b}\u{1c}\"";
        let made = String::from_utf8(json(&text)).unwrap();
        assert_eq!(made, "\"a\\u2028b\\u2029\\u0085é\u{2027}\\r\\n\\u000b\\u001c\\\"\"");
        assert_eq!(serde_json::from_str::<String>(&made).unwrap(), text);
    }
}
