//! An OpenAI stream: chunks for each choice, usage where asked for, `[DONE]` after success and only then.

use std::ops::ControlFlow;

use bytes::BytesMut;

use super::{
    StreamOptions,
    batch::Indexed,
    reply::{Usage, UsageField},
};
use crate::{
    api::{
        Dialect,
        sse::{self, Encoder},
    },
    error::Error,
    infer::Generation,
    output::{FinishReason, Output, PromptToken, TokenOutput},
};

/// What differs between chat and completions: the shape of a chunk.
pub(super) trait Chunks: Unpin + Send + 'static {
    /// Before anything else of a choice.
    fn start(&mut self, index: usize, prompt: Vec<PromptToken>, usage: UsageField, out: &mut BytesMut);
    fn token(&mut self, index: usize, token: TokenOutput, usage: UsageField, out: &mut BytesMut);
    fn finish(&mut self, index: usize, reason: FinishReason, usage: UsageField, out: &mut BytesMut);
    /// The chunk without choices.
    fn totals(&mut self, usage: Usage, out: &mut BytesMut);
}

pub(super) struct Events<C> {
    chunks: C,
    options: StreamOptions,
    choices: Vec<Choice>,
    unfinished: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    copies: usize,
}

#[derive(Clone, Copy, Default)]
struct Choice {
    started: bool,
    tokens: u32,
}

impl<C: Chunks> Events<C> {
    /// `generations` are those of all choices, `copies` of each prompt.
    pub(super) fn new(
        chunks: C,
        options: Option<StreamOptions>,
        generations: &[Generation],
        copies: usize,
    ) -> Self {
        Self {
            chunks,
            options: options.unwrap_or_default(),
            choices: vec![Choice::default(); generations.len()],
            unfinished: generations.len(),
            prompt_tokens: generations.iter().step_by(copies).map(|g| u64::from(g.info.prompt_tokens)).sum(),
            completion_tokens: 0,
            cached_tokens: 0,
            copies,
        }
    }

    fn usage(&self) -> UsageField {
        if self.options.continuous_usage_stats == Some(true) {
            Some(Some(Usage::new(self.prompt_tokens, self.completion_tokens, None)))
        } else if self.options.include_usage == Some(true) {
            Some(None)
        } else {
            None
        }
    }

    fn start(&mut self, index: usize, prompt: Vec<PromptToken>, out: &mut BytesMut) {
        let usage = self.usage();
        if let Some(choice) = self.choices.get_mut(index)
            && !std::mem::replace(&mut choice.started, true)
        {
            self.chunks.start(index, prompt, usage, out);
        }
    }
}

impl<C: Chunks> Encoder for Events<C> {
    type Item = Indexed;

    fn item(&mut self, (index, output): Indexed, out: &mut BytesMut) -> ControlFlow<()> {
        match output {
            Ok(Output::Prompt(prompt)) => self.start(index, prompt, out),
            Ok(Output::Token(token)) => {
                self.start(index, Vec::new(), out);
                if let Some(choice) = self.choices.get_mut(index) {
                    choice.tokens += 1;
                }
                self.completion_tokens += 1;
                self.chunks.token(index, token, self.usage(), out);
            }
            Ok(Output::Finished { reason, generated_tokens, cached_tokens, .. }) => {
                self.start(index, Vec::new(), out);
                let seen = self.choices.get(index).map_or(0, |choice| choice.tokens);
                self.completion_tokens += u64::from(generated_tokens.saturating_sub(seen));
                if index % self.copies == 0 {
                    self.cached_tokens += u64::from(cached_tokens);
                }
                self.chunks.finish(index, reason, self.usage(), out);
                self.unfinished = self.unfinished.saturating_sub(1);
                if self.unfinished == 0 {
                    if self.options.include_usage == Some(true) {
                        let (prompt, completion) = (self.prompt_tokens, self.completion_tokens);
                        self.chunks.totals(Usage::new(prompt, completion, Some(self.cached_tokens)), out);
                    }
                    sse::raw_event(out, &[b"[DONE]"]);
                    return ControlFlow::Break(());
                }
            }
            Err(error) => {
                sse::raw_event(out, &[&Dialect::OpenAi.error_body(&error)]);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self, out: &mut BytesMut) {
        sse::raw_event(out, &[&Dialect::OpenAi.error_body(&Error::Incomplete)]);
    }
}
