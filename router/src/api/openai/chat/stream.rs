//! The chunks of a streamed answer: the role once, then text, then why it ended.

use std::ops::Range;

use bytes::BytesMut;

use super::{
    logprobs,
    types::{ChatChunk, ChatChunkChoice, ChatLogprobs, ChatTokenLogprob, Delta},
};
use crate::{
    api::openai::{
        envelope::Envelope,
        reply::{FINGERPRINT, Head, Usage, UsageField, finish_reason},
        stream::Chunks,
    },
    output::{FinishReason, PromptToken, TokenOutput},
};

pub(super) struct ChatChunks {
    envelope: Envelope,
    /// Alternatives with each token; `None` sends no log-probabilities.
    logprobs: Option<usize>,
    /// By choice: entries of tokens whose text is held back.
    waiting: Vec<Vec<ChatTokenLogprob>>,
    /// Choices whose role is not yet said.
    silent: Range<usize>,
}

impl ChatChunks {
    pub(super) fn new(head: &Head, logprobs: Option<usize>, choices: usize) -> Self {
        let Head { id, created, model } = head;
        let empty = ChatChunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            system_fingerprint: FINGERPRINT,
            choices: &[],
            usage: None,
        };
        let envelope = Envelope::of(&empty);
        let waiting = (0..choices).map(|_| Vec::new()).collect();
        Self { envelope, logprobs, waiting, silent: 0..choices }
    }

    fn logprobs(&mut self, index: usize) -> Option<ChatLogprobs> {
        let content = std::mem::take(self.waiting.get_mut(index)?);
        (!content.is_empty()).then_some(ChatLogprobs { content, refusal: None })
    }
}

impl Chunks for ChatChunks {
    /// Begins all choices with the first that has an output: OpenAI's client puts a choice at the end of its list when
    /// it first hears of it, and looks for it at its index.
    fn start(&mut self, _index: usize, _prompt: Vec<PromptToken>, usage: UsageField, out: &mut BytesMut) {
        for index in self.silent.by_ref() {
            let delta = Delta { role: Some("assistant"), content: Some("") };
            self.envelope.write(
                &[ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }],
                usage,
                out,
            );
        }
    }

    fn token(&mut self, index: usize, token: TokenOutput, usage: UsageField, out: &mut BytesMut) {
        if let (Some(count), Some(waiting)) = (self.logprobs, self.waiting.get_mut(index)) {
            waiting.push(logprobs::entry(&token, count));
        }
        if token.delta.is_empty() {
            return;
        }
        let logprobs = self.logprobs(index);
        let delta = Delta { role: None, content: Some(&token.delta) };
        self.envelope.write(&[ChatChunkChoice { index, delta, logprobs, finish_reason: None }], usage, out);
    }

    fn finish(&mut self, index: usize, reason: FinishReason, usage: UsageField, out: &mut BytesMut) {
        let logprobs = self.logprobs(index);
        let finish_reason = Some(finish_reason(reason));
        self.envelope.write(
            &[ChatChunkChoice { index, delta: Delta::default(), logprobs, finish_reason }],
            usage,
            out,
        );
    }

    fn totals(&mut self, usage: Usage, out: &mut BytesMut) {
        self.envelope.totals(usage, out);
    }
}
