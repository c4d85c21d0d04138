//! Tokens to text, one at a time.

use std::sync::Arc;

use crate::validate::Tokenizer;

/// Prompt tokens that the first output token is decoded behind, so that it keeps a leading space.
const CONTEXT: usize = 5;
/// Tokens that may wait for the rest of a character. A UTF-8 character has four bytes, so four tokens at most; what
/// waits longer is not text.
const MAX_PENDING: usize = 8;

/// Turns the tokens of one sequence into text as they come, in whole characters.
///
/// Decodes a window of the latest tokens only: O(1) per token.
pub(crate) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    window: Vec<u32>,
    /// How many tokens of the window have given their text.
    settled: usize,
    /// The text of the settled tokens of the window.
    prefix: String,
}

impl Detokenizer {
    /// For a sequence that continues `prompt`.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let plain = |token: &u32| tokenizer.special(*token).is_none();
        let mut window: Vec<u32> = prompt.iter().rev().copied().filter(plain).take(CONTEXT).collect();
        let last = window.first().copied();
        window.reverse();
        let mut new = Self { tokenizer, window: Vec::new(), settled: 0, prefix: String::new() };
        if last.and_then(|last| new.push_fixed(last)).is_none() {
            new.prefix = new.tokenizer.decode(&window);
            new.settled = window.len();
            new.window = window;
        }
        new
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The text that this token completes: possibly none, possibly that of tokens before it too. Not for special tokens.
    pub(crate) fn push(&mut self, token: u32) -> String {
        if let Some(text) = self.push_fixed(token) {
            return text;
        }
        self.window.push(token);
        let text = self.tokenizer.decode(&self.window);
        if !text.ends_with(char::REPLACEMENT_CHARACTER) {
            return self.settle(&text, self.window.len());
        }
        if self.window.len() - self.settled < MAX_PENDING {
            return String::new();
        }
        // Not text, but a character may still begin in its last tokens: what is in front of it cannot change any more.
        let whole = |cut: &usize| {
            let (front, back) = self.window.split_at(*cut);
            self.tokenizer.decode(front) + &self.tokenizer.decode(back) == text
        };
        let cut = (self.settled + 1..self.window.len()).rev().find(whole).unwrap_or(self.window.len());
        let front = self.tokenizer.decode(&self.window[..cut]);
        self.settle(&front, cut)
    }

    /// Most tokens of most models, where the text before is whole characters: nothing is decoded.
    fn push_fixed(&mut self, token: u32) -> Option<String> {
        if self.window.len() > self.settled || self.prefix.ends_with(char::REPLACEMENT_CHARACTER) {
            return None;
        }
        let text = self.tokenizer.fixed_piece(token)?;
        self.window.clear();
        self.window.push(token);
        self.settled = 1;
        self.prefix.clear();
        self.prefix.push_str(text);
        Some(text.to_owned())
    }

    /// The text of what still waits for the rest of a character.
    pub(crate) fn finish(&mut self) -> String {
        if self.window.len() == self.settled {
            return String::new();
        }
        let text = self.tokenizer.decode(&self.window);
        self.settle(&text, self.window.len())
    }

