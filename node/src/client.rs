//! A client of the coordinator: what the commands of people and programs share.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sixfold_coordinator::message::{CLIENTS_ACTOR, ClientReply, ClientRequest, NodeView, RequestId};
use sixfold_transport::identity::Role;
use sixfold_transport::{ChannelOptions, Endpoint, EndpointOptions, RemoteRef};
use tokio::sync::Mutex;

use crate::home::Home;

/// How long one answer may take; a watching client is answered within ten seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a coordinator that is away is waited for: a killed one is started again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A connection to the coordinator that survives the coordinator's restarts.
pub(crate) struct Client {
    endpoint: Endpoint,
    coordinator: SocketAddr,
    channel: Mutex<Option<RemoteRef<ClientRequest>>>,
}

impl Client {
    /// A client with the identity of this home. The first request connects.
    pub(crate) fn open(home: Home) -> Result<Self> {
        let Home { identity, coordinator } = home;
        let any: SocketAddr = match coordinator {
            SocketAddr::V4(address) if address.ip().is_loopback() => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::bind(identity, &EndpointOptions::new(any))?;
        Ok(Self { endpoint, coordinator, channel: Mutex::new(None) })
    }

    /// The client's endpoint, for connections to nodes.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where the coordinator is.
    pub(crate) fn coordinator(&self) -> SocketAddr {
        self.coordinator
    }

    /// Asks the coordinator; asks again while it is away. Every request is idempotent.
    ///
    /// # Errors
    /// Where it refuses (in its own words), or does not answer for long.
    pub(crate) async fn request(&self, request: ClientRequest) -> Result<ClientReply> {
        let since = Instant::now();
        loop {
            match self.ask(request.clone()).await {
                Ok(ClientReply::Refused(refusal)) => bail!(refusal),
                Ok(reply) => return Ok(reply),
                Err(error) if since.elapsed() >= PATIENCE => {
                    return Err(error)
                        .with_context(|| format!("the coordinator at {} does not answer", self.coordinator));
                }
                Err(error) => {
                    tracing::debug!("the coordinator does not answer: {error:#}");
                    *self.channel.lock().await = None;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn ask(&self, request: ClientRequest) -> Result<ClientReply> {
        Ok(self.channel().await?.call(request, ANSWER_DEADLINE).await?)
    }

    async fn channel(&self) -> Result<RemoteRef<ClientRequest>> {
        let mut held = self.channel.lock().await;
        if let Some(channel) = held.as_ref() {
            return Ok(channel.clone());
        }
        let connection = self.endpoint.connect(self.coordinator, Role::Coordinator).await?;
        let channel = connection.actor(CLIENTS_ACTOR, ChannelOptions::default()).await?;
        *held = Some(channel.clone());
        Ok(channel)
    }

    /// All nodes.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeView>> {
        match self.request(ClientRequest::Nodes).await? {
            ClientReply::Nodes(nodes) => Ok(nodes),
            other => unexpected(&other),
        }
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        self.endpoint.shutdown("the client has ended").await;
    }
}

/// An answer to another question: client and coordinator are of different versions.
pub(crate) fn unexpected<T>(reply: &ClientReply) -> Result<T> {
    bail!("unexpected answer of the coordinator; are client and coordinator of the same version? {reply:?}")
}

/// A fresh id, under which a repeated request has the effect of one.
pub(crate) fn request_id() -> RequestId {
    RequestId(format!("{:032x}", rand::random::<u128>()))
}
