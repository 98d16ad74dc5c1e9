//! Options of the HTTP gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A certificate for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsFiles {
    /// PEM file of the certificate, followed by those of its issuers.
    pub(crate) certificate: PathBuf,
    /// PEM file of its private key.
    pub(crate) key: PathBuf,
}

/// Options of the HTTP gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GatewayOptions {
    /// Address to listen on; without TLS it must be a loopback address.
    pub(crate) listen: SocketAddr,
    /// Certificate for HTTPS.
    pub(crate) tls: Option<TlsFiles>,
    /// Connections at a time; at the limit those that have asked for nothing make room.
    pub(crate) connections_max: usize,
    /// Requests that are answered at a time; more are told to try again.
    pub(crate) requests_max: usize,
    /// Of these, requests of one key.
    pub(crate) requests_per_key_max: usize,
    /// Largest body of a request, in bytes.
    pub(crate) body_bytes_max: usize,
    /// How long a client may take to send a request's head, and how long a connection may idle.
    pub(crate) header_deadline_ms: u64,
    /// How long a client may take to send a request's body.
    pub(crate) body_deadline_ms: u64,
    /// How long a client may leave an answer unread.
    pub(crate) write_deadline_ms: u64,
    /// How long a replica may be silent before another one is asked. One that computes gives a sign of
    /// life every two seconds, or with every layer of the model where a layer takes longer.
    pub(crate) event_deadline_ms: u64,
    /// How long a request waits for a replica to come back where none is left.
    pub(crate) replica_wait_ms: u64,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            connections_max: 4096,
            requests_max: 256,
            requests_per_key_max: 128,
            body_bytes_max: 4 << 20,
            header_deadline_ms: 5_000,
            body_deadline_ms: 30_000,
            write_deadline_ms: 60_000,
            event_deadline_ms: 30_000,
            replica_wait_ms: 20_000,
        }
    }
}

impl GatewayOptions {
    pub(super) fn header_deadline(&self) -> Duration {
        Duration::from_millis(self.header_deadline_ms)
    }

    pub(super) fn body_deadline(&self) -> Duration {
        Duration::from_millis(self.body_deadline_ms)
    }

    pub(super) fn write_deadline(&self) -> Duration {
        Duration::from_millis(self.write_deadline_ms)
    }

    pub(super) fn event_deadline(&self) -> Duration {
        Duration::from_millis(self.event_deadline_ms)
    }

    pub(super) fn replica_wait(&self) -> Duration {
        Duration::from_millis(self.replica_wait_ms)
    }
}
