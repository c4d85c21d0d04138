//! A shard that computes steps exactly, and panics at the first one that breaks the protocol.

use std::collections::{HashMap, HashSet};

use lorikeet_engine::EngineConfig;
use lorikeet_proto::v1::{Admission, Decode, MoveError, Prefill, PromptLogprobs, RowError, Step, StepResult};

use super::model::{Job, empty, extend, logprob, sample};

/// What is to go wrong in the next step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The row with this number (modulo their count) reports an error.
    pub row: Option<usize>,
    /// All loads fail.
    pub moves: bool,
    /// Loads take this many steps more (shards with asynchronous moves only).
    pub delay: u64,
}

/// The KV of one position.
#[derive(Clone, Copy, Debug)]
struct Cell {
    kv: u64,
    tenant: u32,
    written: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    Loading {
        digest: String,
        done: u64,
        fails: bool,
    },
    Ready(String),
    /// The load failed, and the engine may not know yet.
    Failed,
}

#[derive(Debug)]
struct Sequence {
    job: u64,
    adapter_slot: Option<usize>,
    blocks: Vec<u32>,
    computed: usize,
    /// Prompt, and output before this run.
    history: Vec<u32>,
    last: Option<u32>,
    sampled: usize,
    /// A row has failed: what follows means nothing, and must not be shared.
    poisoned: bool,
}

pub struct Shard {
    config: EngineConfig,
    bytes: HashMap<String, u64>,
    slots: Vec<Slot>,
    /// The last step with a row of each adapter slot.
    used: Vec<u64>,
    sequences: HashMap<u32, Sequence>,
    cells: Vec<Option<Cell>>,
    last_step: u64,
    pub tokens_computed: usize,
}

impl Shard {
    pub fn new(config: EngineConfig, bytes: HashMap<String, u64>) -> Self {
        Self {
            slots: vec![Slot::Empty; config.adapter_slots as usize],
            used: vec![0; config.adapter_slots as usize],
            sequences: HashMap::new(),
            cells: vec![None; (config.num_blocks * config.block_size) as usize],
            last_step: 0,
            tokens_computed: 0,
            config,
            bytes,
        }
    }

    /// Runs a step that was planned when `answered` was the last one answered. `history` tells what a request's tokens
    /// are, as far as its caller knows.
    pub fn execute(
        &mut self,
        step: &Step,
        answered: u64,
        faults: Faults,
        jobs: &HashMap<u64, Job>,
        history: impl Fn(u64) -> Vec<u32>,
    ) -> StepResult {
        assert!(step.id > self.last_step, "steps are numbered upwards");
        self.last_step = step.id;
        let mut result = StepResult { id: step.id, ..StepResult::default() };
        for slot in &step.releases {
            assert!(self.sequences.remove(slot).is_some(), "slot {slot} is released but not taken");
        }
        self.moves(step, answered, faults, &mut result);
        for admission in &step.admissions {
            self.admit(admission, answered, jobs, &history);
        }
        let prefill = step.prefill.clone().unwrap_or_default();
        let decode = step.decode.clone().unwrap_or_default();
        self.check_rows(step, &prefill, &decode);
        let rows = prefill.slot.len() + decode.slot.len();
        let failing = faults.row.filter(|_| rows > 0).map(|row| row % rows);
        self.prefill(step.id, &prefill, failing, jobs, &mut result);
        self.decode(
            step.id,
            &decode,
            failing.and_then(|row| row.checked_sub(prefill.slot.len())),
            jobs,
            &mut result,
        );
        result
    }

    /// Sequence slots taken; the engine releases them with its next step.
    pub fn taken(&self) -> usize {
        self.sequences.len()
    }

