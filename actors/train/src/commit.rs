//! Commits: after a step, each rank's state is held in memory by its own node and by one of another failure
//! domain, beside the computation of the next steps.
//!
//! A step is *complete* once every rank's state of it is held. Each rank raises its flag while its commit is
//! under way, and the number of flags that are up is summed along with every step; so all ranks see in the same
//! step that nothing is under way any more, take that step for complete, and commit the same next one. A commit
//! that takes longer than a step costs no rank its time: the steps meanwhile are not committed.
//!
//! What is guaranteed: the step that is complete, and then the one under way, are held until a newer one is
//! complete. So a fault makes the gang do again what it did since the newest complete step: with commits that are
//! done within the next step, that step at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sixfold_cluster::task::{CommitSchedule, HostError};

use crate::checkpoint::{Saver, Snapshot, Writer};
use crate::error::TrainError;
use crate::host::BlockingHost;

/// How long a state that nobody took waits before it is offered again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// A state on its way to its holders, and the newest complete step.
type Offer = (Snapshot, u64);

/// A rank's commits.
pub(crate) struct Commits {
    host: BlockingHost,
    schedule: CommitSchedule,
    flag: Arc<AtomicBool>,
    saver: Saver<Offer, (u64, Result<(), TrainError>)>,
    offered: Option<Offer>,
    /// When a state that nobody took is offered again.
    retry_at: Option<Instant>,
    /// States that were taken.
    taken: u64,
    /// Whether the log says already that nobody takes them.
    told: bool,
}

impl Commits {
    /// Commits as `schedule` says; `flag` is the rank's.
    pub(crate) fn start(
        writer: Writer,
        schedule: CommitSchedule,
        flag: Arc<AtomicBool>,
    ) -> Result<Self, TrainError> {
        let (host, lowered) = (writer.host.clone(), flag.clone());
        let saver = Saver::start("commit", move |(snapshot, complete): Offer| {
            let done = writer.commit(&snapshot, complete);
            if done.is_ok() {
                lowered.store(false, Ordering::Release);
            }
            (snapshot.step, done)
        })?;
        Ok(Self { host, schedule, flag, saver, offered: None, retry_at: None, taken: 0, told: false })
    }

    /// A step is done, see [`CommitSchedule::after_step`]. Returns the newest complete step if this rank's state is to
    /// be offered now.
    ///
    /// # Errors
    /// If the task was placed elsewhere and must not go on.
    pub(crate) fn after_step(&mut self, step: u64, flags: u32) -> Result<Option<u64>, TrainError> {
        while let Some((step, done)) = self.saver.poll() {
            self.take(step, done)?;
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now())
            && let Some(offer) = self.offered.clone()
        {
            self.retry_at = None;
            self.saver.submit(offer)?;
        }
        Ok(self.schedule.after_step(step, flags))
    }

    fn take(&mut self, step: u64, done: Result<(), TrainError>) -> Result<(), TrainError> {
        match done {
            Ok(()) => {
                self.taken += 1;
                if std::mem::take(&mut self.told) {
                    self.host.log(format!("states are held in memory again, that of step {step} is"));
                }
                self.offered.take_if(|(snapshot, _)| snapshot.step == step);
                Ok(())
            }
            Err(error @ TrainError::Host(HostError::Superseded)) => Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    self.host.log(format!(
                        "the state of step {step} is not held in memory; until one is, a fault costs all steps since \
                         the last checkpoint: {error}"
                    ));
                }
                self.retry_at = Some(Instant::now() + RETRY_PAUSE);
                Ok(())
            }
        }
    }

    /// The newest step of which every rank's state is known to be held.
    pub(crate) fn complete(&self) -> u64 {
        self.schedule.complete()
    }

    /// States of this rank that were taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Offers a state to its holders, and again for as long as nobody takes it.
    pub(crate) fn offer(&mut self, snapshot: Snapshot, complete: u64) -> Result<(), TrainError> {
        self.flag.store(true, Ordering::Release);
        self.offered = Some((snapshot.clone(), complete));
        self.saver.submit((snapshot, complete))
    }
}
