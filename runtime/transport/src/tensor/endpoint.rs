//! The endpoint of a rank's tensor links.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use quinn::udp::{UdpSockRef, UdpSocketState};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use sixfold_wire::id::{Epoch, JobId};
use sixfold_wire::version::ALPN_TENSOR;
use tokio::runtime::Handle;

use super::handshake::{Choice, LinkAnswer, LinkHello, boot_id, choose};
use super::meeting::{Meeting, TurnedAway};
use super::quic::QuicLink;
use super::shared_memory::{self, Made};
use super::{LinkKey, LinkPolicy, SetupError, TensorOptions};
use crate::connection::{Disconnect, OPENING_TIMEOUT, close_code};
use crate::endpoint::BindError;
use crate::framed::{self, FramedError};
use crate::handshake::{self, Verified};
use crate::identity::tls::{self, Admission};
use crate::identity::{CertificateError, Expected, Identity, Role, Roles};
use crate::link::TensorLink;
use crate::quic_runtime::{OwnedRuntime, QuicRuntime};

/// Largest UDP payload that path probing tries. Ten of them fit one segmentation-offload send
/// (65,507 bytes); 8952 does not and falls back to 1200.
const UDP_PAYLOAD_MAX: u16 = 6500;

/// Socket buffers to ask for, and the most that a link's flow control lets be under way: then
/// nothing is lost on a host's own path.
const BUFFER_BYTES: usize = 4 << 20;

/// Who may link to a rank.
const RANKS: [Role; 2] = [Role::Node, Role::Worker];

/// Listens for and makes tensor links. Clones are the same endpoint.
#[derive(Clone, Debug)]
pub struct TensorEndpoint {
    plane: Arc<Plane>,
}

/// What the endpoint and its links share: the socket and its threads.
pub(super) struct Plane {
    quinn: quinn::Endpoint,
    runtime: OwnedRuntime,
    transport: Arc<TransportConfig>,
    identity: Arc<Identity>,
    options: TensorOptions,
    meeting: Meeting<Visitor>,
}

/// A rank that wants a link and waits for the answer.
#[derive(Debug)]
struct Visitor {
    verified: Verified,
    hello: LinkHello,
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tensor links of {}", self.identity.peer())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.quinn.close(close_code::ENDED.into(), b"the rank has ended");
        self.runtime.end_after(self.quinn.clone());
    }
}

impl Plane {
    pub(super) fn options(&self) -> &TensorOptions {
        &self.options
    }

    pub(super) fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }
}

impl TensorEndpoint {
    /// Listens, on threads of its own.
    ///
    /// # Errors
    /// [`BindError`] if the address is taken or the identity does not work.
    pub fn bind(identity: Arc<Identity>, options: TensorOptions) -> Result<Self, BindError> {
        let io = |source| BindError::Io { address: options.bind, source };
        let runtime = OwnedRuntime::start("sixfold-tensor", options.threads).map_err(io)?;
        let socket = UdpSocket::bind(options.bind).map_err(io)?;
        let window_bytes = grow_buffers(&socket).map_err(io)?;
        let transport = Arc::new(transport_config(&options, window_bytes)?);
        let tls = tls::server(&identity, &options.clock, vec![ALPN_TENSOR.to_vec()], Admission::Members)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(transport.clone());
        let mut config = EndpointConfig::default();
        // Cannot fail: the value is above QUIC's minimum of 1200.
        let _ = config.max_udp_payload_size(UDP_PAYLOAD_MAX);
        let on = QuicRuntime::on(runtime.handle());
        let quinn = quinn::Endpoint::new(config, Some(server), socket, on).map_err(io)?;
        let meeting = Meeting::default();
        let plane = Arc::new(Plane { quinn, runtime, transport, identity, options, meeting });
        plane.runtime().spawn(receive_visitors(plane.quinn.clone(), Arc::downgrade(&plane)));
        Ok(Self { plane })
    }

    /// Where the endpoint listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.plane.quinn.local_addr()
    }

    /// Refuses links of older epochs of the job from now on. [`accept`](Self::accept) does it too.
    pub fn begin_epoch(&self, job: JobId, epoch: Epoch) {
        self.plane.meeting.begin(job, epoch);
    }

    /// Makes the link `key` to the rank at `address`. It waits until that rank accepts.
    ///
    /// # Errors
    /// [`SetupError`] if the rank does not come, is not whom `expected` says, or refuses.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: impl Into<Expected>,
        key: LinkKey,
    ) -> Result<Box<dyn TensorLink>, SetupError> {
        let waited = self.plane.options.setup_timeout;
        let connecting = connect(&self.plane, address, expected.into(), &key);
        tokio::time::timeout(waited, connecting).await.unwrap_or(Err(SetupError::Timeout { key, waited }))
    }

    /// Takes the link `key` from a rank that connects. It waits until that rank comes.
    ///
    /// # Errors
    /// [`SetupError`] if nobody whom `expected` admits comes, or the link cannot be made.
    pub async fn accept(
        &self,
        expected: impl Into<Expected>,
        key: LinkKey,
    ) -> Result<Box<dyn TensorLink>, SetupError> {
        let waited = self.plane.options.setup_timeout;
        let accepting = accept(&self.plane, expected.into(), &key);
        tokio::time::timeout(waited, accepting).await.unwrap_or(Err(SetupError::Timeout { key, waited }))
    }
}

