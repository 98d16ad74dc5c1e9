//! Which artefacts there are and which nodes have them.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_cluster::protocol::ArtifactSummary;
use sixfold_wire::id::{ArtifactId, NodeName};

/// Which artefacts there are and which nodes have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Catalogue {
    records: BTreeMap<ArtifactId, Record>,
    /// By how many of them an artefact is needed; only those that are.
    needed: BTreeMap<ArtifactId, usize>,
}

/// An artefact of the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) summary: ArtifactSummary,
    pub(crate) holders: BTreeSet<NodeName>,
}

impl Catalogue {
    pub(super) fn store(&mut self, summary: &ArtifactSummary, nodes: &[NodeName]) {
        let record = self.records.entry(summary.id).or_insert_with(|| {
            summary.needs.iter().for_each(|id| *self.needed.entry(*id).or_default() += 1);
            Record { summary: summary.clone(), holders: BTreeSet::new() }
        });
        record.holders.extend(nodes.iter().cloned());
    }

    pub(super) fn discard(&mut self, ids: &[ArtifactId]) {
        for id in ids {
            let needs = self.records.remove(id).map(|record| record.summary.needs);
            for needed in needs.into_iter().flatten() {
                if let Some(count) = self.needed.get_mut(&needed) {
                    *count -= 1;
                }
            }
        }
        self.needed.retain(|_, count| *count > 0);
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

    /// These artefacts and all that they need, each once; what is not in the catalogue needs nothing that is known.
    pub(crate) fn with_needs(&self, ids: &[ArtifactId]) -> Vec<ArtifactId> {
        let (mut all, mut at) = (Vec::new(), 0);
        let mut seen = BTreeSet::new();
        all.extend(ids.iter().copied().filter(|id| seen.insert(*id)));
        while let Some(&id) = all.get(at) {
            let needs = self.get(id).into_iter().flat_map(|record| &record.summary.needs);
            all.extend(needs.copied().filter(|id| seen.insert(*id)));
            at += 1;
        }
        all
    }

    /// Whether another artefact cannot be read without it.
    pub(crate) fn is_needed(&self, id: ArtifactId) -> bool {
        self.needed.contains_key(&id)
    }

    /// What of the catalogue a node has, in the order of the ids.
    pub(crate) fn held_by(&self, node: &NodeName) -> Vec<ArtifactId> {
        let held = self.records.iter().filter(|(_, record)| record.holders.contains(node));
        held.map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use sixfold_wire::id::{ContentHash, JobId, TaskId};

    use super::*;

    fn id(name: &str) -> ArtifactId {
        ArtifactId(ContentHash::of(name.as_bytes()))
    }

    fn store(catalogue: &mut Catalogue, name: &str, needs: &[&str]) {
        let summary = ArtifactSummary {
            id: id(name),
            kind: "model".into(),
            task: TaskId { job: JobId(1), phase: 0, index: 0 },
            stage: "train".into(),
            bytes: 1,
            parents: Vec::new(),
            needs: needs.iter().map(|name| id(name)).collect(),
        };
        catalogue.store(&summary, &["n1".into()]);
    }

    #[test]
    fn what_an_artefact_needs_is_found_to_the_end_and_kept_as_long_as_it_is() {
        let mut catalogue = Catalogue::default();
        store(&mut catalogue, "base", &[]);
        for (name, needs) in [("first", "base"), ("second", "base"), ("on second", "second")] {
            store(&mut catalogue, name, &[needs]);
            // A copy that arrived is no other artefact.
            store(&mut catalogue, name, &[needs]);
        }
        let all = ["on second", "first", "second", "base"].map(id);
        assert_eq!(catalogue.with_needs(&[id("on second"), id("first"), id("first")]), all);
        assert_eq!(catalogue.with_needs(&[id("unknown")]), [id("unknown")]);
        let needed =
            |catalogue: &Catalogue| ["base", "second", "first"].map(|one| catalogue.is_needed(id(one)));
        assert_eq!(needed(&catalogue), [true, true, false]);
        catalogue.discard(&[id("first"), id("on second")]);
        assert_eq!(needed(&catalogue), [true, false, false]);
        catalogue.discard(&[id("second"), id("second")]);
        assert_eq!(needed(&catalogue), [false, false, false]);
    }
}
