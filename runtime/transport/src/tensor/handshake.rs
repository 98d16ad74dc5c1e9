//! What two ranks say to each other before they have a link.

use std::fs;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::shared_memory::Offer;
use super::{LinkKey, LinkPolicy};

/// From the rank that connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkHello {
    pub(super) key: LinkKey,
    pub(super) policy: LinkPolicy,
    /// The kernel's boot id: different means different hosts, without trying.
    pub(super) boot_id: String,
    /// Shared memory, made for this link. Opening it proves one host.
    pub(super) offer: Option<Offer>,
}

/// From the rank that accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LinkAnswer {
    SharedMemory,
    Quic,
    Refused(String),
}

/// What the acceptor makes of both ends' policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Only shared memory will do.
    SharedMemory,
    /// Shared memory if it works.
    Either,
    Quic,
    /// The two ends force different kinds.
    Conflict,
}

pub(super) fn choose(here: LinkPolicy, there: LinkPolicy) -> Choice {
    use LinkPolicy::{Auto, Quic, SharedMemory};
    match (here, there) {
        (Auto, Auto) => Choice::Either,
        (SharedMemory, Auto | SharedMemory) | (Auto, SharedMemory) => Choice::SharedMemory,
        (Quic, Auto | Quic) | (Auto, Quic) => Choice::Quic,
        (SharedMemory, Quic) | (Quic, SharedMemory) => Choice::Conflict,
    }
}

/// This host's boot id; empty where there is none, which no other host shares either.
pub(super) fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_kind_wins_over_auto_and_never_over_another_forced_kind() {
        use LinkPolicy::{Auto, Quic, SharedMemory};
        assert_eq!(choose(Auto, Auto), Choice::Either);
        assert_eq!(choose(Auto, Quic), Choice::Quic);
        assert_eq!(choose(SharedMemory, Auto), Choice::SharedMemory);
        assert_eq!(choose(Quic, SharedMemory), Choice::Conflict);
    }
}
