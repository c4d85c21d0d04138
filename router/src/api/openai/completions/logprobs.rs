//! The log-probability table of a completion.

use indexmap::IndexMap;

use super::types::CompletionLogprobs;
use crate::output::{Alternative, PromptToken, TokenOutput};

/// Collects tokens, and keeps count of the text they make up, until a part of the table is sent.
#[derive(Debug)]
pub(super) struct Table {
    alternatives: usize,
    /// Characters of all tokens so far.
    offset: usize,
    rows: CompletionLogprobs,
}

impl Table {
    pub(super) fn new(alternatives: u32) -> Self {
        Self { alternatives: alternatives as usize, offset: 0, rows: CompletionLogprobs::default() }
    }

    /// The tokens of a prompt whose text is `text`. A special token that the text does not show takes no
    /// place in it.
    pub(super) fn prompt(&mut self, tokens: &[PromptToken], mut text: &str) {
        for token in tokens {
            let rest = text.strip_prefix(&*token.text);
            self.row(&token.text, token.logprob, &token.alternatives, rest.is_some());
            text = rest.unwrap_or(text);
        }
    }

    pub(super) fn token(&mut self, token: &TokenOutput) {
        self.row(&token.text, Some(token.logprob), &token.alternatives, !token.special);
    }

    /// The rows since the last call.
    pub(super) fn take(&mut self) -> CompletionLogprobs {
        std::mem::take(&mut self.rows)
    }

    fn row(&mut self, text: &str, logprob: Option<f32>, alternatives: &[Alternative], shown: bool) {
        // Keyed by text: of two tokens that read the same the likelier, which comes first, is kept.
        let top = logprob.map(|logprob| {
            let mut top = IndexMap::with_capacity(self.alternatives + 1);
            for alternative in alternatives.iter().take(self.alternatives) {
                top.entry(alternative.text.clone()).or_insert(alternative.logprob);
            }
            top.entry(text.to_owned()).or_insert(logprob);
            top
        });
        self.rows.tokens.push(text.to_owned());
        self.rows.token_logprobs.push(logprob);
        self.rows.top_logprobs.push(top);
        self.rows.text_offset.push(self.offset);
        if shown {
            self.offset += text.chars().count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alternative(text: &str, logprob: f32) -> Alternative {
        Alternative { id: 0, text: text.to_owned(), logprob, special: false }
    }

    #[test]
    fn the_chosen_token_is_always_among_the_top() {
        let mut table = Table::new(1);
        let begin = PromptToken { id: 0, text: "<s>".into(), logprob: None, alternatives: vec![] };
        let first = PromptToken { id: 1, text: "Né".into(), logprob: Some(-1.0), alternatives: vec![] };
        let next = PromptToken {
            id: 2,
            text: " a".into(),
            logprob: Some(-2.0),
            alternatives: vec![alternative(" the", -0.5)],
        };
        table.prompt(&[begin, first, next], "Né a");
        let token = TokenOutput {
            id: 3,
            text: "b".into(),
            logprob: -0.25,
            special: false,
            alternatives: vec![alternative("b", -0.25), alternative("c", -9.0)],
            delta: String::new(),
        };
        table.token(&token);
        let rows = table.take();
        assert_eq!(rows.tokens, ["<s>", "Né", " a", "b"]);
        assert_eq!(rows.token_logprobs, [None, Some(-1.0), Some(-2.0), Some(-0.25)]);
        assert_eq!(rows.text_offset, [0, 0, 2, 4]);
        let top =
            |entries: &[(&str, f32)]| entries.iter().map(|(text, p)| ((*text).to_owned(), *p)).collect();
        assert_eq!(
            rows.top_logprobs,
            [
                None,
                Some(top(&[("Né", -1.0)])),
                Some(top(&[(" the", -0.5), (" a", -2.0)])),
                Some(top(&[("b", -0.25)]))
            ]
        );
        table.token(&token);
        assert_eq!(table.take().text_offset, [5]);
    }
}
