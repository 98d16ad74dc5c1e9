//! What a node holds in memory for gangs that train: a pure table of states by gang and step.
//!
//! A gang's ranks say with each state which step is *complete*: every rank's state of it is held by
//! two failure domains (by one where there is no second). States of older steps are dropped then and
//! not before, so that a complete step is always among the holders. States of an attempt older than
//! one that was seen are refused, and what it had under way is dropped; so is what does not fit the bound. All states of a gang go when the
//! coordinator no longer names the gang among those that run.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sixfold_artifact::Manifest;
use sixfold_wire::id::{ArtifactId, ContentHash, Epoch};

use crate::task::{Commit, GangId};

/// Gangs that have ended and are remembered, so that a late state of one is refused.
const ENDED_MAX: usize = 4096;

/// Why a state is not held.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HoldError {
    /// A newer attempt of the gang was seen.
    #[error("a newer attempt of the gang was seen")]
    Stale,
    /// The gang has ended.
    #[error("the gang has ended")]
    Ended,
    /// A newer step is complete.
    #[error("step {complete} is complete already")]
    Old {
        /// That step.
        complete: u64,
    },
    /// There is no room.
    #[error("{bytes} more bytes do not fit beside {held} that are held; the limit is {limit}")]
    Full {
        /// Bytes of the state.
        bytes: u64,
        /// Bytes that are held or on their way.
        held: u64,
        /// The bound.
        limit: u64,
    },
}

/// Where a state stands: whose it is, and what it says about the gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct HoldTag {
    /// The gang.
    pub(crate) gang: GangId,
    /// Its attempt.
    pub(crate) epoch: Epoch,
    /// Steps done.
    pub(crate) step: u64,
    /// The newest step that is complete; 0 if none is.
    pub(crate) complete: u64,
}

/// A state in memory.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) manifest: Manifest,
    pub(crate) files: Vec<Bytes>,
}

impl From<Commit> for Held {
    fn from(commit: Commit) -> Self {
        Self { manifest: commit.manifest, files: commit.files }
    }
}

#[derive(Default)]
struct GangStates {
    /// The newest attempt that was seen.
    newest: Epoch,
    /// The newest attempt of which a state came.
    begun: Epoch,
    complete: u64,
    /// The newest attempt of which a rank has done a step, and the newest step of it.
    furthest: (Epoch, u64),
    states: States,
}

type States = BTreeMap<(u64, ArtifactId), Held>;

/// The key before all states of a step.
fn first_of(step: u64) -> (u64, ArtifactId) {
    (step, ArtifactId(ContentHash::from_bytes([0; 32])))
}

fn bytes_of(states: &States) -> u64 {
    states.values().map(|state| state.manifest.bytes()).sum()
}

/// The table; see the module.
pub(crate) struct Holder {
    limit_bytes: u64,
    /// Of held states and of those on their way.
    bytes: u64,
    gangs: BTreeMap<GangId, GangStates>,
    /// Gangs that the coordinator named when it was last heard.
    running: BTreeSet<GangId>,
    ended: BTreeSet<GangId>,
}