/// Enlarges the socket's buffers and returns what flow control may let be under way.
fn grow_buffers(socket: &UdpSocket) -> std::io::Result<u32> {
    let state = UdpSocketState::new(UdpSockRef::from(socket))?;
    state.set_send_buffer_size(UdpSockRef::from(socket), BUFFER_BYTES)?;
    state.set_recv_buffer_size(UdpSockRef::from(socket), BUFFER_BYTES)?;
    // The system caps it, and reports twice what it grants.
    let granted_bytes = state.recv_buffer_size(UdpSockRef::from(socket))? / 2;
    let window_bytes = granted_bytes.clamp(256 << 10, BUFFER_BYTES);
    Ok(u32::try_from(window_bytes).unwrap_or(u32::MAX))
}

fn transport_config(options: &TensorOptions, window_bytes: u32) -> Result<TransportConfig, BindError> {
    let idle = IdleTimeout::try_from(options.idle_timeout).map_err(|_| BindError::IdleTimeout)?;
    let mut probing = MtuDiscoveryConfig::default();
    probing.upper_bound(UDP_PAYLOAD_MAX);
    let window = VarInt::from_u32(window_bytes);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.idle_timeout / 8))
        .mtu_discovery_config(Some(probing))
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(u64::from(window_bytes))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    Ok(config)
}

async fn connect(
    plane: &Arc<Plane>,
    address: SocketAddr,
    expected: Expected,
    key: &LinkKey,
) -> Result<Box<dyn TensorLink>, SetupError> {
    let failed = |reason: String| SetupError::Failed { key: key.clone(), reason };
    let made = make_offer(plane).map_err(failed)?;
    let (connection, verified) = dial(plane, address, expected, key).await?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
    let hello = LinkHello {
        key: key.clone(),
        policy: plane.options.policy,
        boot_id: boot_id().to_owned(),
        offer: made.as_ref().map(Made::offer),
    };
    // The close of the connection says more than the error of its stream.
    let broken = |error: FramedError| match connection.close_reason() {
        Some(reason) => failed(Disconnect::from(reason).to_string()),
        None => failed(error.to_string()),
    };
    framed::send(&mut send, &hello).await.map_err(broken)?;
    let answer = framed::receive(&mut recv).await.map_err(broken)?;
    if answer != LinkAnswer::Quic {
        connection.close(close_code::ENDED.into(), b"");
    }
    match (answer, made) {
        (LinkAnswer::Quic, _) => Ok(Box::new(QuicLink::new(plane, &verified, connection, send, recv))),
        (LinkAnswer::SharedMemory, Some(made)) => {
            Ok(Box::new(made.into_link(&verified.peer, &plane.options)))
        }
        (LinkAnswer::SharedMemory, None) => Err(failed("shared memory was not offered".to_owned())),
        (LinkAnswer::Refused(reason), _) => {
            Err(SetupError::Refused { key: key.clone(), peer: verified.peer, reason })
        }
    }
}

/// Shared memory to offer; none if this host has none to give and the policy can do without.
fn make_offer(plane: &Plane) -> Result<Option<Made>, String> {
    match (plane.options.policy, || shared_memory::make(plane.options.ring_bytes)) {
        (LinkPolicy::Quic, _) => Ok(None),
        (LinkPolicy::Auto, make) => {
            Ok(make().inspect_err(|error| tracing::warn!(%error, "no shared memory")).ok())
        }
        (LinkPolicy::SharedMemory, make) => {
            make().map(Some).map_err(|error| format!("shared memory: {error}"))
        }
    }
}

async fn dial(
    plane: &Plane,
    address: SocketAddr,
    expected: Expected,
    key: &LinkKey,
) -> Result<(quinn::Connection, Verified), SetupError> {
    let failed = |reason: String| SetupError::Failed { key: key.clone(), reason };
    let alpn = vec![ALPN_TENSOR.to_vec()];
    let tls = tls::client(&plane.identity, &plane.options.clock, alpn, expected);
    let mut config = quinn::ClientConfig::new(Arc::new(tls.map_err(|error| failed(error.to_string()))?));
    config.transport_config(plane.transport.clone());
    let connecting = plane.quinn.connect_with(config, address, tls::SERVER_NAME);
    let connecting = connecting.map_err(|error| failed(error.to_string()))?;
    let connection = connecting.await.map_err(|error| failed(error.to_string()))?;
    let verified = handshake::verified(&connection, plane.identity.cluster())
        .and_then(|verified| verified.ok_or(CertificateError::Names))
        .map_err(|source| SetupError::Certificate { key: key.clone(), source })?;
    Ok((connection, verified))
}

