//! Tensor links between ranks, and how they are established.
//!
//! A rank has one [`TensorEndpoint`]: a socket with threads of its own, apart from control, so that
//! tensors never hold heartbeats up. Of two ranks one [connects](TensorEndpoint::connect) and the
//! other [accepts](TensorEndpoint::accept); both name the link by its [`LinkKey`]. The handshake
//! goes over QUIC with mutual TLS always; then the link moves to shared memory where both ends
//! are on one host, which the acceptor proves by opening a file that the other has just made, and
//! stays on QUIC otherwise. [`local_pair`] links two ranks of one process.

mod endpoint;
mod handshake;
mod local;
mod meeting;
mod queue;
mod quic;
mod shared_memory;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sixfold_wire::id::{Epoch, JobId};

use crate::identity::{CertificateError, Clock, Peer};

pub use endpoint::TensorEndpoint;
pub use local::{LocalLink, local_pair};
pub use quic::QuicLink;
pub use shared_memory::SharedMemoryLink;

/// Which link two ranks are to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkKey {
    /// The job.
    pub job: JobId,
    /// The gang's epoch. A rank refuses links of older epochs than it has seen.
    pub epoch: Epoch,
    /// The rank that connects.
    pub from: u32,
    /// The rank that accepts.
    pub to: u32,
    /// What the link is for, where two ranks have several.
    pub purpose: String,
}

impl fmt::Display for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, epoch, from, to, purpose } = self;
        write!(f, "{purpose} link {from}-{to} of job {job}, {epoch}")
    }
}

/// What a link may run over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkPolicy {
    /// Shared memory on one host, QUIC between hosts.
    #[default]
    Auto,
    /// Shared memory, or no link at all.
    SharedMemory,
    /// QUIC, on one host too.
    Quic,
}

/// No such policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no link policy: use auto, shared-memory or quic")]
pub struct ParseLinkPolicyError(String);

impl FromStr for LinkPolicy {
    type Err = ParseLinkPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "shared-memory" => Ok(Self::SharedMemory),
            "quic" => Ok(Self::Quic),
            other => Err(ParseLinkPolicyError(other.chars().take(80).collect())),
        }
    }
}

/// How a tensor endpoint and its links behave.
#[derive(Clone, Debug)]
pub struct TensorOptions {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What links may run over.
    pub policy: LinkPolicy,
    /// Threads for QUIC links.
    pub threads: usize,
    /// Size of a shared-memory ring, one for each direction of a link.
    pub ring_bytes: usize,
    /// What a link takes in before `send` waits for the peer to receive.
    pub window_bytes: usize,
    /// How long two ranks may take to meet.
    pub setup_timeout: Duration,
    /// How long `recv` waits for a live peer.
    pub silence: Duration,
    /// A QUIC link on which nothing arrives for so long has ended.
    pub idle_timeout: Duration,
    /// The wall clock by which certificates are judged.
    pub clock: Clock,
}

impl TensorOptions {
    /// Defaults: automatic choice, 2 threads, rings of 4 MiB, a window of 256 MiB, 10 s to meet,
    /// 10 minutes of patience with a live peer, 2 s idle timeout, the system's clock.
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            policy: LinkPolicy::Auto,
            threads: 2,
            ring_bytes: 4 << 20,
            window_bytes: 256 << 20,
            setup_timeout: Duration::from_secs(10),
            silence: Duration::from_mins(10),
            idle_timeout: Duration::from_secs(2),
            clock: Clock::system(),
        }
    }
}

/// Two ranks did not get their link.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The other rank did not come in time.
    #[error("{key}: the other rank did not come within {waited:?}")]
    Timeout {
        /// The link.
        key: LinkKey,
        /// How long this rank waited.
        waited: Duration,
    },
    /// The other rank said no.
    #[error("{key}: {peer} refused: {reason}")]
    Refused {
        /// The link.
        key: LinkKey,
        /// The other end.
        peer: Peer,
        /// Its reason.
        reason: String,
    },
    /// The epoch is older than one that this rank has seen.
    #[error("{0}: a newer epoch has begun")]
    Stale(LinkKey),
    /// The other end's certificate is not one of ours.
    #[error("{key}: {source}")]
    Certificate {
        /// The link.
        key: LinkKey,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The connection failed or the other end broke the protocol.
    #[error("{key}: {reason}")]
    Failed {
        /// The link.
        key: LinkKey,
        /// What went wrong.
        reason: String,
    },
}
