//! One answer, whatever happens to the replicas that give it.
//!
//! A replica that dies or fails in the middle is replaced: another one gets the same request with
//! the tokens emitted so far and goes on where it stopped, by the replica protocol's promise. What
//! it says again (its start, a prompt's echo) is left out.
//!
//! A replica that says nothing for a while is taken for dead. One that is slow says that it is alive,
//! for as long as it computes; so the deadline is one between two signs of life, and no prompt is too
//! long for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use sixfold_infer::message::{GenerateRequest, ReplicaError, TokenEvent};
use sixfold_infer::replica::EventStream;
use tokio::time::{Instant, timeout};

use super::pool::{Given, Pool, ReplicaKey};

/// A pause before replicas that failed are tried again, where the cluster did not change meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How patient an answer is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// With a replica that says nothing.
    pub(super) event: Duration,
    /// Without any replica that answers.
    pub(super) replica: Duration,
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnswerError {
    /// The request is wrong.
    Invalid { field: String, message: String },
    /// Every replica's queue is full.
    Busy,
    /// No replica answered in time; the last one said this.
    Unavailable(String),
}

impl From<AnswerError> for ReplicaError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Invalid { field, message } => Self::Invalid { field, message },
            AnswerError::Busy => Self::Busy("every replica's queue is full".to_owned()),
            AnswerError::Unavailable(why) => Self::Lost(why),
        }
    }
}

/// An answer in the making.
pub(super) struct Answer {
    pool: Arc<Pool>,
    patience: Patience,
    request: GenerateRequest,
    source: Option<(EventStream, Given)>,
    started: bool,
    /// Tokens of the prompt that the client has seen.
    echoed: usize,
    /// Of these, the ones that the current replica has yet to repeat.
    repeats: usize,
    ended: bool,
    resumed: u64,
    failed: Failed,
}

/// Replicas that failed since the last progress, and since when there has been none.
struct Failed {
    replicas: BTreeSet<ReplicaKey>,
    all_busy: bool,
    last: String,
    since: Instant,
}

impl Failed {
    fn none() -> Self {
        Self {
            replicas: BTreeSet::new(),
            all_busy: true,
            last: "no replica is ready".to_owned(),
            since: Instant::now(),
        }
    }
}

impl Answer {
    pub(super) fn new(pool: Arc<Pool>, patience: Patience, request: GenerateRequest) -> Self {
        Self {
            pool,
            patience,
            request,
            source: None,
            started: false,
            echoed: 0,
            repeats: 0,
            ended: false,
            resumed: 0,
            failed: Failed::none(),
        }
    }

    /// The next event; `None` after the last. Never [`TokenEvent::Failed`] nor [`TokenEvent::Alive`].
    pub(super) async fn next(&mut self) -> Option<Result<TokenEvent, AnswerError>> {
        while !self.ended {
            match self.step().await {
                Ok(None) => {}
                Ok(Some(event)) => return Some(Ok(event)),
                Err(error) => {
                    self.end();
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// Hears one event, or finds another replica.
    async fn step(&mut self) -> Result<Option<TokenEvent>, AnswerError> {
        let Some((events, _)) = &mut self.source else {
            self.source = Some(self.connect().await?);
            self.repeats = self.echoed;
            return Ok(None);
        };
        let (patience, since) = (self.patience.event, Instant::now());
        let lost = match timeout(patience, events.next()).await {
            Ok(Some(TokenEvent::Failed(error))) => error,
            Ok(Some(event)) => return Ok(self.fresh(event, since.elapsed())),
            Ok(None) => ReplicaError::Lost("its answer was cut off".to_owned()),
            Err(_) => ReplicaError::Lost(format!("it said nothing for {} ms", patience.as_millis())),
        };
        self.replace(lost).map(|()| None)
    }

    /// How often another replica had to go on.
    pub(super) fn resumed(&self) -> u64 {
        self.resumed
    }

    fn end(&mut self) {
        self.ended = true;
        self.source = None;
    }

    /// What the client has not seen of an event that took so long to come.
    fn fresh(&mut self, event: TokenEvent, waited: Duration) -> Option<TokenEvent> {
        match event {
            TokenEvent::Started { .. } if self.started => None,
            TokenEvent::Started { .. } => {
                self.started = true;
                Some(event)
            }
            TokenEvent::Echo(mut pieces) => {
                let seen = self.repeats.min(pieces.len());
                self.repeats -= seen;
                pieces.drain(..seen);
                self.echoed += pieces.len();
                self.failed = Failed::none();
                (!pieces.is_empty()).then_some(TokenEvent::Echo(pieces))
            }
            TokenEvent::Token(piece) => {
                self.request.emitted.push(piece.token);
                self.failed = Failed::none();
                Some(TokenEvent::Token(piece))
            }
            TokenEvent::Finished { .. } | TokenEvent::Failed(_) => {
                self.end();
                Some(event)
            }
            TokenEvent::Alive => {
                // Time with a replica that works is no time without one.
                self.failed.since += waited;
                None
            }
        }
    }

    /// Gives up a replica that failed.
    fn replace(&mut self, error: ReplicaError) -> Result<(), AnswerError> {
        if let ReplicaError::Invalid { field, message } = error {
            return Err(AnswerError::Invalid { field, message });
        }
        if let Some((_, given)) = self.source.take() {
            self.resumed += u64::from(!self.request.emitted.is_empty());
            self.failed(&given, &error);
        }
        Ok(())
    }

    fn failed(&mut self, given: &Given, error: &ReplicaError) {
        let (replica, emitted) = (given.key(), self.request.emitted.len());
        tracing::debug!(?replica, %error, emitted, "a replica gave up an answer");
        let busy = matches!(error, ReplicaError::Busy(_));
        if !busy {
            given.suspect();
        }
        self.failed.replicas.insert(replica);
        self.failed.all_busy &= busy;
        self.failed.last = error.to_string();
    }

    /// Finds a replica that takes the request; waits for one to come back where none is left.
    async fn connect(&mut self) -> Result<(EventStream, Given), AnswerError> {
        let mut changes = self.pool.changes();
        loop {
            changes.mark_unchanged();
            while let Some(given) = self.pool.pick(&self.request.model, &self.failed.replicas) {
                match self.ask(&given).await {
                    Ok(events) => return Ok((events, given)),
                    Err(ReplicaError::Invalid { field, message }) => {
                        return Err(AnswerError::Invalid { field, message });
                    }
                    Err(error) => self.failed(&given, &error),
                }
            }
            self.give_up()?;
            // Either way the replicas that failed get another chance: a process may have come back.
            if let Ok(Err(_)) = timeout(RETRY_PAUSE, changes.changed()).await {
                // The daemon that knew the cluster is gone: there are no more changes to wait for.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            self.failed.replicas.clear();
            self.failed.all_busy = true;
        }
    }

    // The exclusive borrow is for the future to be sendable: an event stream is not `Sync`.
    async fn ask(&mut self, given: &Given) -> Result<EventStream, ReplicaError> {
        let asked = timeout(self.patience.event, given.client().generate(self.request.clone())).await;
        asked.unwrap_or_else(|_| Err(ReplicaError::Lost("it does not take requests".to_owned())))
    }

    /// Ends the search where it has lasted too long, or where all that replicas want is time.
    fn give_up(&self) -> Result<(), AnswerError> {
        if self.failed.all_busy && !self.failed.replicas.is_empty() && self.request.emitted.is_empty() {
            return Err(AnswerError::Busy);
        }
        if self.failed.since.elapsed() >= self.patience.replica {
            return Err(AnswerError::Unavailable(self.failed.last.clone()));
        }
        Ok(())
    }
}