    fn moves(&mut self, step: &Step, answered: u64, faults: Faults, result: &mut StepResult) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Slot::Loading { digest, done, fails } = slot.clone()
                && done <= step.id
            {
                finish(slot, index, digest, fails, result);
            }
        }
        for adapter_move in &step.moves {
            let index = adapter_move.slot as usize;
            let used = self.sequences.values().any(|sequence| sequence.adapter_slot == Some(index));
            assert!(!used, "adapter slot {index} is moved while a sequence uses it");
            assert!(
                self.used[index] <= answered,
                "adapter slot {index} is moved while an unanswered step uses it"
            );
            let slot = &mut self.slots[index];
            if adapter_move.digest.is_empty() {
                assert!(matches!(slot, Slot::Ready(_)), "{slot:?} is emptied");
                *slot = Slot::Empty;
                continue;
            }
            assert!(matches!(slot, Slot::Empty | Slot::Failed), "{slot:?} is overwritten");
            let (digest, fails) = (adapter_move.digest.clone(), faults.moves);
            if self.config.synchronous_moves {
                finish(slot, index, digest, fails, result);
            } else {
                *slot = Slot::Loading { digest, done: step.id + faults.delay, fails };
                if faults.delay == 0 {
                    finish(slot, index, adapter_move.digest.clone(), fails, result);
                }
            }
            let bytes = |slot: &Slot| match slot {
                Slot::Loading { digest, .. } | Slot::Ready(digest) => self.bytes[digest],
                Slot::Empty | Slot::Failed => 0,
            };
            let used: u64 = self.slots.iter().map(bytes).sum();
            assert!(used <= self.config.adapter_bytes, "{used} bytes of adapters in slots");
        }
    }

    fn admit(
        &mut self,
        admission: &Admission,
        answered: u64,
        jobs: &HashMap<u64, Job>,
        history: &impl Fn(u64) -> Vec<u32>,
    ) {
        assert!(admission.slot < self.config.max_sequences);
        let sampling = admission.sampling.clone().unwrap();
        let job = &jobs[&sampling.seed];
        let adapter_slot = usize::try_from(admission.adapter_slot).ok();
        assert_eq!(adapter_slot.is_some(), job.adapter.is_some());
        if let (Some(slot), Some(digest)) = (adapter_slot, job.digest()) {
            let slot = &self.slots[slot];
            assert!(*slot == Slot::Ready(digest) || *slot == Slot::Failed, "the adapter's slot is {slot:?}");
        }
        let history = history(job.id);
        let block_size = self.config.block_size as usize;
        let cached = admission.cached_tokens as usize;
        assert_eq!(cached, admission.blocks.len() * block_size);
        assert!(cached < history.len(), "the last token has to be computed");
        if admission.prompt_logprobs {
            assert_eq!(cached, 0);
        }
        if job.penalty {
            assert_eq!(admission.history, history);
            assert_eq!(admission.history_output as usize, history.len() - job.prompt.len());
        }
        let mut kv = empty(job.digest().as_deref());
        for (position, token) in history[..cached].iter().enumerate() {
            kv = extend(kv, *token);
            let cell = self.cell(&admission.blocks, position).expect("a reused position was computed");
            assert_eq!(cell.kv, kv, "a reused position has the KV of another history");
            assert_eq!(cell.tenant, job.tenant, "KV is shared between tenants");
            assert!(cell.written <= answered, "a position is reused before its step was answered");
        }
        let sequence = Sequence {
            job: job.id,
            adapter_slot,
            blocks: admission.blocks.clone(),
            computed: cached,
            history,
            last: None,
            sampled: 0,
            poisoned: false,
        };
        let before = self.sequences.insert(admission.slot, sequence);
        assert!(before.is_none(), "slot {} is given twice", admission.slot);
    }

    fn check_rows(&self, step: &Step, prefill: &Prefill, decode: &Decode) {
        let slots: Vec<_> = prefill.slot.iter().chain(&decode.slot).collect();
        assert_eq!(slots.iter().collect::<HashSet<_>>().len(), slots.len(), "a slot has two rows");
        let tokens = prefill.tokens.len() + decode.slot.len();
        assert!(tokens <= self.config.max_step_tokens as usize, "{tokens} tokens in a step");
        assert_eq!(prefill.length.iter().sum::<u32>() as usize, prefill.tokens.len());
        assert_eq!(prefill.new_blocks.iter().sum::<u32>() as usize, prefill.blocks.len());
        assert_eq!(decode.new_blocks.iter().sum::<u32>() as usize, decode.blocks.len());
        for admission in &step.admissions {
            assert!(prefill.slot.contains(&admission.slot), "an admission comes with its first chunk");
        }
    }

    fn prefill(
        &mut self,
        step: u64,
        prefill: &Prefill,
        failing: Option<usize>,
        jobs: &HashMap<u64, Job>,
        result: &mut StepResult,
    ) {
        let (mut next_token, mut next_block) = (0, 0);
        for (row, slot) in prefill.slot.iter().enumerate() {
            let (start, length) = (prefill.start[row] as usize, prefill.length[row] as usize);
            let tokens = &prefill.tokens[next_token..next_token + length];
            let blocks = &prefill.blocks[next_block..next_block + prefill.new_blocks[row] as usize];
            next_token += length;
            next_block += blocks.len();
            let sequence = &self.sequences[slot];
            let job = &jobs[&sequence.job];
            assert!(length > 0);
            assert_eq!(start, sequence.computed, "a chunk starts where the last one ended");
            assert_eq!(tokens, &sequence.history[start..start + length], "a chunk has the sequence's tokens");
            let is_last = start + length == sequence.history.len();
            assert_eq!(prefill.sample[row], is_last);
            let wants_prompt = job.prompt_logprobs.is_some() && sequence.history.len() == job.prompt.len();
            if wants_prompt && !is_last {
                assert_eq!(prefill.next_token[row], sequence.history[start + length]);
            }
            let kvs = self.write(step, *slot, tokens, blocks, job);
            let fails = failing == Some(row);
            if wants_prompt {
                let following: Vec<_> = tokens[1..]
                    .iter()
                    .copied()
                    .chain((!is_last).then_some(prefill.next_token[row]))
                    .collect();
                let logprobs = following.iter().zip(&kvs).map(|(token, kv)| logprob(*kv, *token)).collect();
                result.prompt_logprobs.push(PromptLogprobs {
                    slot: *slot,
                    start: start as u32,
                    logprobs,
                    ..Default::default()
                });
            }
            self.finish_row(*slot, kvs.last().copied(), prefill.sample[row], fails, jobs, result);
        }
    }

    fn decode(
        &mut self,
        step: u64,
        decode: &Decode,
        failing: Option<usize>,
        jobs: &HashMap<u64, Job>,
        result: &mut StepResult,
    ) {
        let mut next_block = 0;
        for (row, slot) in decode.slot.iter().enumerate() {
            let blocks = &decode.blocks[next_block..next_block + decode.new_blocks[row] as usize];
            next_block += blocks.len();
            let sequence = &self.sequences[slot];
            let job = &jobs[&sequence.job];
            let last = sequence.last.expect("a decode follows a sampled token");
            let kvs = self.write(step, *slot, &[last], blocks, job);
            self.finish_row(*slot, kvs.last().copied(), true, failing == Some(row), jobs, result);
        }
    }

    /// Computes the KV of tokens, and returns it.
    fn write(&mut self, step: u64, slot: u32, tokens: &[u32], blocks: &[u32], job: &Job) -> Vec<u64> {
        let block_size = self.config.block_size as usize;
        for block in blocks {
            let holders = self.sequences.values().filter(|sequence| sequence.blocks.contains(block)).count();
            assert_eq!(holders, 0, "block {block} is given to a second sequence");
        }
        let sequence = self.sequences.get_mut(&slot).unwrap();
        sequence.blocks.extend_from_slice(blocks);
        let (table, start, poisoned) = (sequence.blocks.clone(), sequence.computed, sequence.poisoned);
        let end = start + tokens.len();
        sequence.computed = end;
        assert_eq!(table.len(), end.div_ceil(block_size), "blocks for exactly what is computed");
        self.tokens_computed += tokens.len();
        // Rows of a slot whose load has failed mean nothing: they may be overtaken.
        if let Some(slot) = sequence.adapter_slot
            && self.slots[slot] != Slot::Failed
        {
            self.used[slot] = step;
        }
        let mut kv = match start {
            0 => empty(job.digest().as_deref()),
            _ => self.cell(&table, start - 1).expect("the context was computed").kv,
        };
        let mut kvs = Vec::new();
        for (position, token) in (start..end).zip(tokens) {
            let block = table[position / block_size];
            let holders = self.sequences.values().filter(|sequence| sequence.blocks.contains(&block)).count();
            assert_eq!(holders, 1, "block {block} is written while it is shared");
            kv = extend(kv, *token);
            let garbage = u64::from(poisoned) * 77;
            self.cells[block as usize * block_size + position % block_size] =
                Some(Cell { kv: kv ^ garbage, tenant: job.tenant, written: step });
            kvs.push(kv);
        }
        kvs
    }

    fn finish_row(
        &mut self,
        slot: u32,
        kv: Option<u64>,
        samples: bool,
        fails: bool,
        jobs: &HashMap<u64, Job>,
        result: &mut StepResult,
    ) {
        let sequence = self.sequences.get_mut(&slot).unwrap();
        let job = &jobs[&sequence.job];
        let has_adapter = match (sequence.adapter_slot, job.digest()) {
            (Some(index), Some(digest)) => self.slots[index] == Slot::Ready(digest),
            _ => true,
        };
        if fails || !has_adapter {
            sequence.poisoned = true;
            let position = sequence.computed - 1;
            let block_size = self.config.block_size as usize;
            let block = sequence.blocks[position / block_size] as usize;
            if let Some(cell) = &mut self.cells[block * block_size + position % block_size] {
                cell.kv = !cell.kv;
            }
            let code = if fails { "numeric_error" } else { "adapter_missing" };
            result.errors.push(RowError { slot, code: code.into(), message: String::new() });
        }
        if samples {
            let token = sample(kv.unwrap(), job.id, sequence.computed);
            sequence.last = Some(token);
            sequence.sampled += 1;
            let output = sequence.history.len() - job.prompt.len() + sequence.sampled;
            assert!(output <= job.max_new_tokens as usize, "{output} tokens for job {}", job.id);
            result.slot.push(slot);
            result.token.push(token);
            result.logprob.push(logprob(kv.unwrap(), token));
            let alternatives = (job.id % 3) as u32;
            result.alternatives.push(alternatives);
            result.alternative_tokens.extend(0..alternatives);
            result.alternative_logprobs.extend((0..alternatives).map(|other| logprob(kv.unwrap(), other)));
        }
    }

    fn cell(&self, blocks: &[u32], position: usize) -> Option<Cell> {
        let block_size = self.config.block_size as usize;
        self.cells[blocks[position / block_size] as usize * block_size + position % block_size]
    }
}

fn finish(slot: &mut Slot, index: usize, digest: String, fails: bool, result: &mut StepResult) {
    if fails {
        *slot = Slot::Failed;
        let message = "the copy failed".into();
        result.move_errors.push(MoveError { slot: index as u32, digest, message });
    } else {
        *slot = Slot::Ready(digest);
        result.adapter_slots_ready.push(index as u32);
    }
}
