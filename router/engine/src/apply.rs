//! Taking the answer to a step: tokens, errors, adapter moves, and the blocks that may be shared from now on.

use lorikeet_proto::v1::{PromptLogprobs, RowError, StepResult};

use crate::{
    Alternative, Engine, Event, FailureReason, PromptToken, Time,
    flight::{InFlight, Row},
    kv::Parent,
    sequence::{Sequence, SequenceId},
};

/// An answer that cannot be one to the oldest unanswered step: the shard has to be treated as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnexpectedResult {
    #[error("the shard answered step {given}, the oldest unanswered step is {expected:?}")]
    Step { given: u64, expected: Option<u64> },
    #[error("the shard's answer to step {step} does not have a row for each of the {expected} sampled ones")]
    Rows { step: u64, expected: usize },
}

impl Engine {
    /// Takes the result of the oldest unanswered step. Anything else is a protocol error: nothing is taken, and the
    /// caller must then treat the shard as lost.
    pub fn apply(
        &mut self,
        result: &StepResult,
        now: Time,
        events: &mut Vec<Event>,
    ) -> Result<(), UnexpectedResult> {
        let expected = self.in_flight.front().map(|step| step.id);
        let unexpected = UnexpectedResult::Step { given: result.id, expected };
        let step = self.in_flight.front().filter(|step| step.id == result.id).ok_or(unexpected)?;
        let sampled = step.rows.iter().filter(|row| row.sample).count();
        if !has_rows(result, step, sampled) {
            return Err(UnexpectedResult::Rows { step: step.id, expected: sampled });
        }
        let step = self.in_flight.pop_front().ok_or(unexpected)?;
        self.now = now;
        self.answered = step.id;
        for slot in &result.adapter_slots_ready {
            self.device.moved(*slot, step.id, now);
        }
        for error in &result.move_errors {
            self.move_failed(error.slot, &error.digest, &error.message, step.id, events);
        }
        self.refresh_adapters();

        let mut samples = Samples { result, next: 0, next_alternative: 0 };
        for row in &step.rows {
            let sample = row.sample.then(|| samples.take());
            if !self.is_current(row) {
                continue;
            }
            if let Some(error) = result.errors.iter().find(|error| error.slot == row.slot) {
                let RowError { code, message, .. } = error.clone();
                self.fail(row.sequence, FailureReason::Row { code, message }, events);
                continue;
            }
            self.computed(row);
            if let Some(prompt) = result.prompt_logprobs.iter().find(|prompt| prompt.slot == row.slot) {
                self.prompt_answered(row.sequence, prompt);
            }
            if let Some(sample) = sample {
                self.sampled(row.sequence, sample, events);
            }
        }
        Ok(())
    }

    /// Whether a row belongs to a sequence that still runs, and has not been preempted since.
    fn is_current(&self, row: &Row) -> bool {
        let run = self.sequences.get(&row.sequence).and_then(|sequence| sequence.run.as_ref());
        run.is_some_and(|run| run.number == row.run)
    }

    /// The row's positions are in the KV cache: blocks that are full by now may be shared.
    fn computed(&mut self, row: &Row) {
        let block_size = self.kv.block_size();
        let Some(sequence) = self.sequences.get_mut(&row.sequence) else { return };
        let namespace = sequence.namespace();
        let Sequence { tokens, run: Some(run), .. } = sequence else { return };
        while run.publishes && (run.published + 1) * block_size <= row.end {
            let index = run.published;
            let parent =
                index.checked_sub(1).map_or(Parent::Root(namespace), |last| Parent::Block(run.blocks[last]));
            let content = &tokens[index * block_size..(index + 1) * block_size];
            run.publishes = self.kv.publish(parent, content, run.blocks[index]);
            run.published += 1;
        }
    }

    fn prompt_answered(&mut self, id: SequenceId, prompt: &PromptLogprobs) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let top = prompt.top as usize;
        let position = prompt.start as usize + 1;
        for (i, logprob) in prompt.logprobs.iter().enumerate() {
            let Some(token) = sequence.tokens.get(position + i).copied() else { break };
            let range = i * top..(i + 1) * top;
            let tokens = prompt.top_tokens.get(range.clone()).unwrap_or_default();
            let logprobs = prompt.top_logprobs.get(range).unwrap_or_default();
            let alternatives = alternatives(tokens, logprobs);
            sequence.prompt_tokens.push(PromptToken { token, logprob: Some(*logprob), alternatives });
        }
    }

    fn sampled(&mut self, id: SequenceId, sample: Sample<'_>, events: &mut Vec<Event>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if let Some(run) = &mut sequence.run {
            run.unanswered -= 1;
        }
        events.extend(sequence.take_prompt());
        let finish = sequence.push(sample.token);
        events.push(Event::Token {
            id: sequence.id,
            token: sample.token,
            logprob: sample.logprob,
            alternatives: alternatives(sample.alternative_tokens, sample.alternative_logprobs),
            finish,
        });
        if finish.is_some() {
            self.end(id);
        }
    }

    /// Fails the sequences that asked for the move. Those that came later ask for another one.
    fn move_failed(&mut self, slot: u32, digest: &str, message: &str, step: u64, events: &mut Vec<Event>) {
        let Some((adapter, newest)) = self.device.move_failed(slot, digest, step, self.now) else { return };
        let of_adapter = |(id, sequence): (&SequenceId, &Sequence)| {
            (sequence.queue.adapter == Some(adapter)).then_some(*id)
        };
        let mut affected: Vec<_> = self.sequences.iter().filter_map(of_adapter).collect();
        affected.sort_unstable();
        for id in affected {
            if id < newest {
                let reason = FailureReason::Adapter { message: message.to_owned() };
                self.fail(id, reason, events);
            } else if self.running.contains(&id) {
                self.preempt(id);
            }
        }
    }
}

/// Whether the packed arrays have the lengths they must have.
fn has_rows(result: &StepResult, step: &InFlight, sampled: usize) -> bool {
    let slots = step.rows.iter().filter(|row| row.sample).map(|row| row.slot);
    let alternatives: usize = result.alternatives.iter().map(|count| *count as usize).sum();
    result.token.len() == sampled
        && result.logprob.len() == sampled
        && (result.alternatives.len() == sampled || result.alternatives.is_empty())
        && result.alternative_tokens.len() >= alternatives
        && result.alternative_logprobs.len() >= alternatives
        && slots.eq(result.slot.iter().copied())
}

/// One sampled row of a result.
#[derive(Clone, Copy)]
struct Sample<'a> {
    token: u32,
    logprob: f32,
    alternative_tokens: &'a [u32],
    alternative_logprobs: &'a [f32],
}

/// Walks the packed arrays of a result that [`has_rows`].
struct Samples<'a> {
    result: &'a StepResult,
    next: usize,
    next_alternative: usize,
}

impl<'a> Samples<'a> {
    fn take(&mut self) -> Sample<'a> {
        let result = self.result;
        let count = result.alternatives.get(self.next).map_or(0, |count| *count as usize);
        let range = self.next_alternative..self.next_alternative + count;
        let sample = Sample {
            token: result.token[self.next],
            logprob: result.logprob[self.next],
            alternative_tokens: &result.alternative_tokens[range.clone()],
            alternative_logprobs: &result.alternative_logprobs[range],
        };
        self.next += 1;
        self.next_alternative += count;
        sample
    }
}

fn alternatives(tokens: &[u32], logprobs: &[f32]) -> Vec<Alternative> {
    tokens
        .iter()
        .zip(logprobs)
        .map(|(token, logprob)| Alternative { token: *token, logprob: *logprob })
        .collect()
}
