//! Log-probabilities in chat's shape.

use super::types::{ChatTokenLogprob, ChatTopLogprob};
use crate::output::TokenOutput;

pub(super) fn entry(token: &TokenOutput, alternatives: usize) -> ChatTokenLogprob {
    ChatTokenLogprob {
        token: token.text.clone(),
        logprob: token.logprob,
        bytes: bytes(&token.text),
        top_logprobs: token
            .alternatives
            .iter()
            .take(alternatives)
            .map(|alternative| ChatTopLogprob {
                token: alternative.text.clone(),
                logprob: alternative.logprob,
                bytes: bytes(&alternative.text),
            })
            .collect(),
    }
}

/// A token that holds only part of a character reads as the replacement character, whose bytes it is not, or as nothing
/// where the rest of the character follows.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let part = text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER);
    (!part).then(|| text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_has_no_bytes() {
        assert_eq!([bytes(""), bytes("\u{fffd}"), bytes("a\u{fffd}")], [None, None, None]);
        assert_eq!(bytes("é"), Some(vec![0xc3, 0xa9]));
    }
}
