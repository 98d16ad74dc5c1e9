//! Keeps every artefact on as many nodes as the cluster wants copies.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_cluster::protocol::NodeCommand;
use sixfold_wire::id::{ArtifactId, NodeName};

use super::Coordinator;
use super::outbox::Key;
use crate::state::catalogue::Catalogue;
use crate::state::node::NodeStatus;

/// Artefacts that one node fetches at a time on the coordinator's behalf.
const COPIES_AT_ONCE: usize = 4;

/// Artefacts that may be short of copies, and copies on their way.
#[derive(Default)]
pub(super) struct Copying {
    doubtful: BTreeSet<ArtifactId>,
    on_their_way: BTreeMap<(ArtifactId, NodeName), u64>,
}

impl Copying {
    pub(super) fn doubt(&mut self, id: ArtifactId) {
        self.doubtful.insert(id);
    }

    pub(super) fn doubt_all(&mut self, catalogue: &Catalogue) {
        self.doubtful.extend(catalogue.iter().map(|(id, _)| id));
    }

    pub(super) fn arrived(&mut self, id: ArtifactId, node: &NodeName) {
        self.on_their_way.remove(&(id, node.clone()));
    }

    pub(super) fn forget(&mut self, node: &NodeName) {
        self.on_their_way.retain(|(_, name), _| name != node);
    }

    fn forget_late(&mut self, now_ms: u64, patience_ms: u64) {
        self.on_their_way.retain(|_, since_ms| *since_ms + patience_ms > now_ms);
    }

    fn coming(&self, id: ArtifactId) -> usize {
        self.on_their_way.keys().filter(|(other, _)| *other == id).count()
    }

    fn load(&self, node: &NodeName) -> usize {
        self.on_their_way.keys().filter(|(_, name)| name == node).count()
    }
}

impl Coordinator {
    /// Nodes that may hold copies for good.
    fn keepers(&self) -> Vec<&NodeName> {
        let members = self.state.nodes.iter().filter(|(_, node)| node.status == NodeStatus::Member);
        members.map(|(name, _)| name).filter(|name| self.links.contains(name)).collect()
    }

    /// Whether fewer nodes keep it than should, or could.
    pub(super) fn is_short_of_copies(&self, id: ArtifactId) -> bool {
        let keepers = self.keepers();
        let kept = self.state.catalogue.holders(id).filter(|name| keepers.contains(name)).count();
        kept < keepers.len().min(self.options.copies as usize)
    }

    /// Asks for the copies that are missing.
    pub(super) fn restore_copies(&mut self) {
        if self.copying.doubtful.is_empty() {
            return;
        }
        self.copying.forget_late(self.now_ms, self.options.replicate_ms);
        let doubtful: Vec<ArtifactId> = self.copying.doubtful.iter().copied().collect();
        for id in doubtful {
            let sources: Vec<NodeName> =
                self.state.catalogue.holders(id).filter(|name| self.links.contains(name)).cloned().collect();
            // Without a source there is nothing to do until a node comes, which raises all doubts again.
            if sources.is_empty() || !self.is_short_of_copies(id) {
                self.copying.doubtful.remove(&id);
            } else if !self.copy(id) {
                return;
            }
        }
    }

    /// Asks a node to fetch the artefact. Returns false when all nodes are busy fetching.
    fn copy(&mut self, id: ArtifactId) -> bool {
        let keepers = self.keepers();
        let wanted = keepers.len().min(self.options.copies as usize);
        let kept = self.state.catalogue.holders(id).filter(|name| keepers.contains(name)).count();
        let missing = wanted.saturating_sub(kept + self.copying.coming(id));
        let mut free: Vec<(usize, NodeName)> = keepers
            .into_iter()
            .map(|name| (self.copying.load(name), name.clone()))
            .filter(|(load, _)| *load < COPIES_AT_ONCE)
            .collect();
        if free.is_empty() {
            return false;
        }
        free.sort_unstable();
        let holders: BTreeSet<NodeName> = self.state.catalogue.holders(id).cloned().collect();
        let is_new = |name: &NodeName| {
            !holders.contains(name) && !self.copying.on_their_way.contains_key(&(id, name.clone()))
        };
        let targets: Vec<NodeName> =
            free.into_iter().map(|(_, name)| name).filter(is_new).take(missing).collect();
        for target in targets {
            self.copying.on_their_way.insert((id, target.clone()), self.now_ms);
            let from = self.locations(id, &target);
            self.send(&target, Key::Replicate(id), NodeCommand::Replicate { artifact: id, from });
        }
        true
    }
}
