//! What each node has left.

use std::collections::BTreeSet;

use sixfold_topology::NodeResources;
use sixfold_wire::id::NodeName;

use super::super::Coordinator;
use crate::job::Resources;
use crate::state::node::{Node, NodeStatus};

/// What a node has left.
pub(crate) struct Offer {
    pub(crate) name: NodeName,
    pub(crate) cores: u32,
    /// Threads of tasks that have an end.
    pub(super) busy_threads: u32,
    /// Threads of services, which are idle most of the time.
    service_threads: u32,
    memory_bytes: u64,
    gpus: u32,
    pub(crate) host: String,
    failure_domain: String,
    /// All nodes of its failure domain.
    pub(super) domain_nodes: BTreeSet<NodeName>,
    pub(super) flapping: bool,
    doubtful: bool,
}

impl Offer {
    fn new(name: &NodeName, node: &Node, now_ms: u64) -> Self {
        let about = &node.capabilities;
        Self {
            name: name.clone(),
            cores: about.cores.max(1),
            busy_threads: 0,
            service_threads: 0,
            // A node that does not say how much it has is not held to it.
            memory_bytes: if about.memory_bytes == 0 { u64::MAX } else { about.memory_bytes },
            gpus: u32::try_from(about.gpus.len()).unwrap_or(u32::MAX),
            host: if about.host.is_empty() { name.0.clone() } else { about.host.clone() },
            failure_domain: domain_of(name, node),
            domain_nodes: BTreeSet::new(),
            flapping: node.is_flapping(now_ms),
            doubtful: node.quarantined_until_ms > now_ms,
        }
    }

    /// Whether its memory and GPUs suffice.
    pub(super) fn fits(&self, needs: Resources) -> bool {
        self.memory_bytes >= needs.memory_bytes && self.gpus >= needs.gpus
    }

    /// Whether it has idle cores. A node that does nothing else takes any one task.
    pub(super) fn has_room(&self, needs: Resources) -> bool {
        self.busy_threads == 0 || self.busy_threads.saturating_add(needs.threads) <= self.cores
    }

    /// Thousandths of its cores that would be busy.
    pub(super) fn load(&self, needs: Resources) -> u64 {
        let threads = u64::from(self.threads()) + u64::from(needs.threads);
        threads * 1000 / u64::from(self.cores)
    }

    fn threads(&self) -> u32 {
        self.busy_threads.saturating_add(self.service_threads)
    }

    pub(super) fn take(&mut self, needs: Resources, is_service: bool) {
        let threads = if is_service { &mut self.service_threads } else { &mut self.busy_threads };
        *threads = threads.saturating_add(needs.threads);
        self.memory_bytes = self.memory_bytes.saturating_sub(needs.memory_bytes);
        self.gpus = self.gpus.saturating_sub(needs.gpus);
    }

    pub(super) fn resources(&self) -> NodeResources {
        NodeResources {
            name: self.name.0.clone(),
            host: self.host.clone(),
            failure_domain: self.failure_domain.clone(),
            cores: self.cores,
            memory_bytes: self.memory_bytes,
            running: self.threads(),
        }
    }
}

/// The node's failure domain: its label, or its own name.
pub(crate) fn domain_of(name: &NodeName, node: &Node) -> String {
    let label = &node.capabilities.failure_domain;
    if label.is_empty() { name.0.clone() } else { label.clone() }
}

impl Coordinator {
    /// What the nodes have left. A silent or quarantined node offers nothing while another can.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let members = self.state.nodes.iter().filter(|(_, node)| node.status == NodeStatus::Member);
        let mut offers: Vec<Offer> = members
            .filter_map(|(name, node)| {
                let link = self.links.get(name)?;
                let mut offer = Offer::new(name, node, self.now_ms);
                offer.doubtful |= link.broken || link.silent_ms(self.now_ms) >= self.options.suspect_ms;
                Some(offer)
            })
            .collect();
        if offers.iter().any(|offer| !offer.doubtful) {
            offers.retain(|offer| !offer.doubtful);
        }
        self.fill_domains(&mut offers);
        for (_, phase, unit) in self.state.active_units() {
            for (member, record) in (0..).zip(&unit.members) {
                let Some(node) = unit.node_of(member).filter(|_| record.result.is_none()) else { continue };
                if let Some(offer) = offers.iter_mut().find(|offer| &offer.name == node) {
                    offer.take(phase.spec.resources, phase.is_service());
                }
            }
        }
        offers
    }

    fn fill_domains(&self, offers: &mut [Offer]) {
        for offer in offers {
            let same =
                self.state.nodes.iter().filter(|(name, node)| domain_of(name, node) == offer.failure_domain);
            offer.domain_nodes = same.map(|(name, _)| name.clone()).collect();
        }
    }
}

/// Why none of these nodes takes a task.
pub(super) fn explain_no_room(able: &[&Offer], needs: Resources) -> String {
    if able.is_empty() {
        return "no node is up that could take it".to_owned();
    }
    let about: Vec<String> = able
        .iter()
        .map(|offer| {
            if offer.gpus < needs.gpus {
                format!("{} has {} of {} GPU(s) free", offer.name, offer.gpus, needs.gpus)
            } else if offer.memory_bytes < needs.memory_bytes {
                format!("{} has {} of {} bytes free", offer.name, offer.memory_bytes, needs.memory_bytes)
            } else {
                format!("{} has {} of {} core(s) busy", offer.name, offer.busy_threads, offer.cores)
            }
        })
        .collect();
    format!("it needs {} thread(s): {}", needs.threads, about.join(", "))
}
