//! How sequences become a completion.

use super::{
    logprobs::Table,
    stream::CompletionChunks,
    types::{Completion, CompletionChoice},
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

/// How a completion is answered.
pub(super) struct Text {
    /// Whether the prompt is answered in front of the output.
    pub(super) echo: bool,
    /// Alternatives with each token; `None` answers no log-probabilities.
    pub(super) logprobs: Option<u32>,
}

impl Shape for Text {
    const PREFIX: &'static str = "cmpl";
    type Chunks = CompletionChunks;
    type Whole = Completion;

    fn chunks(self, head: Head, generations: &[Generation]) -> CompletionChunks {
        CompletionChunks::new(&head, self.echo, self.logprobs, generations)
    }

    fn whole(self, head: Head, choices: Vec<Completed>, usage: Usage) -> Completion {
        let Head { id, created, model } = head;
        let choices = choices.into_iter().enumerate();
        Completion {
            id,
            object: "text_completion",
            created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: choices.map(|(index, completed)| self.choice(index, completed)).collect(),
            usage,
        }
    }
}

impl Text {
    fn choice(&self, index: usize, completed: Completed) -> CompletionChoice {
        let logprobs = self.logprobs.map(|count| {
            let mut table = Table::new(count);
            if self.echo {
                table.prompt(&completed.prompt, &completed.info.prompt_text);
            }
            for token in &completed.tokens {
                table.token(token);
            }
            table.take()
        });
        let text = if self.echo { completed.info.prompt_text + &completed.text } else { completed.text };
        CompletionChoice { index, text, logprobs, finish_reason: finish_reason(completed.reason) }
    }
}
