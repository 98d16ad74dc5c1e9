//! The engine: a model, its batch, and the answers in the making.
//!
//! A synchronous state machine that owns the model: [`Engine::submit`] takes a request, and each
//! [`Engine::step`] computes one step of the batch and sends what came of it. It has no clock, no
//! thread and no socket; [`thread`](crate::thread) gives it one of its own.
//!
//! A token's logits do not depend on what else is in the batch: that is the model's promise (see
//! `sixfold_tensor`), and the engine keeps it by giving each sequence a cache of its own.

mod decoder;
mod generation;
mod model;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use decoder::{Decoder, DecoderShape, LogitRows, ModelError, Rows, Work};
use generation::{ChunkLogits, Generation, Progress};
pub use model::ModelDecoder;

use crate::message::{GenerateRequest, ReplicaError, TokenEvent};
use crate::pulse::Pulse;
use crate::scheduler::{Chunk, Limits, Refusal, Scheduler, SequenceId};
use crate::text::{EncodedPrompt, TextCodec};

/// Events that one step may send for one sequence: echo, token, end.
const EVENTS_PER_STEP: usize = 3;

/// A request whose prompt has been tokenized.
pub struct Job {
    /// The request.
    pub request: GenerateRequest,
    /// Its prompt.
    pub prompt: EncodedPrompt,
    /// Where its events go. A full channel holds the sequence; a closed one cancels it.
    pub events: mpsc::Sender<TokenEvent>,
}

/// How full an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences in the queue.
    pub waiting: usize,
    /// KV blocks in use.
    pub blocks_used: usize,
    /// KV blocks altogether.
    pub blocks: usize,
    /// How often a sequence has given its blocks back, to be computed again.
    pub preempted: u64,
}

/// See the module.
pub struct Engine<D: Decoder> {
    decoder: D,
    text: Arc<TextCodec>,
    scheduler: Scheduler,
    output_tokens_max: usize,
    pulse: Pulse,
    generations: HashMap<SequenceId, Generation<D::Cache>>,
}

impl<D: Decoder> Engine<D> {
    /// An idle engine. `output_tokens_max` bounds every answer; 0 for the model's context.
    pub fn new(decoder: D, text: Arc<TextCodec>, limits: Limits, output_tokens_max: usize) -> Self {
        let (scheduler, pulse) = (Scheduler::new(limits), Pulse::default());
        Self { decoder, text, scheduler, output_tokens_max, pulse, generations: HashMap::new() }
    }

    /// Beats while the engine computes.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Takes a request into the queue, or tells its client why not.
    pub fn submit(&mut self, job: Job) {
        let events = job.events.clone();
        if let Err(error) = self.try_submit(job) {
            // A client that has gone needs no answer.
            let _ = events.try_send(TokenEvent::Failed(error));
        }
    }

    fn try_submit(&mut self, job: Job) -> Result<(), ReplicaError> {
        let output_max = self.output_max(&job)?;
        let mut generation = Generation::new(job, output_max, &self.text)?;
        if generation.is_ended() {
            generation.start();
            generation.finish();
            return Ok(());
        }
        let tokens_max = generation.prompt_tokens() + output_max;
        let id = self.scheduler.submit(generation.tokens().len(), tokens_max).map_err(
            |refusal| match refusal {
                Refusal::Busy { .. } => ReplicaError::Busy(refusal.to_string()),
                Refusal::TooLong { .. } => ReplicaError::invalid("prompt", refusal),
            },
        )?;
        generation.start();
        self.generations.insert(id, generation);
        Ok(())
    }

    /// How many tokens the answer may have; checks the prompt's against the model.
    fn output_max(&self, job: &Job) -> Result<usize, ReplicaError> {
        let DecoderShape { vocabulary, context_tokens, .. } = self.decoder.shape();
        let prompt = job.prompt.tokens.len();
        let whole = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let invalid = |message: String| Err(ReplicaError::invalid("prompt", message));
        if prompt == 0 {
            return invalid("it has no tokens, and the model has no token to begin a text with".to_owned());
        }
        let all = job.prompt.tokens.iter().chain(&job.request.emitted);
        if let Some(token) = all.into_iter().find(|&&token| whole(token) >= vocabulary) {
            return invalid(format!("token {token} is outside the vocabulary of {vocabulary}"));
        }
        let wanted = job.request.output_tokens_max.map(whole);
        if prompt > context_tokens || (prompt == context_tokens && wanted != Some(0)) {
            return invalid(format!("it has {prompt} tokens; the model's context has {context_tokens}"));
        }
        let cap = if self.output_tokens_max == 0 { usize::MAX } else { self.output_tokens_max };
        Ok((context_tokens - prompt).min(cap).min(wanted.unwrap_or(usize::MAX)))
    }

