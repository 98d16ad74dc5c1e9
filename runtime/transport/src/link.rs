//! Tensor links: ordered, framed byte pipes between two ranks, used by blocking compute threads.
//!
//! A link is chosen by where its two ends are (same process, same host, other host); whoever uses
//! it sees only [`TensorLink`].

use std::time::Duration;

use bytes::Bytes;

/// Why a link failed. A failed link stays failed: the gang that it belongs to is placed anew.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is gone.
    #[error("the tensor link to {peer} closed: {reason}")]
    Closed {
        /// The other end.
        peer: String,
        /// What the transport said.
        reason: String,
    },
    /// The other end sent a message of another length: the two ranks disagree on the plan.
    #[error("{peer} sent {got} bytes where {expected} were expected")]
    Length {
        /// The other end.
        peer: String,
        /// Bytes that the receiver asked for.
        expected: usize,
        /// Bytes that arrived.
        got: u64,
    },
    /// Nothing arrived in time.
    #[error("nothing came from {peer} within {waited_ms} ms")]
    Timeout {
        /// The other end.
        peer: String,
        /// How long the receiver waited, in milliseconds.
        waited_ms: u64,
    },
}

/// One end of an ordered, framed, full-duplex pipe between two ranks.
///
/// Calls block and belong on a compute thread. `send` takes a whole message and does not wait for
/// the peer to call `recv` while less than the link's window is outstanding, so two ends may send
/// to each other and then receive.
pub trait TensorLink: Send {
    /// Sends one message.
    ///
    /// # Errors
    /// [`LinkError::Closed`] once the peer is gone.
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError>;

    /// Hands over one message, which leaves in its turn. Unlike [`send`](Self::send) it does not wait for the peer,
    /// whatever is outstanding: who posts bounds how much that is. A link that always has room may leave it to `send`.
    ///
    /// # Errors
    /// [`LinkError::Closed`] once the peer is gone.
    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        self.send(&message)
    }

    /// Receives one message of exactly `message.len()` bytes.
    ///
    /// # Errors
    /// [`LinkError`] if the peer is gone, silent for too long, or sent another length.
    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError>;

    /// Bytes of messages sent so far (payload, without framing).
    fn bytes_sent(&self) -> u64;

    /// How long the calls have waited so far for the peer: for something to arrive, or for room.
    fn waited(&self) -> Duration;

    /// `local`, `shared-memory` or `quic`.
    fn kind(&self) -> &'static str;
}
