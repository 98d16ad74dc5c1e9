//! Batches that are read ahead of the steps: [`Prefetch`].

use std::ops::Range;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sixfold_artifact::tokens::TokensError;
use sixfold_parallel::StepBatch;

use crate::batches::Batches;
use crate::error::TrainError;

/// Batches that wait for their step. A batch is a few bytes a token.
const AHEAD: usize = 2;

/// A thread that reads the batches of the next steps while a step is computed.
pub(crate) struct Prefetch {
    batches: Option<Receiver<Result<StepBatch, TokensError>>>,
    thread: Option<JoinHandle<()>>,
}

/// A batch that was read.
pub(crate) struct Fetched {
    pub(crate) batch: StepBatch,
    /// How long the step had to wait for it.
    pub(crate) waited: Duration,
    /// Whether it had not been read when the step was to begin.
    pub(crate) starved: bool,
}

impl Prefetch {
    /// Begins to read the batches of `steps`, in order.
    pub(crate) fn start(batches: Batches, steps: Range<u64>) -> Result<Self, TrainError> {
        let (sender, receiver) = sync_channel(AHEAD);
        let read = move || {
            for step in steps {
                if sender.send(batches.step(step)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("prefetch".to_owned()).spawn(read);
        let thread = thread.map_err(|error| TrainError::Thread(error.to_string()))?;
        Ok(Self { batches: Some(receiver), thread: Some(thread) })
    }

    /// The batch of the next step.
    pub(crate) fn next(&self) -> Result<Fetched, TrainError> {
        let ended = || TrainError::Thread("no batches are left to read".to_owned());
        let since = Instant::now();
        let batches = self.batches.as_ref().ok_or_else(ended)?;
        let (batch, starved) = match batches.try_recv() {
            Ok(batch) => (batch, false),
            Err(TryRecvError::Empty) => (batches.recv().map_err(|_| ended())?, true),
            Err(TryRecvError::Disconnected) => return Err(ended()),
        };
        // What the system took from this thread meanwhile is no waiting for data.
        let waited = if starved { since.elapsed() } else { Duration::ZERO };
        Ok(Fetched { batch: batch?, waited, starved })
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // The thread ends when nobody is left to take what it reads.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::TrainOptions;
    use crate::testing::batches;

    fn start(steps: Range<u64>) -> (Prefetch, Batches) {
        let options = TrainOptions { context_length: 8, batch_sequences: 4, ..TrainOptions::default() };
        let batches = || batches(&options, 0..4);
        (Prefetch::start(batches(), steps).unwrap(), batches())
    }

    #[test]
    fn batches_come_in_the_order_of_their_steps_and_end() {
        let (prefetch, batches) = start(3..9);
        for step in 3..9 {
            assert_eq!(prefetch.next().unwrap().batch, batches.step(step).unwrap());
        }
        assert!(prefetch.next().is_err());
    }

    #[test]
    fn a_batch_that_was_read_ahead_starves_nobody() {
        let (prefetch, _) = start(0..2);
        prefetch.next().unwrap();
        // The thread ends once both are read and one was taken.
        while !prefetch.thread.as_ref().unwrap().is_finished() {
            thread::yield_now();
        }
        let fetched = prefetch.next().unwrap();
        assert!(!fetched.starved && fetched.waited == Duration::ZERO);
    }

    #[test]
    fn a_trainer_that_stops_early_does_not_wait_for_the_rest() {
        let (prefetch, _) = start(0..u64::MAX);
        prefetch.next().unwrap();
        drop(prefetch);
    }
}
