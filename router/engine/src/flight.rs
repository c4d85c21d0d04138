//! A step that was sent and not yet answered.

use lorikeet_proto::v1::{Admission, Decode, Prefill, Step};

use crate::sequence::SequenceId;

/// What the answer to a step will be about.
pub(crate) struct InFlight {
    pub(crate) id: u64,
    /// Prefill rows in their order, then decode rows in theirs.
    pub(crate) rows: Vec<Row>,
}

pub(crate) struct Row {
    pub(crate) sequence: SequenceId,
    /// The run of the sequence that the row belongs to. Rows of an earlier one are discarded.
    pub(crate) run: u32,
    pub(crate) slot: u32,
    /// The position after the row's last.
    pub(crate) end: usize,
    pub(crate) sample: bool,
}

/// Numbers that the admissions of a step carry beside their rows, unless one alone has more. A step is one message, which
/// shards take up to 16 MiB; a number has up to five bytes.
const MAX_CARRIED: usize = 1 << 20;

/// A step under construction.
pub(crate) struct StepBuilder {
    pub(crate) step: Step,
    pub(crate) prefill: Prefill,
    pub(crate) decode: Decode,
    prefill_rows: Vec<Row>,
    decode_rows: Vec<Row>,
    /// Tokens that may still be added.
    pub(crate) budget: usize,
    carried: usize,
}

impl StepBuilder {
    pub(crate) fn new(id: u64, budget: usize) -> Self {
        Self {
            step: Step { id, ..Step::default() },
            prefill: Prefill::default(),
            decode: Decode::default(),
            prefill_rows: Vec::new(),
            decode_rows: Vec::new(),
            budget,
            carried: 0,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.step.id
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.prefill_rows.is_empty() && self.decode_rows.is_empty() && self.step.moves.is_empty()
    }

    /// Whether an admission may come with so many numbers.
    pub(crate) fn has_room_for(&self, numbers: usize) -> bool {
        self.carried == 0 || self.carried + numbers <= MAX_CARRIED
    }

    pub(crate) fn push_admission(&mut self, admission: Admission) {
        self.carried += admission.history.len() + admission.blocks.len();
        self.step.admissions.push(admission);
    }

    pub(crate) fn push_decode(&mut self, row: Row, new_block: Option<u32>) {
        self.budget -= 1;
        self.decode.slot.push(row.slot);
        self.decode.new_blocks.push(u32::from(new_block.is_some()));
        self.decode.blocks.extend(new_block);
        self.decode_rows.push(row);
    }

    /// A chunk of a prompt, the blocks that were added for it, and the token after it where that is wanted.
    pub(crate) fn push_prefill(&mut self, row: Row, tokens: &[u32], new_blocks: &[u32], next_token: u32) {
        self.budget -= tokens.len();
        self.prefill.slot.push(row.slot);
        self.prefill.start.push((row.end - tokens.len()) as u32);
        self.prefill.length.push(tokens.len() as u32);
        self.prefill.tokens.extend_from_slice(tokens);
        self.prefill.new_blocks.push(new_blocks.len() as u32);
        self.prefill.blocks.extend_from_slice(new_blocks);
        self.prefill.sample.push(row.sample);
        self.prefill.next_token.push(next_token);
        self.prefill_rows.push(row);
    }

    pub(crate) fn finish(self) -> (Step, InFlight) {
        let Self { mut step, prefill, decode, prefill_rows: mut rows, mut decode_rows, .. } = self;
        step.prefill = (!rows.is_empty()).then_some(prefill);
        step.decode = (!decode_rows.is_empty()).then_some(decode);
        rows.append(&mut decode_rows);
        let in_flight = InFlight { id: step.id, rows };
        (step, in_flight)
    }
}