    /// Computes one step. Returns whether there was anything to do.
    ///
    /// # Errors
    /// [`ModelError`] where the model failed: no answer of this engine can be trusted any more.
    pub fn step(&mut self) -> Result<bool, ModelError> {
        let cancelled = self.remove_cancelled();
        let generations = &self.generations;
        let held = |id| generations.get(&id).is_some_and(|generation| generation.room() < EVENTS_PER_STEP);
        let step = self.scheduler.step(held);
        for id in &step.preempted {
            if let Some(generation) = self.generations.get_mut(id) {
                generation.cache = None;
            }
        }
        if step.chunks.is_empty() {
            return Ok(cancelled || !step.preempted.is_empty());
        }
        let rows: Vec<Rows> = step.chunks.iter().map(|chunk| self.rows(chunk)).collect();
        let logits = self.forward(&step.chunks, &rows)?;
        let mut first = 0;
        for (chunk, rows) in step.chunks.into_iter().zip(rows) {
            let next = first + rows.count(chunk.tokens);
            self.apply(chunk, ChunkLogits { logits: &logits, rows: first..next });
            first = next;
        }
        Ok(true)
    }

    /// Tells every client that there will be no answer from here.
    pub fn fail_all(&mut self, error: &ReplicaError) {
        for (id, generation) in self.generations.drain() {
            self.scheduler.remove(id);
            generation.fail(error.clone());
        }
    }

    /// How full the engine is.
    pub fn load(&self) -> Load {
        Load {
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            blocks_used: self.scheduler.blocks_used(),
            blocks: self.scheduler.limits().kv_blocks,
            preempted: self.scheduler.preempted(),
        }
    }

    fn remove_cancelled(&mut self) -> bool {
        let scheduler = &mut self.scheduler;
        let before = self.generations.len();
        self.generations.retain(|&id, generation| {
            let cancelled = generation.is_cancelled();
            if cancelled {
                scheduler.remove(id);
            }
            !cancelled
        });
        self.generations.len() < before
    }

    fn rows(&self, chunk: &Chunk) -> Rows {
        self.generations.get(&chunk.id).map_or(Rows::None, |generation| generation.rows(chunk))
    }

    fn forward(&mut self, chunks: &[Chunk], rows: &[Rows]) -> Result<D::Logits, ModelError> {
        let mut caches: Vec<D::Cache> = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let cached = self.generations.get_mut(&chunk.id).and_then(|generation| generation.cache.take());
            caches.push(cached.unwrap_or_else(|| self.decoder.cache()));
        }
        let mut work: Vec<Work<'_, D::Cache>> = Vec::with_capacity(chunks.len());
        for ((chunk, cache), &rows) in chunks.iter().zip(&mut caches).zip(rows) {
            let generation = self.generations.get(&chunk.id);
            let tokens = generation.and_then(|g| g.tokens().get(chunk.start..chunk.start + chunk.tokens));
            work.push(Work { tokens: tokens.unwrap_or_default(), start: chunk.start, cache, rows });
        }
        let logits = self.decoder.forward(&mut work, &self.pulse)?;
        self.pulse.beat();
        for (chunk, cache) in chunks.iter().zip(caches) {
            if let Some(generation) = self.generations.get_mut(&chunk.id) {
                generation.cache = Some(cache);
            }
        }
        Ok(logits)
    }

    fn apply(&mut self, chunk: Chunk, logits: ChunkLogits<'_, D::Logits>) {
        let Some(generation) = self.generations.get_mut(&chunk.id) else { return };
        let progress = generation.advance(&chunk, &logits, &self.text);
        self.scheduler.computed(chunk, matches!(progress, Progress::Sampled));
        if matches!(progress, Progress::Ended) {
            self.scheduler.remove(chunk.id);
            self.generations.remove(&chunk.id);
        }
    }
}
