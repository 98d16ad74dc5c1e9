//! States in memory: on this node, and on one of another failure domain.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest};
use sixfold_wire::id::{ArtifactId, NodeName};
use tokio::task::JoinSet;

use super::DaemonHost;
use crate::holder::{Held, HoldError, HoldTag};
use crate::protocol::{ClusterView, NodeAddress};
use crate::states::Listing;
use crate::task::{Commit, HeldState, HeldStates, HostError};

/// How long a node may take to say what it holds: one that has died may still be among the others.
const LIST_DEADLINE: Duration = Duration::from_secs(1);
/// How long moving a state may take, and how much longer for each MiB of it.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);
const MOVE_DEADLINE_A_MIB: Duration = Duration::from_secs(1);

impl From<HoldError> for HostError {
    fn from(error: HoldError) -> Self {
        match error {
            HoldError::Stale | HoldError::Ended => Self::Superseded,
            HoldError::Old { .. } | HoldError::Full { .. } => Self::NotHeld(format!("this node: {error}")),
        }
    }
}

impl DaemonHost {
    fn tag(&self, step: u64, complete: u64) -> HoldTag {
        HoldTag { gang: self.task.into(), epoch: self.epoch, step, complete }
    }

    /// Makes room for a state of this task on this node; what does not follow must be given up.
    pub(crate) fn reserve(&self, step: u64, complete: u64, bytes: u64) -> Result<(), HostError> {
        Ok(self.shared.holder.lock().reserve(&self.tag(step, complete), bytes)?)
    }

    /// Gives room back that was made for a state.
    pub(crate) fn give_up(&self, bytes: u64) {
        self.shared.holder.lock().give_up(bytes);
    }

    pub(super) async fn hold(&self, commit: Commit) -> Result<(), HostError> {
        self.reserve(commit.step, commit.complete, commit.manifest.bytes())?;
        self.hold_reserved(commit).await
    }

    /// Holds a state for which room was made here, and has another failure domain hold it too.
    pub(crate) async fn hold_reserved(&self, commit: Commit) -> Result<(), HostError> {
        let tag = self.tag(commit.step, commit.complete);
        let held = Held::from(commit);
        self.shared.holder.lock().put(&tag, held.clone())?;
        let others = other_domains(&self.shared.reports.view().borrow(), &self.shared.node);
        let mut last = None;
        for other in others {
            let pushing = self.shared.neighbours.hold(&other, &tag, &held.manifest, &held.files);
            let Some(error) = within(move_deadline(held.manifest.bytes()), pushing).await.err() else {
                return Ok(());
            };
            tracing::warn!(node = %other.node, %error, "cannot have a state held there");
            last = Some(format!("{}: {error}", other.node));
        }
        last.map_or(Ok(()), |last| {
            Err(HostError::NotHeld(format!("no other failure domain takes it; {last}")))
        })
    }

    /// What this node and all others hold of this task's gang.
    pub(super) async fn list_held(&self) -> HeldStates {
        let (gang, epoch) = (self.task.into(), self.epoch);
        let view = self.shared.reports.view().borrow().clone();
        let mut listings = vec![(self.shared.node.clone(), self.shared.holder.list(gang, epoch))];
        let mut asking = JoinSet::new();
        for other in view.nodes.into_iter().filter(|other| other.node != self.shared.node) {
            let shared = std::sync::Arc::clone(&self.shared);
            asking.spawn(async move {
                let listed = within(LIST_DEADLINE, shared.neighbours.list_held(&other, gang, epoch)).await;
                (other.node, listed)
            });
        }
        while let Some(Ok((node, listed))) = asking.join_next().await {
            match listed {
                Ok(listing) => listings.push((node, listing)),
                Err(error) => tracing::debug!(%node, %error, "does not say which states it holds"),
            }
        }
        merge(listings)
    }

    /// A file of a held state.
    pub(super) async fn read(&self, state: &HeldState, file: &FileEntry) -> Result<Bytes, HostError> {
        let (gang, id) = (self.task.into(), state.manifest.id());
        if let Some(content) = self.shared.holder.lock().read(gang, id, &file.name) {
            return Ok(content);
        }
        let nodes = self.shared.reports.view().borrow().nodes.clone();
        let mut last = "nobody has it any more".to_owned();
        for node in nodes.iter().filter(|node| state.nodes.contains(&node.node)) {
            let reading = self.shared.neighbours.read_held(node, (gang, self.epoch), id, file);
            match within(move_deadline(file.bytes), reading).await {
                Ok(content) => return Ok(content),
                Err(error) => last = format!("{}: {error}", node.node),
            }
        }
        Err(HostError::NotHeld(format!("{} of a held state: {last}", file.name)))
    }
}

fn move_deadline(bytes: u64) -> Duration {
    MOVE_DEADLINE + MOVE_DEADLINE_A_MIB * u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

async fn within<T, E: std::fmt::Display>(
    deadline: Duration,
    what: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, what).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {deadline:?}")),
    }
}

/// The nodes that do not fail together with `here`, beginning behind it in the list, so that the states
/// of a gang are spread over the cluster.
fn other_domains(view: &ClusterView, here: &NodeName) -> Vec<NodeAddress> {
    let domain = |index: usize| view.domains.get(index).filter(|domain| !domain.is_empty());
    let own = view.nodes.iter().position(|node| node.node == *here);
    let together = |index: usize| {
        Some(index) == own || own.is_some_and(|own| domain(own).is_some() && domain(own) == domain(index))
    };
    let count = view.nodes.len();
    let behind = (0..count).map(|place| (own.map_or(0, |own| own + 1) + place) % count);
    behind.filter(|index| !together(*index)).filter_map(|index| view.nodes.get(index).cloned()).collect()
}

/// One list of what several nodes hold.
fn merge(listings: Vec<(NodeName, Listing)>) -> HeldStates {
    let mut states: BTreeMap<(u64, ArtifactId), (Manifest, Vec<NodeName>)> = BTreeMap::new();
    let mut furthest = Default::default();
    for (node, listing) in listings {
        furthest = listing.furthest.max(furthest);
        for (step, manifest) in listing.states {
            let entry = states.entry((step, manifest.id())).or_insert_with(|| (manifest, Vec::new()));
            entry.1.push(node.clone());
        }
    }
    let state = |((step, _), (manifest, nodes)): (_, (Manifest, _))| HeldState { step, manifest, nodes };
    HeldStates { states: states.into_iter().map(state).collect(), furthest: furthest.1 }
}
