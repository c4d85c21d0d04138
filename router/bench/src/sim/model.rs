//! The "model": slots, blocks, and a hash in place of weights.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use lorikeet_proto::v1::{Admission, MoveError, PromptLogprobs, RowError, Step, StepResult};

use super::{SimConfig, digest};

const BLOCK_SIZE: usize = 16;

/// What one Execute stream has built up. A new stream starts from an empty one.
#[derive(Default)]
pub(super) struct Model {
    slots: HashMap<u32, Slot>,
    /// The tokens whose KV each block holds.
    blocks: HashMap<u32, [u32; BLOCK_SIZE]>,
    adapter_slots: HashMap<u32, String>,
}

struct Slot {
    adapter: Option<String>,
    blocks: Vec<u32>,
    /// Tokens whose KV is computed.
    length: usize,
    last: u32,
    alternatives: u32,
    /// Log-probabilities of the prompt are wanted, with this many alternatives.
    prompt: Option<u32>,
}

/// The token that follows a context: its first, middle and last token and its length decide.
pub fn next_token(context: &[u32], adapter: Option<&str>, config: &SimConfig) -> u32 {
    let at = |index: usize| context.get(index).copied().unwrap_or_default();
    sample(
        context.len(),
        [at(0), at(context.len() / 2), at(context.len().saturating_sub(1))],
        adapter,
        config,
    )
}

/// What a right router streams for a prompt, `limit` tokens at most, the last being the end-of-sequence token if it was
/// sampled. `adapter` is the id that was asked for.
pub fn expected(prompt: &[u32], adapter: Option<&str>, limit: usize, config: &SimConfig) -> Vec<u32> {
    let digest = adapter.map(digest);
    let mut context = prompt.to_vec();
    while context.len() < prompt.len() + limit {
        let token = next_token(&context, digest.as_deref(), config);
        context.push(token);
        if config.eos.is_some_and(|eos| eos.token == token) {
            break;
        }
    }
    context.split_off(prompt.len())
}

fn sample(length: usize, tokens: [u32; 3], adapter: Option<&str>, config: &SimConfig) -> u32 {
    let mut hasher = DefaultHasher::new();
    (length, tokens, adapter).hash(&mut hasher);
    let random = hasher.finish();
    if let Some(eos) = config.eos
        && random.is_multiple_of(eos.once_in)
    {
        return eos.token;
    }
    config.sampled.start + ((random >> 20) % config.sampled.len().max(1) as u64) as u32
}

impl Model {
    pub(super) fn live_slots(&self) -> usize {
        self.slots.len()
    }

    /// Runs a step. `staged` says whether a digest is in host memory. Also returns how many rows were the router's
    /// mistake.
    pub(super) fn run(
        &mut self,
        step: &Step,
        config: &SimConfig,
        poison: u32,
        staged: impl Fn(&str) -> bool,
    ) -> (StepResult, u64) {
        let mut result = StepResult { id: step.id, ..StepResult::default() };
        for slot in &step.releases {
            self.slots.remove(slot);
        }
        for change in &step.moves {
            self.adapter_slots.remove(&change.slot);
            if change.digest.is_empty() {
                continue;
            }
            if staged(&change.digest) {
                self.adapter_slots.insert(change.slot, change.digest.clone());
                result.adapter_slots_ready.push(change.slot);
            } else {
                let message = "not staged".to_owned();
                result.move_errors.push(MoveError {
                    slot: change.slot,
                    digest: change.digest.clone(),
                    message,
                });
            }
        }
        let mut violations = 0;
        for admission in &step.admissions {
            violations += u64::from(!self.admit(admission));
        }
        let mut rows = Vec::new();
        self.prefill(step, &mut rows, &mut result);
        self.decode(step, &mut rows);
        for slot in rows {
            violations += u64::from(!self.answer(slot, config, poison, &mut result));
        }
        (result, violations)
    }

    fn admit(&mut self, admission: &Admission) -> bool {
        let adapter = u32::try_from(admission.adapter_slot).ok();
        let digest = adapter.and_then(|slot| self.adapter_slots.get(&slot).cloned());
        let right = adapter.is_some() == digest.is_some() && !self.slots.contains_key(&admission.slot);
        let slot = Slot {
            adapter: digest,
            blocks: admission.blocks.clone(),
            length: admission.cached_tokens as usize,
            last: 0,
            alternatives: admission.sampling.as_ref().map_or(0, |sampling| sampling.top_logprobs),
            prompt: admission.prompt_logprobs.then_some(admission.prompt_top_logprobs),
        };
        self.slots.insert(admission.slot, slot);
        right
    }

