//! Links over the cluster's network: [`NetworkLinks`].

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sixfold_cluster::task::{Gang, Network, TaskAddress};
use sixfold_topology::Rank;
use sixfold_transport::BindError;
use sixfold_transport::identity::Expected;
use sixfold_transport::link::{LinkError, TensorLink};
use sixfold_transport::tensor::{LinkKey, TensorEndpoint, TensorOptions};
use sixfold_wire::id::JobId;
use tokio::task::JoinSet;

use crate::links::{LinkFactory, LinkPurpose, Links};

/// How long two ranks may take to meet: one may still be writing its last checkpoint.
const SETUP_TIMEOUT: Duration = Duration::from_mins(5);

/// Links of a rank to processes of other nodes or of its own.
pub(crate) struct NetworkLinks {
    endpoint: TensorEndpoint,
    address: SocketAddr,
    job: JobId,
}

impl NetworkLinks {
    /// Listens for other ranks of `job`, with the identity and on the interface of `network`.
    pub(crate) fn bind(network: &Network, job: JobId) -> Result<Self, BindError> {
        let io = |address| move |source| BindError::Io { address, source };
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let bind = SocketAddr::new(network.endpoint.local_address().map_err(io(unknown))?.ip(), 0);
        let policy = network.links.into();
        let options = TensorOptions { policy, setup_timeout: SETUP_TIMEOUT, ..TensorOptions::new(bind) };
        let endpoint = TensorEndpoint::bind(network.endpoint.identity(), options)?;
        let address = endpoint.local_address().map_err(io(bind))?;
        Ok(Self { endpoint, address, job })
    }
}

#[async_trait]
impl LinkFactory for NetworkLinks {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn connect(
        &self,
        gang: &Gang,
        rank: Rank,
        peers: &[Rank],
        purpose: LinkPurpose,
    ) -> Result<Links, LinkError> {
        self.endpoint.begin_epoch(self.job, gang.epoch);
        let mut meetings = JoinSet::new();
        for &peer in peers {
            let Some(member) = gang.members.get(peer.index()).cloned() else {
                let reason = "it is not a member of the gang".to_owned();
                return Err(LinkError::Closed { peer: peer.to_string(), reason });
            };
            let key = LinkKey {
                job: self.job,
                epoch: gang.epoch,
                from: rank.0.min(peer.0),
                to: rank.0.max(peer.0),
                purpose: name(purpose).to_owned(),
            };
            meetings.spawn(meet(self.endpoint.clone(), rank, peer, member, key));
        }
        let mut links = Links::with_capacity(peers.len());
        while let Some(met) = meetings.join_next().await {
            let panicked = |error: tokio::task::JoinError| LinkError::Closed {
                peer: "a peer".to_owned(),
                reason: error.to_string(),
            };
            let (peer, link) = met.map_err(panicked)??;
            links.insert(peer, link);
        }
        Ok(links)
    }
}

fn name(purpose: LinkPurpose) -> &'static str {
    match purpose {
        LinkPurpose::Tensors => "tensors",
        LinkPurpose::Records => "records",
    }
}

/// Makes one link; of two ranks the lower one connects.
async fn meet(
    endpoint: TensorEndpoint,
    rank: Rank,
    peer: Rank,
    member: TaskAddress,
    key: LinkKey,
) -> Result<(Rank, Box<dyn TensorLink>), LinkError> {
    let expected = Expected::Host(member.node.to_string());
    let met = if rank < peer {
        endpoint.connect(member.address, expected, key).await
    } else {
        endpoint.accept(expected, key).await
    };
    let peer_name = format!("{peer} on {}", member.node);
    match met {
        Ok(link) => Ok((peer, Box::new(NamedLink { link, peer: peer_name }))),
        Err(error) => Err(LinkError::Closed { peer: peer_name, reason: error.to_string() }),
    }
}

/// A link whose errors name the rank at the other end, not only its process.
struct NamedLink {
    link: Box<dyn TensorLink>,
    peer: String,
}

impl NamedLink {
    fn name(&self, error: LinkError) -> LinkError {
        let peer = self.peer.clone();
        match error {
            LinkError::Closed { reason, .. } => LinkError::Closed { peer, reason },
            LinkError::Length { expected, got, .. } => LinkError::Length { peer, expected, got },
            LinkError::Timeout { waited_ms, .. } => LinkError::Timeout { peer, waited_ms },
        }
    }
}

impl TensorLink for NamedLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.link.send(message).map_err(|error| self.name(error))
    }

    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        self.link.post(message).map_err(|error| self.name(error))
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        self.link.recv(message).map_err(|error| self.name(error))
    }

    fn bytes_sent(&self) -> u64 {
        self.link.bytes_sent()
    }

    fn waited(&self) -> Duration {
        self.link.waited()
    }

    fn kind(&self) -> &'static str {
        self.link.kind()
    }
}

/// What a rank has that needs no links: it is alone.
pub(crate) struct NoLinks;

#[async_trait]
impl LinkFactory for NoLinks {
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn connect(&self, _: &Gang, _: Rank, peers: &[Rank], _: LinkPurpose) -> Result<Links, LinkError> {
        match peers.first() {
            None => Ok(Links::new()),
            Some(peer) => {
                let reason = "this process has no network".to_owned();
                Err(LinkError::Closed { peer: peer.to_string(), reason })
            }
        }
    }
}
