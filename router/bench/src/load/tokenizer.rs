//! A tokenizer for a simulated model: byte-level BPE without merges, so that every token is a byte.

use std::{fs, io, path::Path};

use serde_json::{Value, json};

/// Bytes and the two special tokens before them.
pub(super) const VOCABULARY: u32 = 258;
/// The tokens that are printable ASCII.
pub(super) const PRINTABLE: std::ops::Range<u32> = 2..97;

/// Writes what a router reads from a tokenizer's directory.
pub(super) fn write(directory: &Path) -> io::Result<()> {
    let specials = ["<s>", "</s>"];
    let bytes = (33..127).chain([32]).chain((0..=255).filter(|byte| !(32..127).contains(byte))).map(symbol);
    let vocabulary: serde_json::Map<String, Value> = specials
        .map(str::to_owned)
        .into_iter()
        .chain(bytes.map(String::from))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": specials.iter().enumerate().map(added).collect::<Value>(),
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    fs::write(directory.join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(directory.join("tokenizer_config.json"), json!({"eos_token": "</s>"}).to_string())?;
    fs::write(directory.join("config.json"), json!({"eos_token_id": 1}).to_string())
}

/// How byte-level BPE writes a byte: itself if it is visible, else the next free character from U+0100 on.
fn symbol(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if visible(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&other| !visible(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
