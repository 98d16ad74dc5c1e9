//! A connection to a verified peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sixfold_wire::codec;
use sixfold_wire::message::Message;
use sixfold_wire::stream::{Refusal, StreamAnswer, StreamOpening};
use sixfold_wire::version::Version;
use tokio::runtime::Handle;

use crate::byte_stream::ByteStream;
use crate::channel::{ChannelOptions, RemoteRef};
use crate::framed::{self, FramedError};
use crate::handshake::Verified;
use crate::identity::{Clock, Peer};

/// Application close codes.
pub(crate) mod close_code {
    /// An orderly end.
    pub(crate) const ENDED: u32 = 0;
    /// The peer may not connect, or not like this.
    pub(crate) const REFUSED: u32 = 1;
    /// A certificate has ended.
    pub(crate) const EXPIRED: u32 = 2;
}

/// How long the other end may take to answer an opening.
pub(crate) const OPENING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// Nothing was heard for the idle timeout: the peer, its host or the way to it is gone.
    #[error("nothing was heard from it for too long")]
    Silent,
    /// A certificate has ended.
    #[error("the certificate has expired")]
    Expired,
    /// This end closed it.
    #[error("closed here")]
    Here,
    /// The peer closed it.
    #[error("closed by the peer: {0}")]
    ByPeer(String),
    /// Anything else, in QUIC's words.
    #[error("{0}")]
    Failed(String),
}

impl From<quinn::ConnectionError> for Disconnect {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError::{ApplicationClosed, LocallyClosed, TimedOut};
        match error {
            TimedOut => Self::Silent,
            LocallyClosed => Self::Here,
            ApplicationClosed(close) if close.error_code == close_code::EXPIRED.into() => Self::Expired,
            ApplicationClosed(close) => Self::ByPeer(String::from_utf8_lossy(&close.reason).into_owned()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection has ended.
    #[error("{peer}: {reason}")]
    Disconnected {
        /// The other end.
        peer: Peer,
        /// Why.
        reason: Disconnect,
    },
    /// The peer refused.
    #[error("{peer} refused: {refusal}")]
    Refused {
        /// The other end.
        peer: Peer,
        /// Its reason.
        refusal: Refusal,
    },
    /// The peer did not answer in time.
    #[error("{0} did not answer the opening of a stream")]
    Timeout(Peer),
    /// The peer, or this end's header, breaks the protocol.
    #[error("{peer}: {message}")]
    Protocol {
        /// The other end.
        peer: Peer,
        /// What is wrong.
        message: String,
    },
}

/// Counters from which a failure detector tells a live peer from a silent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Datagrams received so far; grows at least with each keep-alive.
    pub datagrams_received: u64,
    /// Packets that were lost so far.
    pub packets_lost: u64,
    /// Packets sent so far.
    pub packets_sent: u64,
    /// Smoothed round-trip time.
    pub round_trip: Duration,
}

/// A connection. Clones are the same connection; it lives until either end closes it.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    quinn: quinn::Connection,
    peer: Peer,
    version: Version,
    runtime: Handle,
}

impl Connection {
    /// Wraps an established connection and closes it when the peer's certificate ends.
    pub(crate) fn new(
        quinn: quinn::Connection,
        verified: Verified,
        version: Version,
        runtime: &Handle,
        clock: &Clock,
    ) -> Self {
        runtime.spawn(close_at_expiry(quinn.clone(), verified.expires, clock.clone()));
        Self { inner: Arc::new(Inner { quinn, peer: verified.peer, version, runtime: runtime.clone() }) }
    }

