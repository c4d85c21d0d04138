//! The chunks of a streamed completion.

use bytes::BytesMut;

use super::{
    logprobs::Table,
    types::{CompletionChunk, CompletionChunkChoice, CompletionLogprobs},
};
use crate::{
    api::openai::{
        envelope::Envelope,
        reply::{FINGERPRINT, Head, Usage, UsageField, finish_reason},
        stream::Chunks,
    },
    infer::Generation,
    output::{FinishReason, PromptToken, TokenOutput},
};

pub(super) struct CompletionChunks {
    envelope: Envelope,
    choices: Vec<Choice>,
}

struct Choice {
    /// To be sent before the first token.
    echo: Option<String>,
    /// Rows gather here while no text is sent that they would go with.
    logprobs: Option<Table>,
}

impl CompletionChunks {
    pub(super) fn new(head: &Head, echo: bool, logprobs: Option<u32>, generations: &[Generation]) -> Self {
        let choice = |generation: &Generation| Choice {
            echo: echo.then(|| generation.info.prompt_text.clone()),
            logprobs: logprobs.map(Table::new),
        };
        let Head { id, created, model } = head;
        let empty = CompletionChunk {
            id,
            object: "text_completion",
            created: *created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: &[],
            usage: None,
        };
        Self { envelope: Envelope::of(&empty), choices: generations.iter().map(choice).collect() }
    }

    fn rows(&mut self, index: usize) -> Option<CompletionLogprobs> {
        Some(self.choices.get_mut(index)?.logprobs.as_mut()?.take())
    }
}

impl Chunks for CompletionChunks {
    fn start(&mut self, index: usize, prompt: Vec<PromptToken>, usage: UsageField, out: &mut BytesMut) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let Some(text) = choice.echo.take() else { return };
        if let Some(table) = &mut choice.logprobs {
            table.prompt(&prompt, &text);
        }
        let logprobs = self.rows(index);
        self.envelope.write(
            &[CompletionChunkChoice { index, text: &text, logprobs, finish_reason: None }],
            usage,
            out,
        );
    }

    fn token(&mut self, index: usize, token: TokenOutput, usage: UsageField, out: &mut BytesMut) {
        if let Some(Choice { logprobs: Some(table), .. }) = self.choices.get_mut(index) {
            table.token(&token);
        }
        if token.delta.is_empty() {
            return;
        }
        let logprobs = self.rows(index);
        self.envelope.write(
            &[CompletionChunkChoice { index, text: &token.delta, logprobs, finish_reason: None }],
            usage,
            out,
        );
    }

    fn finish(&mut self, index: usize, reason: FinishReason, usage: UsageField, out: &mut BytesMut) {
        let logprobs = self.rows(index).filter(|rows| !rows.tokens.is_empty());
        let finish_reason = Some(finish_reason(reason));
        self.envelope.write(
            &[CompletionChunkChoice { index, text: "", logprobs, finish_reason }],
            usage,
            out,
        );
    }

    fn totals(&mut self, usage: Usage, out: &mut BytesMut) {
        self.envelope.totals(usage, out);
    }
}