impl Holder {
    /// A table that holds no more than `limit_bytes`.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            bytes: 0,
            gangs: BTreeMap::new(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    /// Makes room for a state that is about to arrive. [`Holder::put`] or [`Holder::give_up`] follows.
    pub(crate) fn reserve(&mut self, tag: &HoldTag, bytes: u64) -> Result<(), HoldError> {
        if self.ended.contains(&tag.gang) {
            return Err(HoldError::Ended);
        }
        let gang = self.gangs.entry(tag.gang).or_default();
        if tag.epoch < gang.newest {
            return Err(HoldError::Stale);
        }
        gang.newest = tag.epoch;
        let is_new = std::mem::replace(&mut gang.begun, tag.epoch) < tag.epoch;
        gang.furthest = gang.furthest.max((tag.epoch, tag.step));
        if is_new {
            self.begin_at(tag.gang, tag.complete);
        }
        self.complete(tag.gang, tag.complete);
        let complete = self.gangs.get(&tag.gang).map_or(0, |gang| gang.complete);
        if tag.step < complete {
            return Err(HoldError::Old { complete });
        }
        if self.bytes.saturating_add(bytes) > self.limit_bytes {
            return Err(HoldError::Full { bytes, held: self.bytes, limit: self.limit_bytes });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// A state for which there is no use any more did not arrive.
    pub(crate) fn give_up(&mut self, bytes: u64) {
        self.bytes -= bytes.min(self.bytes);
    }

    /// Keeps a state for which room was made, unless it was overtaken meanwhile.
    pub(crate) fn put(&mut self, tag: &HoldTag, state: Held) -> Result<(), HoldError> {
        let bytes = state.manifest.bytes();
        let overtaken = match self.gangs.get(&tag.gang) {
            None => Some(HoldError::Ended),
            Some(gang) if tag.epoch < gang.newest => Some(HoldError::Stale),
            Some(gang) if tag.step < gang.complete => Some(HoldError::Old { complete: gang.complete }),
            Some(_) => None,
        };
        if let Some(error) = overtaken {
            self.give_up(bytes);
            return Err(error);
        }
        let key = (tag.step, state.manifest.id());
        let replaced = self.gangs.get_mut(&tag.gang).and_then(|gang| gang.states.insert(key, state));
        self.give_up(replaced.map_or(0, |replaced| replaced.manifest.bytes()));
        Ok(())
    }

    /// Drops what is older than a step that is complete.
    fn complete(&mut self, id: GangId, step: u64) {
        let Some(gang) = self.gangs.get_mut(&id).filter(|gang| gang.complete < step) else { return };
        gang.complete = step;
        let kept = gang.states.split_off(&first_of(step));
        let old = std::mem::replace(&mut gang.states, kept);
        self.give_up(bytes_of(&old));
    }

    /// A newer attempt went on from `step`. What older ones had beyond it was incomplete, or lost elsewhere, and is
    /// done again.
    fn begin_at(&mut self, id: GangId, step: u64) {
        let Some(gang) = self.gangs.get_mut(&id) else { return };
        gang.complete = gang.complete.min(step);
        let later = gang.states.split_off(&first_of(step.saturating_add(1)));
        self.give_up(bytes_of(&later));
    }

    /// A rank has done a step; kept to tell how much a fault makes the gang do again.
    pub(crate) fn reached(&mut self, id: GangId, epoch: Epoch, step: u64) {
        if self.ended.contains(&id) {
            return;
        }
        let gang = self.gangs.entry(id).or_default();
        gang.furthest = gang.furthest.max((epoch, step));
    }

    /// An attempt asks what is held: from now on nothing of an older one changes that.
    pub(crate) fn see(&mut self, id: GangId, epoch: Epoch) {
        if !self.ended.contains(&id) {
            let gang = self.gangs.entry(id).or_default();
            gang.newest = gang.newest.max(epoch);
        }
    }

    /// What is held of a gang, by step; and the newest attempt and step that were seen here.
    pub(crate) fn list(&self, id: GangId) -> (Vec<(u64, Manifest)>, (Epoch, u64)) {
        let Some(gang) = self.gangs.get(&id) else { return Default::default() };
        let states = gang.states.iter().map(|((step, _), state)| (*step, state.manifest.clone()));
        (states.collect(), gang.furthest)
    }

    /// A file of a held state.
    pub(crate) fn read(&self, id: GangId, state: ArtifactId, file: &str) -> Option<Bytes> {
        let states = &self.gangs.get(&id)?.states;
        let held = states.iter().find(|((_, held), _)| *held == state)?.1;
        let index = held.manifest.files.iter().position(|entry| entry.name == file)?;
        held.files.get(index).cloned()
    }

    /// The gangs that run, as the coordinator says; what is held of others that ran goes.
    pub(crate) fn set_running(&mut self, gangs: &[GangId]) {
        let running: BTreeSet<GangId> = gangs.iter().copied().collect();
        self.ended.retain(|id| !running.contains(id));
        let before = std::mem::replace(&mut self.running, running);
        for id in before.difference(&self.running).copied().collect::<Vec<_>>() {
            if let Some(gang) = self.gangs.remove(&id) {
                let bytes = bytes_of(&gang.states);
                tracing::info!(job = %id.job, phase = id.phase, bytes, "let go of the states of a gang that is done");
                self.give_up(bytes);
            }
            self.ended.insert(id);
        }
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    /// Bytes that are held or on their way.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests;
