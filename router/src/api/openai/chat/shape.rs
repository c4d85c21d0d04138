//! How sequences become the assistant's answers.

use super::{
    logprobs::entry,
    stream::ChatChunks,
    types::{AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs},
};
use crate::{
    api::{
        collect::Completed,
        openai::{
            Usage,
            answer::Shape,
            reply::{FINGERPRINT, Head, finish_reason},
        },
    },
    infer::Generation,
};

/// How a turn of a chat is answered.
pub(super) struct Chat {
    /// Alternatives with each token; `None` answers no log-probabilities.
    pub(super) logprobs: Option<usize>,
}

impl Shape for Chat {
    const PREFIX: &'static str = "chatcmpl";
    type Chunks = ChatChunks;
    type Whole = ChatCompletion;

    fn chunks(self, head: Head, generations: &[Generation]) -> ChatChunks {
        ChatChunks::new(&head, self.logprobs, generations.len())
    }

    fn whole(self, head: Head, choices: Vec<Completed>, usage: Usage) -> ChatCompletion {
        let Head { id, created, model } = head;
        let choices = choices.into_iter().enumerate();
        ChatCompletion {
            id,
            object: "chat.completion",
            created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: choices.map(|(index, completed)| choice(index, completed, self.logprobs)).collect(),
            usage,
        }
    }
}

fn choice(index: usize, completed: Completed, logprobs: Option<usize>) -> ChatChoice {
    ChatChoice {
        index,
        logprobs: logprobs.map(|count| ChatLogprobs {
            content: completed.tokens.iter().map(|token| entry(token, count)).collect(),
            refusal: None,
        }),
        message: AssistantMessage { role: "assistant", content: Some(completed.text), refusal: None },
        finish_reason: finish_reason(completed.reason),
    }
}
