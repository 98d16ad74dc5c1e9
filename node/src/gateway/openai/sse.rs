//! Streamed answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use bytes::Bytes;
use futures::stream::{self, SelectAll, Stream, StreamExt};
use serde_json::Value;
use sixfold_infer::message::{TokenEvent, TokenPiece};

use super::ApiError;
use super::response::{Delta, Shape, Usage};

/// What ends every stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// The events of one choice.
pub(in crate::gateway) type ChoiceEvents = stream::BoxStream<'static, Result<TokenEvent, ApiError>>;

/// Turns the events of a request's choices into chunks.
pub(in crate::gateway) struct Chunks {
    shape: Shape,
    include_usage: bool,
    events: SelectAll<stream::BoxStream<'static, (usize, Result<TokenEvent, ApiError>)>>,
    choices: Vec<ChoiceState>,
    ready: VecDeque<Bytes>,
    ended: bool,
}

#[derive(Default)]
struct ChoiceState {
    begun: bool,
    characters: usize,
    usage: Usage,
}

impl Chunks {
    pub(in crate::gateway) fn new(shape: Shape, include_usage: bool, choices: Vec<ChoiceEvents>) -> Self {
        let states = choices.iter().map(|_| ChoiceState::default()).collect();
        let numbered = choices
            .into_iter()
            .enumerate()
            .map(|(index, events)| events.map(move |event| (index, event)).boxed());
        Self {
            shape,
            include_usage,
            events: stream::select_all(numbered),
            choices: states,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// The bytes of the response's body. `held` lives as long as they are wanted.
    pub(in crate::gateway) fn into_bytes<H: Send + 'static>(
        self,
        held: H,
    ) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold((self, held), |(mut chunks, held)| async move {
            let bytes = chunks.next().await?;
            Some((Ok(bytes), (chunks, held)))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() && !self.ended {
            match self.events.next().await {
                Some((index, Ok(event))) => self.on_event(index, event),
                Some((_, Err(error))) => {
                    self.send(&error.body());
                    self.finish();
                }
                None => {
                    if self.include_usage {
                        let usage = self.usage();
                        self.send(&self.shape.usage_chunk(usage));
                    }
                    self.finish();
                }
            }
        }
        self.ready.pop_front()
    }

    fn on_event(&mut self, index: usize, event: TokenEvent) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        match event {
            TokenEvent::Started { prompt_tokens } => choice.usage.prompt_tokens = prompt_tokens.len(),
            TokenEvent::Echo(pieces) => self.on_pieces(index, pieces),
            TokenEvent::Token(piece) => {
                choice.usage.output_tokens += 1;
                self.on_pieces(index, vec![piece]);
            }
            TokenEvent::Finished { reason, text } => {
                self.chunk(Delta { index, text, reason: Some(reason), ..Delta::default() });
            }
            TokenEvent::Failed(_) | TokenEvent::Alive => {}
        }
    }

    /// A token that shows nothing yet is sent only where its score is wanted.
    fn on_pieces(&mut self, index: usize, pieces: Vec<TokenPiece>) {
        let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        let scored = self.shape.is_scored();
        if !text.is_empty() || scored {
            let pieces = if scored { pieces } else { Vec::new() };
            self.chunk(Delta { index, text, pieces, ..Delta::default() });
        }
    }

    fn chunk(&mut self, delta: Delta) {
        let Some(choice) = self.choices.get_mut(delta.index) else { return };
        let delta = Delta { first: !choice.begun, offset: choice.characters, ..delta };
        choice.begun = true;
        choice.characters += delta.text.chars().count();
        self.send(&self.shape.chunk(&delta, self.include_usage));
    }

    fn usage(&self) -> Usage {
        self.choices.iter().fold(Usage::default(), |sum, choice| Usage {
            prompt_tokens: sum.prompt_tokens + choice.usage.prompt_tokens,
            output_tokens: sum.output_tokens + choice.usage.output_tokens,
        })
    }

    fn send(&mut self, data: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    /// Ends the stream; choices that still run are cancelled.
    fn finish(&mut self) {
        self.ready.push_back(Bytes::from_static(DONE));
        self.events = SelectAll::new();
        self.ended = true;
    }
}
