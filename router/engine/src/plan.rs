//! Building a step: adapter moves, then every running decode, then ends of prompts, then other prefill chunks by fair
//! turns.

use lorikeet_proto::v1::Step;

use crate::{
    Engine, Event,
    fairness::Turn,
    flight::{Row, StepBuilder},
    queue::QueueKey,
    residency::MoveContext,
    sequence::{Run, SequenceId},
};

impl Engine {
    pub(crate) fn plan_step(&mut self, events: &mut Vec<Event>) -> Option<Step> {
        let mut builder = StepBuilder::new(self.next_step, self.config.max_step_tokens as usize);
        self.plan_moves(&mut builder);
        self.plan_decodes(&mut builder);
        self.plan_last_chunks(&mut builder);
        self.plan_prefills(&mut builder, events);
        let polls = self.device.is_loading() && self.in_flight.is_empty();
        if builder.is_empty() && !polls {
            return None;
        }
        let (mut step, in_flight) = builder.finish();
        step.releases = std::mem::take(&mut self.releases);
        self.next_step += 1;
        self.in_flight.push_back(in_flight);
        Some(step)
    }

    fn plan_moves(&mut self, builder: &mut StepBuilder) {
        let context = MoveContext {
            now: self.now,
            step: builder.id(),
            answered: self.answered,
            newest: SequenceId(self.next_sequence),
        };
        self.device.plan_moves(context, &mut builder.step.moves);
        self.refresh_adapters();
    }

    /// A row for every sequence that has one more token to sample, oldest first. Its input may be a token that an
    /// unanswered step is still to sample.
    fn plan_decodes(&mut self, builder: &mut StepBuilder) {
        let block_size = self.kv.block_size();
        let running: Vec<_> = self.running.iter().copied().collect();
        for id in running {
            if builder.budget == 0 {
                break;
            }
            let Some(run) = self.sequences.get_mut(&id).and_then(|sequence| sequence.decoding()) else {
                continue;
            };
            let mut new_block = None;
            if run.room(block_size) == 0 {
                new_block = self.grow(id, builder.id());
                if new_block.is_none() {
                    continue;
                }
            }
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            let Some(run) = &mut sequence.run else { continue };
            run.blocks.extend(new_block);
            run.planned += 1;
            run.unanswered += 1;
            run.last_step = builder.id();
            let row = Row { sequence: id, run: run.number, slot: run.slot, end: run.planned, sample: true };
            builder.push_decode(row, new_block);
            self.charge(id);
        }
    }

    /// A block for a sequence, if need be at the cost of the youngest that runs. `None`: it was preempted itself, or
    /// the youngest is already in this step and has to be waited for.
    fn grow(&mut self, id: SequenceId, step: u64) -> Option<u32> {
        loop {
            if let Some(block) = self.kv.allocate() {
                return Some(block);
            }
            let youngest = *self.running.last()?;
            let run = self.sequences.get(&youngest)?.run.as_ref()?;
            if run.last_step == step {
                return None;
            }
            self.preempt(youngest);
            if youngest == id {
                return None;
            }
        }
    }

    /// The rest of every prompt that has begun, if the step has room for all of it, oldest first. By fair turns, a
    /// prompt of which some tokens are left would wait for all newcomers, whose queues have had less: with its blocks
    /// taken, and its answer not begun. It goes before its turn by less than a step, and its queue pays as ever.
    fn plan_last_chunks(&mut self, builder: &mut StepBuilder) {
        if !self.fairness.has_chunks() {
            return;
        }
        let running: Vec<_> = self.running.iter().copied().collect();
        for id in running {
            let Some(run) = self.sequences.get(&id).and_then(|sequence| sequence.run.as_ref()) else {
                continue;
            };
            if run.is_prefilling() && run.prefill - run.planned <= builder.budget {
                self.plan_chunk(id, builder);
            }
        }
    }

    fn plan_prefills(&mut self, builder: &mut StepBuilder, events: &mut Vec<Event>) {
        let mut admissions = true;
        while builder.budget > 0 {
            match self.fairness.next(admissions) {
                None => break,
                Some(Turn::Admission(queue)) => admissions = self.admit(queue, builder, events),
                // With no block left for the queue whose turn it is, there is none for the others.
                Some(Turn::Chunk(queue)) => {
                    let Some(id) = self.queues.first_prefilling(queue) else { break };
                    if !self.plan_chunk(id, builder) && self.running.contains(&id) {
                        break;
                    }
                }
            }
        }
    }

