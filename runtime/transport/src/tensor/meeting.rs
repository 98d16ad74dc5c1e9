//! Where ranks that connect meet ranks that accept, in whatever order they come.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sixfold_wire::id::{Epoch, JobId};
use tokio::sync::oneshot;

use super::LinkKey;

/// Visitors who wait for a rank here to accept them; more are refused.
const VISITORS_MAX: usize = 1024;

/// Jobs whose epoch is remembered; the oldest job is forgotten first.
const JOBS_MAX: usize = 4096;

/// Matches visitors and hosts by [`LinkKey`]. `V` is a visitor.
#[derive(Debug)]
pub(super) struct Meeting<V> {
    state: Mutex<State<V>>,
}

#[derive(Debug)]
struct State<V> {
    visitors: HashMap<LinkKey, V>,
    hosts: HashMap<LinkKey, oneshot::Sender<V>>,
    /// The newest epoch seen of each job.
    epochs: BTreeMap<JobId, Epoch>,
}

/// Why a visitor cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnedAway {
    Stale,
    Crowded,
}

impl<V> Default for Meeting<V> {
    fn default() -> Self {
        let state = State { visitors: HashMap::new(), hosts: HashMap::new(), epochs: BTreeMap::new() };
        Self { state: Mutex::new(state) }
    }
}

impl<V> Meeting<V> {
    /// A visitor comes: a waiting host gets it, else it waits. A second visitor for the same link
    /// takes the first one's place: a rank that tries again.
    pub(super) fn visit(&self, key: LinkKey, visitor: V) -> Result<(), (TurnedAway, V)> {
        let mut state = self.lock();
        if state.stale(&key) {
            return Err((TurnedAway::Stale, visitor));
        }
        let visitor = match state.hosts.remove(&key) {
            Some(host) => match host.send(visitor) {
                Ok(()) => return Ok(()),
                // The host has stopped waiting.
                Err(visitor) => visitor,
            },
            None => visitor,
        };
        state.keep(key, visitor)
    }

    /// A host comes: it gets a waiting visitor, or waits for one.
    pub(super) fn host(&self, key: &LinkKey) -> Result<oneshot::Receiver<V>, TurnedAway> {
        let mut state = self.lock();
        state.begin(key.job, key.epoch);
        if state.stale(key) {
            return Err(TurnedAway::Stale);
        }
        let (sender, receiver) = oneshot::channel();
        match state.visitors.remove(key) {
            // The receiver is right here.
            Some(visitor) => drop(sender.send(visitor)),
            None => drop(state.hosts.insert(key.clone(), sender)),
        }
        Ok(receiver)
    }

    /// An epoch of a job has begun: older visitors and hosts are sent away.
    pub(super) fn begin(&self, job: JobId, epoch: Epoch) {
        self.lock().begin(job, epoch);
    }

    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> State<V> {
    fn stale(&self, key: &LinkKey) -> bool {
        self.epochs.get(&key.job).is_some_and(|newest| key.epoch < *newest)
    }

    fn keep(&mut self, key: LinkKey, visitor: V) -> Result<(), (TurnedAway, V)> {
        if self.visitors.len() >= VISITORS_MAX {
            return Err((TurnedAway::Crowded, visitor));
        }
        self.visitors.insert(key, visitor);
        Ok(())
    }

    fn begin(&mut self, job: JobId, epoch: Epoch) {
        let newest = self.epochs.entry(job).or_insert(epoch);
        if *newest > epoch {
            return;
        }
        *newest = epoch;
        let current = |key: &LinkKey| key.job != job || key.epoch >= epoch;
        self.visitors.retain(|key, _| current(key));
        self.hosts.retain(|key, host| current(key) && !host.is_closed());
        if self.epochs.len() > JOBS_MAX {
            self.epochs.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u64) -> LinkKey {
        LinkKey { job: JobId(1), epoch: Epoch(epoch), from: 0, to: 1, purpose: "train".into() }
    }

    #[test]
    fn either_side_may_come_first() {
        let meeting = Meeting::default();
        meeting.visit(key(1), "early").unwrap();
        assert_eq!(meeting.host(&key(1)).unwrap().try_recv(), Ok("early"));
        let mut waiting = meeting.host(&key(1)).unwrap();
        meeting.visit(key(1), "late").unwrap();
        assert_eq!(waiting.try_recv(), Ok("late"));
    }

    #[test]
    fn a_stale_epoch_is_turned_away() {
        let meeting = Meeting::default();
        meeting.visit(key(1), "waits").unwrap();
        let mut old_host = meeting.host(&LinkKey { to: 2, ..key(1) }).unwrap();
        meeting.begin(JobId(1), Epoch(2));
        assert!(old_host.try_recv().is_err());
        assert_eq!(meeting.visit(key(1), "stale"), Err((TurnedAway::Stale, "stale")));
        assert_eq!(meeting.host(&key(1)).unwrap_err(), TurnedAway::Stale);
        let mut current = meeting.host(&key(2)).unwrap();
        assert!(current.try_recv().is_err(), "nobody of the old epoch is waiting");
        let other_job = LinkKey { job: JobId(2), ..key(1) };
        assert!(meeting.visit(other_job, "another job").is_ok());
    }

    #[test]
    fn a_host_that_has_gone_leaves_its_visitor_to_the_next() {
        let meeting = Meeting::default();
        drop(meeting.host(&key(1)).unwrap());
        meeting.visit(key(1), "patient").unwrap();
        assert_eq!(meeting.host(&key(1)).unwrap().try_recv(), Ok("patient"));
    }

    #[test]
    fn a_crowd_is_turned_away() {
        let meeting = Meeting::default();
        let link = |from| LinkKey { from, ..key(1) };
        let max = u32::try_from(VISITORS_MAX).unwrap();
        assert!((0..max).all(|from| meeting.visit(link(from), from).is_ok()));
        assert_eq!(meeting.visit(link(max), max), Err((TurnedAway::Crowded, max)));
    }
}