    /// Takes the first tokens of the window, whose text this is, as given. Returns what is new of it.
    fn settle(&mut self, text: &str, tokens: usize) -> String {
        let fresh = match text.strip_prefix(self.prefix.as_str()) {
            Some(fresh) => fresh.to_owned(),
            // Some decoders give up all bytes in a row when one is wrong, those of characters given before too.
            None => self.tokenizer.decode(&self.window[self.settled..tokens]),
        };
        self.window.drain(..self.settled);
        self.settled = tokens - self.settled;
        self.prefix = self.tokenizer.decode(&self.window[..self.settled]);
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    /// As Llama's: a space is `▁`, unknown characters are bytes, the first space of a text is stripped.
    fn sentencepiece() -> Arc<Tokenizer> {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let words = ["▁", "▁Hello", "▁world", "lo", "é", "!"].map(str::to_owned);
        let decoders = json!([
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]);
        tokenizer(bytes.chain(words), &json!({"type": "Sequence", "decoders": decoders}))
    }

    /// As GPT-2's: tokens are bytes, each written as a visible character. Some are parts of two characters.
    fn byte_level(decoder: &Value) -> Arc<Tokenizer> {
        let visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let symbol = |byte: u8| {
            let before = u32::from(byte) - (0..byte).filter(|&other| visible(other)).count() as u32;
            char::from_u32(if visible(byte) { byte.into() } else { 0x100 + before }).unwrap()
        };
        let words: [&[u8]; 6] = [b" ", b" Hello", b" world", b"\xa9a", b"a\xc3", b"\xa9a\xe2\x82"];
        let words = words.map(|word| word.iter().map(|&byte| symbol(byte)).collect());
        tokenizer((0..=255).map(|byte| symbol(byte).to_string()).chain(words), decoder)
    }

    fn tokenizer(plain: impl Iterator<Item = String>, decoder: &Value) -> Arc<Tokenizer> {
        let vocabulary = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(plain);
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "decoder": decoder,
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "merges": [],
                "vocab": vocabulary.enumerate().map(|(id, token)| (token, json!(id)))
                    .collect::<serde_json::Map<_, _>>()},
        });
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Arc::new(Tokenizer::load(directory.path()).unwrap())
    }

    /// Numbers below a bound, the same ones each time.
    fn random() -> impl FnMut(u32) -> u32 {
        let mut state = 1_u64;
        move |bound| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % bound
        }
    }

    fn byte(byte: u8) -> u32 {
        3 + u32::from(byte)
    }

    const HELLO: u32 = 260;
    const WORLD: u32 = 261;
    const BANG: u32 = 264;

    #[test]
    fn a_leading_space_is_kept_behind_a_prompt() {
        let tokenizer = sentencepiece();
        let mut after_prompt = Detokenizer::new(Arc::clone(&tokenizer), &[1, HELLO]);
        assert_eq!(after_prompt.push(WORLD), " world");
        assert_eq!(after_prompt.push(BANG), "!");
        let mut alone = Detokenizer::new(Arc::clone(&tokenizer), &[1]);
        assert_eq!(alone.push(HELLO), "Hello");
        assert_eq!(alone.push(WORLD), " world");
        assert_eq!((tokenizer.piece(WORLD), tokenizer.piece(2)), (" world", "</s>"));
    }

    #[test]
    fn bytes_wait_for_their_character() {
        let mut detokenizer = Detokenizer::new(sentencepiece(), &[HELLO]);
        let texts: Vec<String> = "é🦀".bytes().map(|b| detokenizer.push(byte(b))).collect();
        assert_eq!(texts, ["", "é", "", "", "", "🦀"]);
        assert_eq!(detokenizer.push(byte(0xe2)), "");
        assert_eq!(detokenizer.push(BANG), "\u{fffd}!");
        assert_eq!(detokenizer.push(byte(0xe2)), "");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn what_is_given_piece_by_piece_is_the_whole() {
        let tokenizer = sentencepiece();
        let mut next = random();
        for round in 0..300 {
            let characters = ["a", "é", "€", "🦀"];
            let tokens: Vec<u32> = (0..40)
                .flat_map(|_| match next(2) {
                    0 => vec![259 + next(6)],
                    _ => characters[next(4) as usize].bytes().map(byte).collect(),
                })
                .collect();
            let prompt = if round % 2 == 0 { vec![] } else { vec![HELLO] };
            let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), &prompt);
            let mut text: String = tokens.iter().map(|&token| detokenizer.push(token)).collect();
            text.push_str(&detokenizer.finish());
            let whole = tokenizer.decode(&[prompt.clone(), tokens].concat());
            assert_eq!(text, whole[tokenizer.decode(&prompt).len()..]);
        }
    }

    #[test]
    fn what_needs_no_decoding_is_what_decoding_gives() {
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        // The same text, but nothing is known of the decoder.
        let slow = byte_level(&json!({"type": "Sequence", "decoders": [decoder]}));
        let fast = byte_level(&decoder);
        assert_eq!((fast.fixed_piece(HELLO), slow.fixed_piece(HELLO)), (Some(" Hello"), None));
        let mut next = random();
        for round in 0..300 {
            // Text for the most part, or bytes that are none.
            let tokens: Vec<u32> =
                (0..60).map(|_| if next(4) < round % 4 { 131 + next(131) } else { 259 + next(6) }).collect();
            let (prompt, tokens) = tokens.split_at(next(20) as usize);
            let texts = |tokenizer| {
                let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), prompt);
                let mut texts: Vec<_> = tokens.iter().map(|&token| detokenizer.push(token)).collect();
                texts.push(detokenizer.finish());
                texts
            };
            assert_eq!(texts(&fast), texts(&slow));
        }
    }
}