    /// Adds the next chunk of a prompt, as much as the step and the blocks have room for. False: there is no room, or
    /// there was none for the rest of the chunk that the step has already.
    fn plan_chunk(&mut self, id: SequenceId, builder: &mut StepBuilder) -> bool {
        let block_size = self.kv.block_size();
        let Some(run) = self.sequences.get(&id).and_then(|sequence| sequence.run.as_ref()) else {
            return false;
        };
        if run.last_step == builder.id() {
            return false;
        }
        let wanted = (run.prefill - run.planned).min(builder.budget);
        let mut room = run.room(block_size);
        let mut new_blocks = Vec::new();
        while room < wanted {
            let block = if room == 0 { self.grow(id, builder.id()) } else { self.kv.allocate() };
            let Some(block) = block else { break };
            new_blocks.push(block);
            room += block_size;
        }
        let length = wanted.min(room);
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let queue = sequence.queue;
        let Some(run) = sequence.run.as_mut().filter(|_| length > 0) else { return false };

        let start = run.planned;
        self.committed -= run.blocks_to_come(block_size);
        run.blocks.extend_from_slice(&new_blocks);
        self.committed += run.blocks_to_come(block_size);
        run.planned += length;
        run.last_step = builder.id();
        let sample = !run.is_prefilling();
        run.unanswered += usize::from(sample);
        let next_token = match sequence.wants_prompt {
            Some(_) if !sample => sequence.tokens[run.planned],
            _ => 0,
        };
        let row = Row { sequence: id, run: run.number, slot: run.slot, end: run.planned, sample };
        builder.push_prefill(row, &sequence.tokens[start..start + length], &new_blocks, next_token);
        if sample {
            self.queues.stop_prefilling(queue, id);
            self.refresh(queue);
        }
        self.charge(id);
        true
    }

    /// Gives the first sequence of a queue a slot and its first chunk. False: nobody is admitted in this step, neither
    /// those of other queues, or a long prompt would wait for ever.
    fn admit(&mut self, queue: QueueKey, builder: &mut StepBuilder, events: &mut Vec<Event>) -> bool {
        let adapter_slot = match queue.adapter.map(|adapter| self.device.slot(adapter)) {
            Some(None) => return false,
            slot => slot.flatten(),
        };
        let Some(id) = self.queues.first_waiting(queue) else { return false };
        let Some((slot, blocks)) = self.claim(id, queue, builder) else { return false };
        self.dequeue(id);
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };

        let block_size = self.kv.block_size();
        let cached = blocks.len() * block_size;
        self.counters.prefix_queries_tokens +=
            if sequence.wants_prompt.is_some() { 0 } else { sequence.tokens.len() as u64 };
        self.counters.prefix_hits_tokens += cached as u64;
        builder.push_admission(sequence.admit(slot, adapter_slot, blocks, cached));
        self.committed += sequence.run.as_ref().map_or(0, |run| run.blocks_to_come(block_size));
        events.extend(sequence.start(self.now, cached));
        self.running.insert(id);
        self.queues.prefill(queue, id);
        if let Some(adapter) = queue.adapter {
            self.device.run(adapter, self.now);
        }
        self.refresh(queue);
        self.plan_chunk(id, builder)
    }

    /// A slot for a waiting sequence and the blocks that it reuses, if there is room for the rest of its prompt. If there
    /// is none, its adapter stays in its slot until there is.
    fn claim(&mut self, id: SequenceId, queue: QueueKey, builder: &StepBuilder) -> Option<(u32, Vec<u32>)> {
        if self.blocked == Some(id) || self.free_slots.is_empty() {
            return None;
        }
        let sequence = self.sequences.get(&id)?;
        let (total, block_size) = (sequence.tokens.len(), self.kv.block_size());
        let history = if sequence.has_penalty() { total } else { 0 };
        if !builder.has_room_for(history + total / block_size) {
            return None;
        }
        let blocks = self.kv.reuse(sequence.namespace(), sequence.reusable());
        let needed = total.div_ceil(block_size) - blocks.len();
        // Whoever runs already may need another block before one is given back.
        let reserve = self.running.len();
        if needed + self.committed + reserve > self.kv.available() {
            for block in blocks {
                self.kv.release(block);
            }
            self.blocked = Some(id);
            self.device.hold(queue.adapter);
            return None;
        }
        self.device.hold(None);
        Some((self.free_slots.pop()?, blocks))
    }

    /// Counts what a sequence has been given in the step under construction.
    fn charge(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(Run { planned, last_step, .. }) = sequence.run else { return };
        let tokens = planned.saturating_sub(sequence.charged);
        sequence.charged = sequence.charged.max(planned);
        self.fairness.charge(sequence.queue, tokens, sequence.weight);
        if let Some(adapter) = sequence.queue.adapter {
            self.device.used_by(adapter, last_step);
        }
    }
}
