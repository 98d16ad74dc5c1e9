//! Continuous batching: which sequences compute how many tokens in the next step.
//!
//! A pure state machine. It counts KV blocks and tokens and knows neither a model nor a clock: the
//! engine asks for a [`Step`], computes it, and says what came of it. Prefill and decode are the
//! same thing here: a sequence has `known` tokens (prompt and sampled) of which `cached` have
//! their keys and values computed; it computes some of the difference, and samples once there is none.
//!
//! Policy, first come first served:
//! 1. a token each for the sequences that decode, so that a long prompt does not hold them up;
//! 2. chunks of prompts with what is left of the step's budget;
//! 3. admission in the order of arrival, once a sequence's blocks are free.
//!
//! Where blocks run out, the youngest sequence is preempted: it gives its blocks back, waits at
//! its old place in the queue, and is computed again. The oldest one is never preempted by
//! another, and none is accepted that would not fit alone, so everyone finishes. A sequence whose
//! client does not read is held: it computes nothing, and is the first to be preempted.
//!
//! Read [`Scheduler`] first.

use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// A sequence, numbered in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What the scheduler may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of keys and values, over all sequences.
    pub kv_blocks: usize,
    /// Tokens that a block holds.
    pub block_tokens: usize,
    /// Sequences that compute at the same time.
    pub batch_max: usize,
    /// Sequences that may wait for admission; one more is refused.
    pub waiting_max: usize,
    /// Tokens that a step computes at most. More than `batch_max`, so that prompts make progress
    /// beside a full batch of decoding sequences.
    pub step_tokens_max: usize,
}

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is full; later it may not be.
    #[error("{waiting} requests wait already")]
    Busy {
        /// Length of the queue.
        waiting: usize,
    },
    /// It would not fit even alone.
    #[error("{tokens} tokens need more than the {tokens_max} that the KV cache holds")]
    TooLong {
        /// Prompt and output together.
        tokens: usize,
        /// What the cache holds.
        tokens_max: usize,
    },
}

/// Tokens to compute for one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// Position of the first token to compute; those before it are cached.
    pub start: usize,
    /// How many.
    pub tokens: usize,
    /// Whether these are the last known tokens, so that the next one is sampled from the last row.
    pub samples: bool,
}

/// One step of the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What to compute.
    pub chunks: Vec<Chunk>,
    /// Sequences whose keys and values are to be dropped before the step.
    pub preempted: Vec<SequenceId>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    known: usize,
    cached: usize,
    blocks: usize,
    running: bool,
}

impl Sequence {
    fn left(&self) -> usize {
        self.known - self.cached
    }
}

/// The batch and its queue. See the module's documentation for the policy.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    free: usize,
    next: u64,
    preempted: u64,
    sequences: BTreeMap<SequenceId, Sequence>,
}

impl Scheduler {
    /// An empty batch. Limits of zero are taken as one, and a step's budget that leaves no room
    /// for prompts is raised.
    pub fn new(limits: Limits) -> Self {
        let batch_max = limits.batch_max.max(1);
        let limits = Limits {
            kv_blocks: limits.kv_blocks.max(1),
            block_tokens: limits.block_tokens.max(1),
            batch_max,
            waiting_max: limits.waiting_max.max(1),
            step_tokens_max: limits.step_tokens_max.max(batch_max + 1),
        };
        Self { limits, free: limits.kv_blocks, next: 0, preempted: 0, sequences: BTreeMap::new() }
    }