    /// Who is at the other end, as its certificate says.
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// The wire version that both ends speak.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// The peer's address.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.quinn.remote_address()
    }

    /// Whether both are the same connection.
    pub fn same(&self, other: &Self) -> bool {
        self.inner.quinn.stable_id() == other.inner.quinn.stable_id()
    }

    /// Opens a channel to the actor `name` of the peer.
    ///
    /// # Errors
    /// [`OpenError`] if there is no such actor, it speaks another protocol or the role may not use it.
    pub async fn actor<M: Message>(
        &self,
        name: &str,
        options: ChannelOptions,
    ) -> Result<RemoteRef<M>, OpenError> {
        let opening = StreamOpening::Actor { actor: name.to_owned(), protocol: M::PROTOCOL.to_owned() };
        let (send, recv, window) = self.open(&opening, options.priority).await?;
        if window == 0 {
            return Err(self.protocol("an actor channel without credits"));
        }
        Ok(RemoteRef::open(self, name, send, recv, window))
    }

    /// Opens a byte stream of a kind that the peer serves.
    ///
    /// # Errors
    /// [`OpenError`] if the peer refuses or the header is too long.
    pub async fn open_stream(
        &self,
        kind: &str,
        header: &(impl Serialize + Sync),
    ) -> Result<ByteStream, OpenError> {
        let header = codec::encode(header).map_err(|error| self.protocol(error))?;
        let opening = StreamOpening::Bytes { kind: kind.to_owned(), header };
        let (send, recv, _) = self.open(&opening, 0).await?;
        Ok(ByteStream::new(send, recv))
    }

    /// Tells the dialler whether its certificate was accepted: in TLS 1.3 only the server knows.
    pub(crate) async fn hello(&self) -> Result<(), OpenError> {
        self.open(&StreamOpening::Hello, i32::MAX).await.map(|_| ())
    }

    async fn open(
        &self,
        opening: &StreamOpening,
        priority: i32,
    ) -> Result<(quinn::SendStream, quinn::RecvStream, u32), OpenError> {
        let exchange = async {
            let (mut send, mut recv) = self.inner.quinn.open_bi().await.map_err(|error| self.lost(error))?;
            // A stream that was just opened takes a priority.
            let _ = send.set_priority(priority);
            framed::send(&mut send, opening).await.map_err(|error| self.broken(error))?;
            let answer = framed::receive(&mut recv).await.map_err(|error| self.broken(error))?;
            Ok((send, recv, answer))
        };
        let timeout = || OpenError::Timeout(self.peer().clone());
        let (send, recv, answer) =
            tokio::time::timeout(OPENING_TIMEOUT, exchange).await.map_err(|_| timeout())??;
        match answer {
            StreamAnswer::Accepted { window } => Ok((send, recv, window)),
            StreamAnswer::Refused(refusal) => Err(OpenError::Refused { peer: self.peer().clone(), refusal }),
        }
    }

    /// Counters for a failure detector.
    pub fn activity(&self) -> Activity {
        let stats = self.inner.quinn.stats();
        Activity {
            datagrams_received: stats.udp_rx.datagrams,
            packets_lost: stats.path.lost_packets,
            packets_sent: stats.path.sent_packets,
            round_trip: stats.path.rtt,
        }
    }

    /// Waits until the connection ends, and says why.
    pub async fn closed(&self) -> Disconnect {
        self.inner.quinn.closed().await.into()
    }

    /// Why the connection ended, if it has.
    pub fn close_reason(&self) -> Option<Disconnect> {
        self.inner.quinn.close_reason().map(Disconnect::from)
    }

    /// Closes the connection and all its streams; the peer is told `reason`.
    pub fn close(&self, reason: &str) {
        self.inner.quinn.close(close_code::ENDED.into(), sixfold_wire::channel::clipped(reason).as_bytes());
    }

    pub(crate) fn quinn(&self) -> &quinn::Connection {
        &self.inner.quinn
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    fn lost(&self, error: quinn::ConnectionError) -> OpenError {
        OpenError::Disconnected { peer: self.peer().clone(), reason: error.into() }
    }

    fn protocol(&self, message: impl ToString) -> OpenError {
        OpenError::Protocol { peer: self.peer().clone(), message: message.to_string() }
    }

    fn broken(&self, error: FramedError) -> OpenError {
        match self.inner.quinn.close_reason() {
            Some(reason) => self.lost(reason),
            None => self.protocol(error),
        }
    }
}

/// Closes `connection` when the peer's certificate ends.
pub(crate) async fn close_at_expiry(connection: quinn::Connection, expires: SystemTime, clock: Clock) {
    // Longer sleeps than a day are cut, so that a clock that was set is noticed.
    const DAY: Duration = Duration::from_hours(24);
    while let Ok(left) = expires.duration_since(clock.now()) {
        if left.is_zero() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(DAY)) => {}
            _ = connection.closed() => return,
        }
    }
    connection.close(close_code::EXPIRED.into(), b"the certificate has expired");
}
