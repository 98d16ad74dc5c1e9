//! A QUIC endpoint: one socket, the connections over it, and what peers may use here.

mod accept;
mod registry;

use std::marker::PhantomData;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dashmap::DashMap;
use futures::future::BoxFuture;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use sixfold_wire::message::Message;
use sixfold_wire::version::{ALPN_JOIN, Version};
use tokio::sync::{Mutex, mpsc, watch};

use crate::byte_stream::IncomingStream;
use crate::channel::{ActorEntry, ActorGone, Delivery, WINDOW};
use crate::connection::{Connection, Disconnect, OPENING_TIMEOUT, OpenError, close_code};
use crate::handshake;
use crate::identity::tls::{self, Admission};
use crate::identity::{CertificateError, Clock, Expected, Identity, Issued, Peer, Roles};
use crate::join::JoinRequest;
use crate::quic_runtime::{OwnedRuntime, QuicRuntime};

pub use registry::Registration;
use registry::{Registry, StreamEntry};

/// Accepted connections that wait for [`Endpoint::accept`]; more are served all the same.
const ACCEPT_QUEUE: usize = 256;

/// How an endpoint behaves.
#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// A connection on which nothing arrives for so long has ended.
    pub idle_timeout: Duration,
    /// An idle connection sends something this often.
    pub keep_alive: Duration,
    /// Streams that a peer may have open at once: its actor channels and byte streams.
    pub streams_max: u32,
    /// The wall clock by which certificates are judged.
    pub clock: Clock,
}

impl EndpointOptions {
    /// Defaults: idle timeout 3 s, keep-alive 250 ms, 4096 streams, the system's clock.
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(250),
            streams_max: 4096,
            clock: Clock::system(),
        }
    }
}

/// The endpoint could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket or the threads could not be had.
    #[error("{address}: {source}")]
    Io {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The identity does not work for TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A duration is out of range.
    #[error("the idle timeout is out of range")]
    IdleTimeout,
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint or the address cannot connect.
    #[error("{address}: {message}")]
    Unable {
        /// Whom it should reach.
        address: SocketAddr,
        /// Why not.
        message: String,
    },
    /// Nobody answered, or TLS failed on either end: a certificate that is expired, of another
    /// cluster or not the one expected.
    #[error("{address}: {reason}")]
    Failed {
        /// Whom it should reach.
        address: SocketAddr,
        /// Why.
        reason: Disconnect,
    },
    /// The peer's certificate is not one of ours.
    #[error("{address}: {source}")]
    Certificate {
        /// Whom it should reach.
        address: SocketAddr,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The peer did not let this process in.
    #[error(transparent)]
    Hello(#[from] OpenError),
}

/// An endpoint. Clones are the same endpoint; it ends with the last clone or by
/// [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({:?})", self.identity())
    }
}

/// Decides about those who join.
type JoinHandler = Arc<dyn Fn(JoinRequest) -> BoxFuture<'static, Result<Issued, String>> + Send + Sync>;

struct Shared {
    quinn: quinn::Endpoint,
    runtime: OwnedRuntime,
    transport: Arc<TransportConfig>,
    clock: Clock,
    identity: RwLock<Arc<Identity>>,
    registry: Arc<Registry>,
    connections: Arc<DashMap<Peer, Connection>>,
    to_accept: Mutex<mpsc::Receiver<Connection>>,
    joins: RwLock<Option<JoinHandler>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.quinn.close(close_code::ENDED.into(), b"the endpoint has ended");
        self.runtime.end_after(self.quinn.clone());
    }
}

impl Endpoint {
    /// Listens, with QUIC on a thread of its own.
    ///
    /// # Errors
    /// [`BindError`] if the address is taken or the identity does not work.
    pub fn bind(identity: Identity, options: &EndpointOptions) -> Result<Self, BindError> {
        let io = |source| BindError::Io { address: options.bind, source };
        let runtime = OwnedRuntime::start("sixfold-control", 1).map_err(io)?;
        let transport = Arc::new(transport_config(options)?);
        let socket = UdpSocket::bind(options.bind).map_err(io)?;
        let on = QuicRuntime::on(runtime.handle());
        let quinn = quinn::Endpoint::new(EndpointConfig::default(), None, socket, on).map_err(io)?;
        let (accepted, to_accept) = mpsc::channel(ACCEPT_QUEUE);
        let shared = Arc::new(Shared {
            quinn,
            runtime,
            transport,
            clock: options.clock.clone(),
            identity: RwLock::new(Arc::new(identity)),
            registry: Arc::default(),
            connections: Arc::default(),
            to_accept: Mutex::new(to_accept),
            joins: RwLock::new(None),
        });
        shared.configure_server()?;
        let accepting = accept::run(shared.quinn.clone(), Arc::downgrade(&shared), accepted);
        shared.runtime.handle().spawn(accepting);
        Ok(Self { shared })
    }