    /// Takes a sequence of `known` tokens that will grow to at most `tokens_max`.
    ///
    /// # Errors
    /// [`Refusal`] where it could never fit, or where too many wait.
    pub fn submit(&mut self, known: usize, tokens_max: usize) -> Result<SequenceId, Refusal> {
        let tokens = tokens_max.max(known);
        if self.blocks_for(tokens) > self.limits.kv_blocks {
            let tokens_max = self.limits.kv_blocks * self.limits.block_tokens;
            return Err(Refusal::TooLong { tokens, tokens_max });
        }
        let waiting = self.waiting();
        if waiting >= self.limits.waiting_max {
            return Err(Refusal::Busy { waiting });
        }
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, Sequence { known, cached: 0, blocks: 0, running: false });
        Ok(id)
    }

    /// Forgets a sequence, finished or cancelled, and frees its blocks at once.
    pub fn remove(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free += sequence.blocks;
        }
    }

    /// The next step. `held` names the sequences whose clients do not keep up.
    pub fn step(&mut self, held: impl Fn(SequenceId) -> bool) -> Step {
        let mut planner = Planner { budget: self.limits.step_tokens_max, step: Step::default() };
        let running: Vec<SequenceId> = self.ids(true).filter(|&id| !held(id)).collect();
        let decoding = |sequence: &Sequence| sequence.left() <= 1;
        for decode in [true, false] {
            for &id in &running {
                if self.sequences.get(&id).is_some_and(|s| s.running && decoding(s) == decode) {
                    self.extend(id, &mut planner, &held);
                }
            }
        }
        let waiting: Vec<SequenceId> = self.ids(false).filter(|&id| !held(id)).collect();
        for id in waiting {
            if planner.budget == 0 || !self.admit(id) {
                break;
            }
            self.extend(id, &mut planner, &held);
        }
        planner.step
    }

    /// Records that a chunk has been computed, and whether a token was sampled after it.
    pub fn computed(&mut self, chunk: Chunk, sampled: bool) {
        if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
            sequence.cached = (chunk.start + chunk.tokens).min(sequence.known);
            sequence.known += usize::from(sampled);
        }
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.ids(true).count()
    }

    /// Sequences in the queue.
    pub fn waiting(&self) -> usize {
        self.ids(false).count()
    }

    /// Blocks in use.
    pub fn blocks_used(&self) -> usize {
        self.limits.kv_blocks - self.free
    }

    /// How often a sequence has been preempted.
    pub fn preempted(&self) -> u64 {
        self.preempted
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn ids(&self, running: bool) -> impl DoubleEndedIterator<Item = SequenceId> + '_ {
        self.sequences.iter().filter(move |(_, sequence)| sequence.running == running).map(|(&id, _)| id)
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.limits.block_tokens)
    }

    /// Moves a waiting sequence into the batch, with the blocks of all its known tokens.
    fn admit(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let blocks = self.blocks_for(sequence.known);
        if self.running() >= self.limits.batch_max || blocks > self.free {
            return false;
        }
        self.free -= blocks;
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.blocks = blocks;
            sequence.running = true;
        }
        true
    }

    /// Plans what a running sequence can compute within the budget and the blocks.
    fn extend(&mut self, id: SequenceId, planner: &mut Planner, held: &impl Fn(SequenceId) -> bool) {
        let Some(&sequence) = self.sequences.get(&id) else { return };
        let wanted = sequence.left().min(planner.budget);
        let blocks = self.blocks_for(sequence.cached + wanted);
        while blocks > sequence.blocks + self.free {
            let Some(victim) = self.victim(id, held) else { break };
            self.preempt(victim, planner);
        }
        let granted = blocks.min(sequence.blocks + self.free).max(sequence.blocks);
        let tokens = wanted.min((granted * self.limits.block_tokens).saturating_sub(sequence.cached));
        let taken = granted - sequence.blocks;
        self.free -= taken;
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.blocks = granted;
        }
        if tokens > 0 {
            let samples = tokens == sequence.left();
            planner.budget -= tokens;
            planner.step.chunks.push(Chunk { id, start: sequence.cached, tokens, samples });
        }
    }

    /// Who gives up its blocks for `id`: the youngest whose client does not read, else the youngest.
    fn victim(&self, id: SequenceId, held: &impl Fn(SequenceId) -> bool) -> Option<SequenceId> {
        let unread = self.ids(true).rev().find(|&other| other != id && held(other));
        unread.or_else(|| self.ids(true).next_back().filter(|&youngest| youngest > id))
    }

    fn preempt(&mut self, id: SequenceId, planner: &mut Planner) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.free += sequence.blocks;
            sequence.blocks = 0;
            sequence.cached = 0;
            sequence.running = false;
        }
        self.preempted += 1;
        planner.withdraw(id);
        planner.step.preempted.push(id);
    }
}

struct Planner {
    budget: usize,
    step: Step,
}

impl Planner {
    fn withdraw(&mut self, id: SequenceId) {
        if let Some(index) = self.step.chunks.iter().position(|chunk| chunk.id == id) {
            self.budget += self.step.chunks.remove(index).tokens;
        }
    }
}
