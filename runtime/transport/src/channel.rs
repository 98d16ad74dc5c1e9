//! Actor channels: one QUIC stream between a [`RemoteRef`] and an actor of another process.
//!
//! The opener sends messages, the acceptor replies and credits. A message takes credits with it
//! (one, and one more for each KiB) and they return when it has been handled, so neither end ever
//! holds more than a window, however slow the actor. Messages of one channel arrive in order;
//! calls are answered in any order.

mod delivery;
mod outbox;
mod remote_ref;
mod serve;

pub use delivery::{ActorGone, Delivery, ReplyTo};
pub use remote_ref::{CallError, CastError, RemoteRef, TryCastError};
pub(crate) use serve::{ActorEntry, AnyActor, serve};

use crate::connection::Disconnect;

/// Credits that an actor grants each channel unless it says otherwise: at most this many messages
/// and this many KiB.
pub(crate) const WINDOW: u32 = 1024;

/// How a channel is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Streams of higher priority send first on their connection; 0 by default.
    pub priority: i32,
}

impl ChannelOptions {
    /// For traffic that must not wait behind other traffic, such as leases.
    pub const URGENT: Self = Self { priority: 100 };
}

/// Why an actor of another process can no longer be reached over a channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// The actor has stopped; its process lives.
    #[error("the actor has stopped: {0}")]
    Stopped(String),
    /// The connection has ended.
    #[error("the connection has ended: {0}")]
    Disconnected(Disconnect),
    /// The other end broke the channel's protocol.
    #[error("the channel broke: {0}")]
    Protocol(String),
}
