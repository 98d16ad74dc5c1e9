//! One answer in the making.

use std::ops::Range;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Job, LogitRows, Rows};
use crate::error::TextError;
use crate::message::{
    Alternative, FinishReason, GenerateRequest, ReplicaError, Score, TokenEvent, TokenPiece,
};
use crate::sampler::{Sampler, most_likely};
use crate::scheduler::Chunk;
use crate::text::{Detokenizer, StopStrings, TextCodec};

/// What a chunk brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Part of the prompt.
    Prompt,
    /// A token was sampled and more may follow.
    Sampled,
    /// The answer is complete, or has failed.
    Ended,
}

/// The rows of a call's logits that belong to one chunk.
pub(super) struct ChunkLogits<'a, L> {
    pub(super) logits: &'a L,
    pub(super) rows: Range<usize>,
}

/// The tokens of a request, prompt and answer, and what turns them into events.
pub(super) struct Generation<C> {
    /// Keys and values of the tokens computed so far; `None` before the first and after a preemption.
    pub(super) cache: Option<C>,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    output_max: usize,
    echoed: usize,
    end_tokens: Vec<u32>,
    request: GenerateRequest,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopStrings,
    ended: Option<FinishReason>,
    events: mpsc::Sender<TokenEvent>,
}

impl<C> Generation<C> {
    /// Begins an answer, or goes on with one: emitted tokens pass through the same sampler,
    /// detokenizer and stop strings as when they were sampled, only unseen.
    pub(super) fn new(job: Job, output_max: usize, text: &TextCodec) -> Result<Self, ReplicaError> {
        let Job { request, prompt, events } = job;
        let tokenizer = Arc::clone(text.tokenizer());
        let echo = request.echo && request.emitted.is_empty();
        let shown_before: &[u32] = if echo { &[] } else { &prompt.tokens };
        let detokenizer = Detokenizer::after(tokenizer, shown_before);
        let mut generation = Self {
            cache: None,
            prompt_tokens: prompt.tokens.len(),
            output_max,
            echoed: if echo { 0 } else { prompt.tokens.len() },
            end_tokens: if request.ignore_eos { Vec::new() } else { prompt.end_tokens },
            sampler: Sampler::new(request.sampling.clone(), &prompt.tokens),
            detokenizer: detokenizer.map_err(|error| ReplicaError::Lost(error.to_string()))?,
            stops: StopStrings::new(&request.stop),
            ended: None,
            tokens: prompt.tokens,
            request,
            events,
        };
        for token in std::mem::take(&mut generation.request.emitted) {
            generation.push(token).map_err(|error| ReplicaError::Lost(error.to_string()))?;
        }
        Ok(generation)
    }

    /// Tells the client that the request was accepted.
    pub(super) fn start(&self) {
        let prompt_tokens = self.tokens[..self.prompt_tokens].to_vec();
        self.send(TokenEvent::Started { prompt_tokens });
    }

