//! Commands to nodes until they are answered. A command has a key: a newer one of the same key
//! replaces it, so that the outbox is bounded by what the nodes have to do. Commands are
//! idempotent, so one that was not answered is simply sent again.

use std::collections::BTreeMap;

use sixfold_cluster::protocol::{CommandReply, Fenced, NodeAddress, NodeCommand};
use sixfold_wire::id::{ArtifactId, Epoch, Fence, NodeName, TaskId};

use super::{Coordinator, Send};

/// Names a command that was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub u64);

/// A command is taken for lost if no answer to it came for so many waits between sends; whoever
/// sends says earlier than that that there was none.
const LOST_AFTER: u64 = 40;

/// Commands of one key replace each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Stop(TaskId),
    Start(TaskId),
    Formed(TaskId),
    Replicate(ArtifactId),
    Discard(ArtifactId),
    Probe(NodeName),
    View,
}

struct Pending {
    command: NodeCommand,
    sent: Option<SendId>,
    sent_ms: u64,
}

/// Commands that were not answered yet.
#[derive(Default)]
pub(super) struct Outbox {
    last: SendId,
    pending: BTreeMap<(NodeName, Key), Pending>,
    sent: BTreeMap<SendId, (NodeName, Key)>,
}

impl Outbox {
    /// Forgets what a node has to do.
    pub(super) fn clear(&mut self, node: &NodeName) {
        self.pending.retain(|(name, _), _| name != node);
        self.sent.retain(|_, (name, _)| name != node);
    }

    pub(super) fn remove(&mut self, node: &NodeName, key: Key) {
        let removed = self.pending.remove(&(node.clone(), key));
        if let Some(id) = removed.and_then(|pending| pending.sent) {
            self.sent.remove(&id);
        }
    }

    /// Whether the node has not acknowledged yet that it starts this attempt.
    pub(super) fn is_starting(&self, node: &NodeName, task: TaskId, attempt: Epoch) -> bool {
        let pending = self.pending.get(&(node.clone(), Key::Start(task)));
        pending.is_some_and(
            |pending| matches!(&pending.command, NodeCommand::Start { epoch, .. } if *epoch == attempt),
        )
    }

    fn put(&mut self, node: &NodeName, key: Key, command: NodeCommand) {
        self.remove(node, key.clone());
        self.pending.insert((node.clone(), key), Pending { command, sent: None, sent_ms: 0 });
    }

    fn due(&self, now_ms: u64, resend_ms: u64) -> Vec<(NodeName, Key)> {
        let is_due = |pending: &Pending| {
            let waits = if pending.sent.is_some() { LOST_AFTER } else { 1 };
            pending.sent_ms + resend_ms * waits <= now_ms
        };
        self.pending.iter().filter(|(_, pending)| is_due(pending)).map(|(at, _)| at.clone()).collect()
    }
}

impl Coordinator {
    /// Sends a command, and again until it is answered. A node without a lease is sent nothing: it
    /// is told everything when it says Hello.
    pub(super) fn send(&mut self, node: &NodeName, key: Key, command: NodeCommand) {
        if self.links.contains(node) {
            self.outbox.put(node, key.clone(), command);
            self.dispatch(node, &key);
        }
    }

    pub(super) fn resend(&mut self) {
        for (node, key) in self.outbox.due(self.now_ms, self.options.resend_ms) {
            self.dispatch(&node, &key);
        }
    }

    /// Sends at once whatever is pending for a node, under its new lease.
    pub(super) fn resend_to(&mut self, node: &NodeName) {
        let keys = self.outbox.pending.keys().filter(|(name, _)| name == node);
        let keys: Vec<Key> = keys.map(|(_, key)| key.clone()).collect();
        for key in keys {
            self.dispatch(node, &key);
        }
    }

    fn dispatch(&mut self, node: &NodeName, key: &Key) {
        let Some(link) = self.links.get_mut(node) else { return };
        let (lease, sequence) = (link.lease, link.next_command());
        let Some(address) = self.state.nodes.get(node).map(|record| record.address) else { return };
        let Some(pending) = self.outbox.pending.get_mut(&(node.clone(), key.clone())) else { return };
        self.outbox.last = SendId(self.outbox.last.0 + 1);
        let id = self.outbox.last;
        if let Some(older) = pending.sent.replace(id) {
            self.outbox.sent.remove(&older);
        }
        pending.sent_ms = self.now_ms;
        self.outbox.sent.insert(id, (node.clone(), key.clone()));
        let fence = Fence { cluster: self.cluster.clone(), epoch: self.state.epoch, lease, sequence };
        let body = pending.command.clone();
        let node = NodeAddress { node: node.clone(), address };
        self.effects.sends.push(Send { id, node, command: Fenced { fence, body } });
    }

    /// Takes a node's answer. One to a command that has been replaced or withdrawn is ignored.
    pub(super) fn take_answer(&mut self, id: SendId, reply: Option<CommandReply>) {
        let Some((node, key)) = self.outbox.sent.remove(&id) else { return };
        let at = (node, key);
        let Some(reply) = reply else { return self.note_silence(&at) };
        let Some(pending) = self.outbox.pending.remove(&at) else { return };
        let (node, key) = at;
        match reply {
            CommandReply::Stale => {
                let message = format!("node {node} obeys a coordinator newer than {}", self.state.epoch);
                self.effects.abdicate = Some(message);
            }
            CommandReply::Refused(reason) => {
                // Of the rest, what matters is asked for again: a probe of another node, a copy
                // when its time is up.
                if let NodeCommand::Start { spec, epoch } = &pending.command {
                    self.take_refused_start(&node, spec.id, *epoch, reason);
                }
            }
            CommandReply::Accepted => {
                if let NodeCommand::Start { spec, epoch } = &pending.command {
                    self.note_started(&node, spec.id, *epoch);
                }
            }
            CommandReply::Reachable(reachable) => {
                if let Key::Probe(suspect) = key {
                    self.take_probe(&suspect, reachable);
                }
            }
        }
    }

    fn note_silence(&mut self, at: &(NodeName, Key)) {
        if let Key::Probe(_) = at.1 {
            // Whoever does not answer is no witness; the next look at the nodes asks another.
            self.outbox.pending.remove(at);
        } else if let Some(pending) = self.outbox.pending.get_mut(at) {
            pending.sent = None;
            pending.sent_ms = self.now_ms;
        }
    }
}
