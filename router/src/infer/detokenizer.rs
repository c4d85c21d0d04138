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
        let mut window: Vec<u32> = prompt
            .iter()
            .rev()
            .copied()
            .filter(|&token| tokenizer.special(token).is_none())
            .take(CONTEXT)
            .collect();
        window.reverse();
        let prefix = tokenizer.decode(&window);
        Self { tokenizer, settled: window.len(), window, prefix }
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The text that this token completes: possibly none, possibly that of tokens before it too. Not for special tokens.
    pub(crate) fn push(&mut self, token: u32) -> String {
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
            Some(fresh) => fresh,
            // A token changed how the ones before it are written; what is common has been given already.
            None => &text[common(text, &self.prefix)..],
        }
        .to_owned();
        self.window.drain(..self.settled);
        self.settled = tokens - self.settled;
        self.prefix = self.tokenizer.decode(&self.window[..self.settled]);
        fresh
    }
}

/// Bytes of the longest common prefix, at a character boundary.
fn common(left: &str, right: &str) -> usize {
    left.char_indices()
        .zip(right.chars())
        .find(|((_, a), b)| a != b)
        .map_or(left.len().min(right.len()), |((at, _), _)| at)
}

#[cfg(test)]
mod tests {
    use super::common;

    #[test]
    fn common_prefixes_end_at_characters() {
        for (left, right, length) in
            [("", "a", 0), ("aé", "aè", 1), ("ab", "abc", 2), ("abc", "ab", 2), ("x", "y", 0)]
        {
            assert_eq!(common(left, right), length, "{left} {right}");
        }
    }
}
