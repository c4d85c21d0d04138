//! One request on its way from the queue to its last token.

use std::sync::Arc;

use lorikeet_proto::v1::{Admission, Sampling};

use crate::{Event, FinishReason, PromptToken, Request, RequestId, Time, kv::Namespace, queue::QueueKey};

/// Numbers sequences in the order of their arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) queue: QueueKey,
    pub(crate) weight: f32,
    /// The prompt, then every token sampled and reported.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop_tokens: Arc<[u32]>,
    pub(crate) sampling: Sampling,
    pub(crate) deadline: Option<Time>,
    pub(crate) submitted: Time,
    pub(crate) started: bool,
    /// `Some` until the prompt's log-probabilities have been reported.
    pub(crate) wants_prompt: Option<u32>,
    pub(crate) prompt_tokens: Vec<PromptToken>,
    /// Positions that its queue has been charged for. What is computed again after a preemption is free.
    pub(crate) charged: usize,
    /// How often it was given a slot; tells results for an earlier run from those for this one.
    pub(crate) runs: u32,
    /// `None` while it waits.
    pub(crate) run: Option<Run>,
}

/// A sequence's stay in a slot. Ends with the sequence, or when it is preempted.
pub(crate) struct Run {
    pub(crate) slot: u32,
    pub(crate) number: u32,
    /// Its block table, as the shard has it.
    pub(crate) blocks: Vec<u32>,
    /// Tokens known when the run began. They are prefilled; the rest is decoded.
    pub(crate) prefill: usize,
    /// Positions given to steps.
    pub(crate) planned: usize,
    /// Blocks offered for reuse, of those that answered steps have filled, and whether more will be.
    pub(crate) published: usize,
    pub(crate) publishes: bool,
    /// Tokens that unanswered steps will sample.
    pub(crate) unanswered: usize,
    /// The step that it was in last.
    pub(crate) last_step: u64,
}

impl Sequence {
    pub(crate) fn new(request: Request, now: Time) -> Self {
        let Request { id, tenant, priority, adapter, tokens, .. } = request;
        Self {
            id,
            queue: QueueKey { tenant, adapter },
            weight: priority.0,
            prompt: tokens.len(),
            tokens,
            max_new_tokens: (request.max_new_tokens as usize).max(1),
            stop_tokens: request.stop_tokens,
            sampling: request.sampling,
            deadline: request.deadline,
            submitted: now,
            started: false,
            wants_prompt: request.prompt_logprobs,
            prompt_tokens: Vec::new(),
            charged: 0,
            runs: 0,
            run: None,
        }
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace { tenant: self.queue.tenant, adapter: self.queue.adapter }
    }

    pub(crate) fn output(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Whether sampling needs to know every token so far.
    pub(crate) fn has_penalty(&self) -> bool {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        ![0.0, 1.0].contains(&repetition_penalty) || frequency_penalty != 0.0 || presence_penalty != 0.0
    }

    /// Tokens whose KV it may take over. The last one is computed even if its KV is known: the next is sampled from its
    /// logits.
    pub(crate) fn reusable(&self) -> &[u32] {
        if self.wants_prompt.is_some() { &[] } else { &self.tokens[..self.tokens.len() - 1] }
    }

    /// Begins a run in a slot; the first `cached` tokens are in `blocks`.
    pub(crate) fn admit(
        &mut self,
        slot: u32,
        adapter_slot: Option<u32>,
        blocks: Vec<u32>,
        cached: usize,
    ) -> Admission {
        self.runs += 1;
        self.charged = self.charged.max(cached);
        let history = if self.has_penalty() { self.tokens.clone() } else { Vec::new() };
        let admission = Admission {
            slot,
            adapter_slot: adapter_slot.map_or(-1, u32::cast_signed),
            sampling: Some(self.sampling.clone()),
            prompt_logprobs: self.wants_prompt.is_some(),
            prompt_top_logprobs: self.wants_prompt.unwrap_or(0),
            cached_tokens: cached as u32,
            blocks: blocks.clone(),
            history_output: if history.is_empty() { 0 } else { self.output() as u32 },
            history,
        };
        self.run = Some(Run {
            slot,
            number: self.runs,
            published: blocks.len(),
            publishes: true,
            blocks,
            prefill: self.tokens.len(),
            planned: cached,
            unanswered: 0,
            last_step: 0,
        });
        admission
    }

    /// Tells of the first run, not of those after a preemption.
    pub(crate) fn start(&mut self, now: Time, cached: usize) -> Option<Event> {
        let first = !std::mem::replace(&mut self.started, true);
        let queued = now.saturating_sub(self.submitted);
        first.then_some(Event::Started { id: self.id, queued, cached_tokens: cached as u32 })
    }

    /// The run, if the next step may sample one more token from it.
    pub(crate) fn decoding(&mut self) -> Option<&mut Run> {
        let output = self.output();
        self.run.as_mut().filter(|run| !run.is_prefilling() && output + run.unanswered < self.max_new_tokens)
    }

    /// Takes a sampled token, and says whether it is the last.
    pub(crate) fn push(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.stop_tokens.contains(&token) {
            Some(FinishReason::StopToken)
        } else if self.output() >= self.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// The prompt's log-probabilities, once all of them are known.
    pub(crate) fn take_prompt(&mut self) -> Option<Event> {
        self.wants_prompt.take()?;
        let mut tokens = vec![PromptToken { token: self.tokens[0], logprob: None, alternatives: Vec::new() }];
        tokens.append(&mut self.prompt_tokens);
        Some(Event::Prompt { id: self.id, tokens })
    }
}

impl Run {
    pub(crate) fn is_prefilling(&self) -> bool {
        self.planned < self.prefill
    }

    /// Blocks that the rest of its prefill will take.
    pub(crate) fn blocks_to_come(&self, block_size: usize) -> usize {
        self.prefill.div_ceil(block_size).saturating_sub(self.blocks.len())
    }

    /// Positions that its blocks have room for.
    pub(crate) fn room(&self, block_size: usize) -> usize {
        self.blocks.len() * block_size - self.planned
    }
}
