//! Which artefacts there are and which nodes have them.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_cluster::protocol::ArtifactSummary;
use sixfold_wire::id::{ArtifactId, NodeName};

/// Which artefacts there are and which nodes have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Catalogue {
    records: BTreeMap<ArtifactId, Record>,
}

/// An artefact of the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) summary: ArtifactSummary,
    pub(crate) holders: BTreeSet<NodeName>,
}

impl Catalogue {
    pub(super) fn store(&mut self, summary: &ArtifactSummary, nodes: &[NodeName]) {
        let record = self
            .records
            .entry(summary.id)
            .or_insert_with(|| Record { summary: summary.clone(), holders: BTreeSet::new() });
        record.holders.extend(nodes.iter().cloned());
    }

    pub(super) fn discard(&mut self, ids: &[ArtifactId]) {
        for id in ids {
            self.records.remove(id);
        }
    }

    pub(super) fn set_holdings(&mut self, node: &NodeName, artifacts: &[ArtifactId]) {
        for record in self.records.values_mut() {
            record.holders.remove(node);
        }
        for id in artifacts {
            if let Some(record) = self.records.get_mut(id) {
                record.holders.insert(node.clone());
            }
        }
    }

    pub(crate) fn get(&self, id: ArtifactId) -> Option<&Record> {
        self.records.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Nodes that have the artefact.
    pub(crate) fn holders(&self, id: ArtifactId) -> impl Iterator<Item = &NodeName> {
        self.records.get(&id).into_iter().flat_map(|record| &record.holders)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ArtifactId, &Record)> {
        self.records.iter().map(|(id, record)| (*id, record))
    }

    /// Artefacts after `after`, in the order of their ids.
    pub(crate) fn after(&self, after: Option<ArtifactId>) -> impl Iterator<Item = &Record> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, Excluded);
        self.records.range((start, Unbounded)).map(|(_, record)| record)
    }

    /// What of the catalogue a node has, in the order of the ids.
    pub(crate) fn held_by(&self, node: &NodeName) -> Vec<ArtifactId> {
        let held = self.records.iter().filter(|(_, record)| record.holders.contains(node));
        held.map(|(id, _)| *id).collect()
    }
}