    /// Prompt and answer so far.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Events that may be sent before the client must read.
    pub(super) fn room(&self) -> usize {
        self.events.capacity()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether another replica had emitted the whole answer.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Rows of logits that a chunk needs.
    pub(super) fn rows(&self, chunk: &Chunk) -> Rows {
        let scores = self.request.logprobs.is_some();
        if scores && self.echoed < self.prompt_tokens {
            Rows::All
        } else if chunk.samples && self.tokens.len() < self.prompt_tokens + self.output_max {
            Rows::Last
        } else {
            Rows::None
        }
    }

    /// Sends what a computed chunk brought.
    pub(super) fn advance<L: LogitRows>(
        &mut self,
        chunk: &Chunk,
        logits: &ChunkLogits<'_, L>,
        text: &TextCodec,
    ) -> Progress {
        match self.try_advance(chunk, logits, text) {
            Ok(Progress::Ended) => {
                self.finish();
                Progress::Ended
            }
            Ok(progress) => progress,
            Err(message) => {
                self.send(TokenEvent::Failed(ReplicaError::Lost(message)));
                Progress::Ended
            }
        }
    }

    fn try_advance<L: LogitRows>(
        &mut self,
        chunk: &Chunk,
        logits: &ChunkLogits<'_, L>,
        text: &TextCodec,
    ) -> Result<Progress, String> {
        self.echo(chunk, logits, text).map_err(|error| error.to_string())?;
        if !chunk.samples {
            return Ok(Progress::Prompt);
        }
        if self.tokens.len() >= self.prompt_tokens + self.output_max {
            self.ended = Some(FinishReason::Length);
            return Ok(Progress::Ended);
        }
        let last = logits.rows.end.checked_sub(1).filter(|last| logits.rows.contains(last));
        let last = last.ok_or_else(|| "the model returned no logits".to_owned())?;
        let row = logits.logits.row(last);
        let token = self.sampler.choose(row, self.tokens.len()).map_err(|error| error.to_string())?;
        let piece_text = self.push(token).map_err(|error| error.to_string())?;
        let piece = self.piece(token, piece_text, Some((logits.logits, last)), text);
        self.send(TokenEvent::Token(piece));
        Ok(if self.ended.is_some() { Progress::Ended } else { Progress::Sampled })
    }

    /// Sends the prompt's tokens whose scores are known now. Row `i` of the logits scores the token
    /// after the chunk's `i`-th; the first token of a prompt has no score.
    fn echo<L: LogitRows>(
        &mut self,
        chunk: &Chunk,
        logits: &ChunkLogits<'_, L>,
        text: &TextCodec,
    ) -> Result<(), TextError> {
        let known = (chunk.start + chunk.tokens + 1).min(self.prompt_tokens);
        let mut pieces = Vec::new();
        for position in self.echoed..known {
            let token = self.tokens[position];
            let shown = self.detokenizer.push(token)?;
            let row =
                position.checked_sub(chunk.start + 1).and_then(|offset| logits.rows.clone().nth(offset));
            pieces.push(self.piece(token, shown, row.map(|row| (logits.logits, row)), text));
        }
        self.echoed = self.echoed.max(known);
        if !pieces.is_empty() {
            self.send(TokenEvent::Echo(pieces));
        }
        Ok(())
    }

    /// Appends a token to the answer; returns its text and decides whether it was the last.
    fn push(&mut self, token: u32) -> Result<String, TextError> {
        self.tokens.push(token);
        self.sampler.record(token);
        if self.end_tokens.contains(&token) {
            self.ended = Some(FinishReason::Stop);
            return Ok(String::new());
        }
        let released = self.stops.push(&self.detokenizer.push(token)?);
        if released.stopped {
            self.ended = Some(FinishReason::Stop);
        } else if self.tokens.len() >= self.prompt_tokens + self.output_max {
            self.ended = Some(FinishReason::Length);
        }
        Ok(released.text)
    }

    fn piece<L: LogitRows>(
        &self,
        token: u32,
        shown: String,
        row: Option<(&L, usize)>,
        text: &TextCodec,
    ) -> TokenPiece {
        let Some(top) = self.request.logprobs else {
            return TokenPiece { token, text: shown, surface: String::new(), score: None };
        };
        let score = row.map(|(logits, row)| {
            let best = most_likely(logits.row(row), usize::from(top));
            let mut logprobs =
                logits.log_probabilities(row, &[&[token], best.as_slice()].concat()).into_iter();
            let logprob = logprobs.next().unwrap_or(f32::NEG_INFINITY);
            let alternative = |(token, logprob)| Alternative { token, surface: text.surface(token), logprob };
            Score { logprob, top: best.into_iter().zip(logprobs).map(alternative).collect() }
        });
        TokenPiece { token, text: shown, surface: text.surface(token), score }
    }

    /// Sends the end, with the text that was held back.
    pub(super) fn finish(&mut self) {
        let reason = self.ended.unwrap_or(FinishReason::Length);
        let text = std::mem::replace(&mut self.stops, StopStrings::new(&[])).finish();
        self.send(TokenEvent::Finished { reason, text });
    }

    /// Tells the client that there will be no answer.
    pub(super) fn fail(&self, error: ReplicaError) {
        self.send(TokenEvent::Failed(error));
    }

    /// The engine steps a sequence only where there is room, and a client that has gone needs nothing.
    fn send(&self, event: TokenEvent) {
        let _ = self.events.try_send(event);
    }
}