    /// Where the endpoint listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.quinn.local_addr()
    }

    /// Who this process is.
    pub fn identity(&self) -> Arc<Identity> {
        self.shared.identity()
    }

    /// Takes a renewed identity: new connections use it, existing ones go on.
    ///
    /// # Errors
    /// [`BindError::Tls`] if it does not work; the old one then stays.
    pub fn set_identity(&self, identity: Identity) -> Result<(), BindError> {
        let old = std::mem::replace(&mut *write(&self.shared.identity), Arc::new(identity));
        self.shared.configure_server().inspect_err(|_| *write(&self.shared.identity) = old)
    }

    /// Connects to a peer. Returns once it has accepted this process's certificate.
    ///
    /// # Errors
    /// [`ConnectError`] if nobody answers, the peer is not whom `expected` says, or it refuses.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: impl Into<Expected>,
    ) -> Result<Connection, ConnectError> {
        let shared = &self.shared;
        let identity = self.identity();
        let unable = |message: String| ConnectError::Unable { address, message };
        let failed = |reason| ConnectError::Failed { address, reason };
        let tls = tls::client(&identity, &shared.clock, Version::offered(), expected.into())
            .map_err(|error| unable(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(shared.transport.clone());
        let connecting = shared
            .quinn
            .connect_with(config, address, tls::SERVER_NAME)
            .map_err(|error| unable(error.to_string()))?;
        let quinn = tokio::time::timeout(OPENING_TIMEOUT, connecting)
            .await
            .map_err(|_| failed(Disconnect::Silent))?
            .map_err(|error| failed(error.into()))?;
        let verified = handshake::verified(&quinn, identity.cluster())
            .and_then(|verified| verified.ok_or(CertificateError::Names))
            .map_err(|source| ConnectError::Certificate { address, source })?;
        let version = Version::from_alpn(&handshake::alpn(&quinn)).unwrap_or(Version::V1);
        let connection = Connection::new(quinn, verified, version, shared.runtime.handle(), &shared.clock);
        accept::serve(shared, &connection);
        match connection.hello().await {
            Ok(()) => Ok(connection),
            Err(error) => {
                connection.close("no answer to the hello");
                Err(error.into())
            }
        }
    }

    /// The next connection that a peer made, or `None` once the endpoint has ended. A connection is
    /// served whether or not anybody takes it from here.
    pub async fn accept(&self) -> Option<Connection> {
        self.shared.to_accept.lock().await.recv().await
    }

    /// The newest live connection to `peer`, whoever made it.
    pub fn connection_to(&self, peer: &Peer) -> Option<Connection> {
        let found = self.shared.connections.get(peer).map(|entry| entry.value().clone());
        found.filter(|connection| connection.close_reason().is_none())
    }

    /// The newest connection to each connected peer.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Lets peers of these roles open channels to `handler` under `name`, on every connection.
    /// The handler runs on the endpoint's thread: it must only put the message into a mailbox.
    /// A registration of the same name is replaced.
    pub fn register<M: Message>(
        &self,
        name: &str,
        roles: impl Into<Roles>,
        handler: impl Fn(Delivery<M>) -> Result<(), ActorGone> + Send + Sync + 'static,
    ) -> Registration {
        self.register_with_window(name, roles, WINDOW, handler)
    }

    /// As [`register`](Self::register), with another number of credits for each channel.
    pub fn register_with_window<M: Message>(
        &self,
        name: &str,
        roles: impl Into<Roles>,
        window: u32,
        handler: impl Fn(Delivery<M>) -> Result<(), ActorGone> + Send + Sync + 'static,
    ) -> Registration {
        let stopped = watch::Sender::new(None);
        let entry = ActorEntry::<M, _> {
            roles: roles.into(),
            window: window.max(1),
            stopped: stopped.clone(),
            handler,
            message: PhantomData,
        };
        Registry::add_actor(&self.shared.registry, name, Arc::new(entry), stopped)
    }

    /// Lets peers of these roles open byte streams of `kind`. The handler must hand the stream to
    /// a task and return.
    pub fn register_streams(
        &self,
        kind: &str,
        roles: impl Into<Roles>,
        handler: impl Fn(IncomingStream) + Send + Sync + 'static,
    ) -> Registration {
        let entry = StreamEntry { roles: roles.into(), handler: Box::new(handler) };
        Registry::add_streams(&self.shared.registry, kind, entry)
    }

    /// Lets processes without a certificate ask for one. `decide` checks the token's hash and
    /// signs, or says why not; it must use up the token before it signs.
    ///
    /// # Errors
    /// [`BindError::Tls`] if the identity is not a coordinator's or does not work.
    pub fn serve_joins<F>(&self, decide: F) -> Result<(), BindError>
    where
        F: Fn(JoinRequest) -> BoxFuture<'static, Result<Issued, String>> + Send + Sync + 'static,
    {
        *write(&self.shared.joins) = Some(Arc::new(decide));
        self.shared.configure_server()
    }

    /// Closes all connections, tells the peers `reason`, and waits (a second at most) until that
    /// has been sent.
    pub async fn shutdown(&self, reason: &str) {
        let reason = sixfold_wire::channel::clipped(reason);
        self.shared.quinn.close(close_code::ENDED.into(), reason.as_bytes());
        let _ = tokio::time::timeout(Duration::from_secs(1), self.shared.quinn.wait_idle()).await;
    }
}

impl Shared {
    fn identity(&self) -> Arc<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn join_handler(&self) -> Option<JoinHandler> {
        self.joins.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn configure_server(&self) -> Result<(), BindError> {
        let mut alpn = Version::offered();
        let admission = if self.join_handler().is_some() {
            alpn.push(ALPN_JOIN.to_vec());
            Admission::MembersAndJoiners
        } else {
            Admission::Members
        };
        let tls = tls::server(&self.identity(), &self.clock, alpn, admission)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(self.transport.clone());
        self.quinn.set_server_config(Some(config));
        Ok(())
    }
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn transport_config(options: &EndpointOptions) -> Result<TransportConfig, BindError> {
    let idle = IdleTimeout::try_from(options.idle_timeout).map_err(|_| BindError::IdleTimeout)?;
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.keep_alive))
        .max_concurrent_bidi_streams(VarInt::from_u32(options.streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    Ok(config)
}
