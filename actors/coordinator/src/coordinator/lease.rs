//! Leases: which node may speak, when it last did, and which of its messages were seen.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_wire::id::{LeaseId, NodeName, Sequence};

/// How far back a late message may be told from a repeated one.
const WINDOW_BITS: u64 = u128::BITS as u64;

/// The lease of each node that has one.
#[derive(Default)]
pub(super) struct Links {
    granted: LeaseId,
    links: BTreeMap<NodeName, Link>,
}

/// A node with a lease.
pub(super) struct Link {
    pub(super) lease: LeaseId,
    pub(super) last_sign_ms: u64,
    /// Its connection broke and it has said nothing since.
    pub(super) broken: bool,
    pub(super) probe: Probe,
    /// Nodes that were asked to probe it and said nothing.
    pub(super) asked: BTreeSet<NodeName>,
    window: Window,
    commands: Sequence,
}

/// What another node found out about a suspected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    NotAsked,
    Asked { at_ms: u64 },
    Reachable,
    Unreachable,
}

impl Links {
    /// A new lease for a node; an older one ends.
    pub(super) fn grant(&mut self, node: &NodeName, now_ms: u64) -> LeaseId {
        self.granted = self.granted.next();
        let link = Link {
            lease: self.granted,
            last_sign_ms: now_ms,
            broken: false,
            probe: Probe::NotAsked,
            asked: BTreeSet::new(),
            window: Window::default(),
            commands: Sequence(0),
        };
        self.links.insert(node.clone(), link);
        self.granted
    }

    pub(super) fn revoke(&mut self, node: &NodeName) {
        self.links.remove(node);
    }

    pub(super) fn get(&self, node: &NodeName) -> Option<&Link> {
        self.links.get(node)
    }

    pub(super) fn get_mut(&mut self, node: &NodeName) -> Option<&mut Link> {
        self.links.get_mut(node)
    }

    pub(super) fn contains(&self, node: &NodeName) -> bool {
        self.links.contains_key(node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeName, &Link)> {
        self.links.iter()
    }

    pub(super) fn suspect(&mut self, node: &NodeName) {
        if let Some(link) = self.links.get_mut(node) {
            link.broken = true;
        }
    }

    /// Forgives silence that the coordinator itself caused by not running.
    pub(super) fn forgive(&mut self, pause_ms: u64) {
        self.links.values_mut().for_each(|link| link.last_sign_ms += pause_ms);
    }
}

impl Link {
    /// Takes the number of a message that came in.
    pub(super) fn observe(&mut self, sequence: Sequence) -> Seen {
        self.window.observe(sequence.0)
    }

    /// A sign of life.
    pub(super) fn touch(&mut self, now_ms: u64) {
        self.last_sign_ms = self.last_sign_ms.max(now_ms);
        self.broken = false;
        self.probe = Probe::NotAsked;
        self.asked.clear();
    }

    pub(super) fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.last_sign_ms)
    }

    pub(super) fn next_command(&mut self) -> Sequence {
        self.commands = self.commands.next();
        self.commands
    }
}

/// Whether a message of a lease came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    Repeated,
    /// So late that it cannot be told.
    TooOld,
}

/// A sliding window over the numbers of a lease's messages, as in RFC 4303, section 3.4.3: messages
/// may overtake each other, but each counts once.
#[derive(Default)]
struct Window {
    newest: Option<u64>,
    /// Bit `n` is set if `newest - n` was seen.
    seen: u128,
}

impl Window {
    fn observe(&mut self, number: u64) -> Seen {
        let Some(newest) = self.newest else {
            (self.newest, self.seen) = (Some(number), 1);
            return Seen::New;
        };
        if number > newest {
            let ahead = number - newest;
            self.seen = if ahead < WINDOW_BITS { self.seen << ahead } else { 0 };
            self.seen |= 1;
            self.newest = Some(number);
            return Seen::New;
        }
        let behind = newest - number;
        if behind >= WINDOW_BITS {
            return Seen::TooOld;
        }
        let bit = 1_u128 << behind;
        if self.seen & bit != 0 {
            return Seen::Repeated;
        }
        self.seen |= bit;
        Seen::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_counts_once_in_any_order() {
        let mut window = Window::default();
        for number in [5, 3, 9, 4, 200] {
            assert_eq!(window.observe(number), Seen::New, "{number}");
            assert_eq!(window.observe(number), Seen::Repeated, "{number}");
        }
        assert_eq!(window.observe(150), Seen::New);
        assert_eq!(window.observe(9), Seen::TooOld);
        assert_eq!(window.observe(u64::MAX), Seen::New);
        assert_eq!(window.observe(200), Seen::TooOld);
    }

    #[test]
    fn a_new_lease_replaces_the_old_one() {
        let mut links = Links::default();
        let node = NodeName::from("n1");
        let first = links.grant(&node, 0);
        let second = links.grant(&node, 1);
        assert!(second > first);
        assert_eq!(links.get(&node).map(|link| link.lease), Some(second));
    }
}
