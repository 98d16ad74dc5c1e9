//! A node as the log knows it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sixfold_cluster::protocol::Capabilities;
use sixfold_wire::id::TaskId;

use crate::event::NodeEvent;

/// Evictions that are remembered, to tell a flapping node from one that died once.
const EVICTIONS_KEPT: usize = 4;

/// Whether a node belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeStatus {
    /// It takes tasks.
    Member,
    /// It gives its tasks away and takes none.
    Draining,
    /// It left or was evicted.
    Gone,
}

/// A node as the log knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) capabilities: Capabilities,
    pub(crate) status: NodeStatus,
    pub(crate) evicted: bool,
    pub(crate) joined_ms: u64,
    /// When it was evicted, the last few times.
    pub(crate) evictions_ms: Vec<u64>,
    /// Tasks that gave up on it since the last success of any task there.
    pub(crate) strikes: BTreeSet<TaskId>,
    pub(crate) quarantined_until_ms: u64,
}

impl Node {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            http: None,
            capabilities: Capabilities::default(),
            status: NodeStatus::Member,
            evicted: false,
            joined_ms: 0,
            evictions_ms: Vec::new(),
            strikes: BTreeSet::new(),
            quarantined_until_ms: 0,
        }
    }

    pub(super) fn join(
        &mut self,
        at_ms: u64,
        address: SocketAddr,
        http: Option<SocketAddr>,
        capabilities: Capabilities,
    ) {
        self.address = address;
        self.http = http;
        self.capabilities = capabilities;
        self.status = NodeStatus::Member;
        self.joined_ms = at_ms;
    }

    pub(super) fn apply(&mut self, at_ms: u64, event: &NodeEvent) {
        match event {
            NodeEvent::Joined { .. } | NodeEvent::Holds(_) => {}
            NodeEvent::Draining => self.status = NodeStatus::Draining,
            NodeEvent::Left => {
                self.status = NodeStatus::Gone;
                self.evicted = false;
            }
            NodeEvent::Evicted { .. } => {
                self.status = NodeStatus::Gone;
                self.evicted = true;
                self.evictions_ms.push(at_ms);
                if self.evictions_ms.len() > EVICTIONS_KEPT {
                    self.evictions_ms.remove(0);
                }
            }
            NodeEvent::Struck { task, quarantined_until_ms } => {
                self.strikes.insert(*task);
                if let Some(until_ms) = quarantined_until_ms {
                    self.quarantined_until_ms = *until_ms;
                    self.strikes.clear();
                }
            }
        }
    }

    /// Whether it came and went more than once in the last minute: it is then given tasks only
    /// where no steadier node can take them.
    pub(crate) fn is_flapping(&self, now_ms: u64) -> bool {
        let recent = self.evictions_ms.iter().filter(|&&at| at + 60_000 > now_ms);
        recent.count() > 1
    }
}