async fn receive_visitors(quinn: quinn::Endpoint, plane: Weak<Plane>) {
    while let Some(incoming) = quinn.accept().await {
        let Some(strong) = plane.upgrade() else { return };
        let from = incoming.remote_address();
        let greeting = greet(incoming, plane.clone());
        strong.runtime().spawn(async move {
            let greeted = tokio::time::timeout(OPENING_TIMEOUT, greeting).await;
            if let Err(reason) = greeted.unwrap_or_else(|_| Err("it took too long".to_owned())) {
                tracing::info!(%from, %reason, "refused a tensor link");
            }
        });
    }
}

/// Takes a visitor's hello and lets it wait for its host.
async fn greet(incoming: quinn::Incoming, plane: Weak<Plane>) -> Result<(), String> {
    let connecting = incoming.accept().map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let Some(cluster) = plane.upgrade().map(|plane| plane.identity.cluster().clone()) else { return Ok(()) };
    let verified = handshake::verified(&connection, &cluster).map_err(|error| error.to_string())?;
    let verified = verified.ok_or("a certificate is required")?;
    if !Roles::from(RANKS).contains(verified.peer.role()) {
        connection.close(close_code::REFUSED.into(), b"only ranks have tensor links");
        return Err(format!("{} is no rank", verified.peer));
    }
    let (send, mut recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let hello: LinkHello = framed::receive(&mut recv).await.map_err(|error| error.to_string())?;
    let Some(plane) = plane.upgrade() else { return Ok(()) };
    let key = hello.key.clone();
    match plane.meeting.visit(key, Visitor { verified, hello, connection, send, recv }) {
        Ok(()) => Ok(()),
        Err((TurnedAway::Stale, visitor)) => visitor.refuse("a newer epoch has begun").await,
        Err((TurnedAway::Crowded, visitor)) => visitor.refuse("too many ranks wait here").await,
    }
}

async fn accept(
    plane: &Arc<Plane>,
    expected: Expected,
    key: &LinkKey,
) -> Result<Box<dyn TensorLink>, SetupError> {
    let failed = |reason: String| SetupError::Failed { key: key.clone(), reason };
    loop {
        let visitor = plane.meeting.host(key).map_err(|_| SetupError::Stale(key.clone()))?;
        let visitor = visitor.await.map_err(|_| SetupError::Stale(key.clone()))?;
        if expected.admits(&visitor.verified.peer) {
            return settle(plane, visitor).await.map_err(failed);
        }
        let reason = format!("expected {expected}, found {}", visitor.verified.peer);
        tracing::warn!(%key, %reason, "refused a tensor link");
        // The expected rank may still come.
        let _ = visitor.refuse(&reason).await;
    }
}

/// Decides what the link runs over and makes this end.
async fn settle(plane: &Arc<Plane>, mut visitor: Visitor) -> Result<Box<dyn TensorLink>, String> {
    let choice = choose(plane.options.policy, visitor.hello.policy);
    let opened = match choice {
        Choice::Conflict => Err("one end forces shared memory, the other QUIC".to_owned()),
        Choice::Quic => Err("QUIC is forced".to_owned()),
        Choice::SharedMemory | Choice::Either => open_offer(plane, &visitor),
    };
    match (opened, choice) {
        (Ok(link), _) => {
            visitor.answer(&LinkAnswer::SharedMemory).await?;
            let its_plane = plane.clone();
            plane.runtime().spawn(async move {
                visitor.see_off().await;
                // The answer must reach the visitor even if this rank drops its endpoint now.
                drop(its_plane);
            });
            Ok(Box::new(link))
        }
        (Err(_), Choice::Quic | Choice::Either) => {
            visitor.answer(&LinkAnswer::Quic).await?;
            let Visitor { verified, connection, send, recv, .. } = visitor;
            Ok(Box::new(QuicLink::new(plane, &verified, connection, send, recv)))
        }
        (Err(reason), Choice::SharedMemory | Choice::Conflict) => {
            visitor.refuse(&reason).await?;
            Err(reason)
        }
    }
}

fn open_offer(plane: &Plane, visitor: &Visitor) -> Result<shared_memory::SharedMemoryLink, String> {
    let hello = &visitor.hello;
    if hello.boot_id.is_empty() || hello.boot_id != boot_id() {
        return Err("the ranks are on different hosts".to_owned());
    }
    let offer = hello.offer.as_ref().ok_or("the other rank has no shared memory")?;
    shared_memory::open(offer, &visitor.verified.peer, &plane.options)
        .map_err(|error| format!("shared memory: {error}"))
}

impl Visitor {
    async fn answer(&mut self, answer: &LinkAnswer) -> Result<(), String> {
        framed::send(&mut self.send, answer).await.map_err(|error| error.to_string())
    }

    async fn refuse(mut self, reason: &str) -> Result<(), String> {
        let reason = sixfold_wire::channel::clipped(reason).to_owned();
        self.answer(&LinkAnswer::Refused(reason)).await?;
        self.see_off().await;
        Ok(())
    }

    /// Keeps the connection until the visitor has read the answer and closes it.
    async fn see_off(self) {
        let _ = tokio::time::timeout(OPENING_TIMEOUT, self.connection.closed()).await;
    }
}
