//! Log-probabilities in chat's shape.

use super::types::{ChatTokenLogprob, ChatTopLogprob};
use crate::{api::wire::sendable, output::TokenOutput};

pub(super) fn entry(token: &TokenOutput, alternatives: usize) -> ChatTokenLogprob {
    ChatTokenLogprob {
        token: token.text.clone(),
        logprob: sendable(token.logprob),
        bytes: bytes(&token.text),
        top_logprobs: token
            .alternatives
            .iter()
            .take(alternatives)
            .map(|alternative| ChatTopLogprob {
                token: alternative.text.clone(),
                logprob: sendable(alternative.logprob),
                bytes: bytes(&alternative.text),
            })
            .collect(),
    }
}

/// A token that holds only part of a character reads as the replacement character, whose bytes it is not.
fn bytes(text: &str) -> Option<Vec<u8>> {
    (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec())
}