    fn prefill(&mut self, step: &Step, rows: &mut Vec<u32>, result: &mut StepResult) {
        let Some(prefill) = &step.prefill else { return };
        let (mut tokens, mut blocks) = (prefill.tokens.iter(), prefill.blocks.iter());
        for (row, &id) in prefill.slot.iter().enumerate() {
            let chunk: Vec<u32> = tokens.by_ref().take(prefill.length[row] as usize).copied().collect();
            let new: Vec<u32> = blocks.by_ref().take(prefill.new_blocks[row] as usize).copied().collect();
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.blocks.extend(new);
            let start = prefill.start[row] as usize;
            if let Some(top) = slot.prompt {
                let next = (!prefill.sample[row]).then(|| prefill.next_token[row]);
                let scored: Vec<u32> = chunk.iter().skip(1).copied().chain(next).collect();
                result.prompt_logprobs.push(prompt_logprobs(id, prefill.start[row], top, &scored));
            }
            for (offset, &token) in chunk.iter().enumerate() {
                write(&mut self.blocks, slot, start + offset, token);
            }
            slot.length = start + chunk.len();
            if prefill.sample[row] {
                rows.push(id);
            }
        }
    }

    fn decode(&mut self, step: &Step, rows: &mut Vec<u32>) {
        let Some(decode) = &step.decode else { return };
        let mut blocks = decode.blocks.iter();
        for (row, &id) in decode.slot.iter().enumerate() {
            let new: Vec<u32> = blocks.by_ref().take(decode.new_blocks[row] as usize).copied().collect();
            rows.push(id);
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.blocks.extend(new);
            let (position, token) = (slot.length, slot.last);
            write(&mut self.blocks, slot, position, token);
            slot.length += 1;
        }
    }

    /// Adds a sampled row to the result. False if the row makes no sense.
    fn answer(&mut self, id: u32, config: &SimConfig, poison: u32, result: &mut StepResult) -> bool {
        let outcome = self.sample(id, config, poison);
        let token = *outcome.as_ref().unwrap_or(&0);
        let alternatives = self.slots.get_mut(&id).map_or(0, |slot| {
            slot.last = token;
            slot.alternatives
        });
        result.slot.push(id);
        result.token.push(token);
        result.logprob.push(-1.0);
        result.alternatives.push(alternatives);
        for rank in 0..alternatives {
            result.alternative_tokens.push((token + rank) % config.vocab_size);
            result.alternative_logprobs.push(-1.0 - rank as f32);
        }
        let Err((code, message)) = outcome else { return true };
        result.errors.push(RowError { slot: id, code: code.to_owned(), message: message.to_owned() });
        code == "numeric_error"
    }

    fn sample(&self, id: u32, config: &SimConfig, poison: u32) -> Result<u32, (&'static str, &'static str)> {
        const INTERNAL: &str = "internal";
        let slot = self.slots.get(&id).ok_or((INTERNAL, "no such slot"))?;
        let read = |position: usize| self.read(slot, position).ok_or((INTERNAL, "no block for a position"));
        if poison != u32::MAX {
            for position in 0..slot.length {
                if read(position)? == poison {
                    return Err(("numeric_error", "the logits are not finite"));
                }
            }
        }
        let tokens = [read(0)?, read(slot.length / 2)?, read(slot.length - 1)?];
        Ok(sample(slot.length, tokens, slot.adapter.as_deref(), config))
    }

    fn read(&self, slot: &Slot, position: usize) -> Option<u32> {
        let block = slot.blocks.get(position / BLOCK_SIZE)?;
        self.blocks.get(block).map(|tokens| tokens[position % BLOCK_SIZE])
    }
}

fn write(blocks: &mut HashMap<u32, [u32; BLOCK_SIZE]>, slot: &Slot, position: usize, token: u32) {
    if let Some(&block) = slot.blocks.get(position / BLOCK_SIZE) {
        blocks.entry(block).or_insert([0; BLOCK_SIZE])[position % BLOCK_SIZE] = token;
    }
}

fn prompt_logprobs(slot: u32, start: u32, top: u32, tokens: &[u32]) -> PromptLogprobs {
    let alternatives =
        tokens.iter().flat_map(|&token| (0..top).map(move |rank| (token + rank, -0.5 - rank as f32)));
    let (top_tokens, top_logprobs) = alternatives.unzip();
    PromptLogprobs { slot, start, logprobs: vec![-0.5; tokens.len()], top, top_tokens, top_logprobs }
}
