//! Other nodes' stores over QUIC: serving this node's artefacts, fetching and pushing theirs.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_transport::identity::{Expected, Peer, Role, Roles};
use sixfold_transport::{ByteStream, Connection, Endpoint, IncomingStream, Registration};
use sixfold_wire::id::{ArtifactId, Epoch};
use tokio::sync::Semaphore;

use crate::holder::HoldTag;
use crate::host::Neighbours;
use crate::protocol::NodeAddress;
use crate::states::{self, Listing, StateRequest};
use crate::task::GangId;
use crate::transfer::{self, STREAM_KIND, TransferError, TransferRequest};

/// Transfers that a node serves at the same time; further ones wait.
const TRANSFERS_MAX: usize = 16;

/// The way to other nodes over QUIC.
pub(crate) struct QuicNeighbours {
    endpoint: Endpoint,
    store: Store,
}

impl QuicNeighbours {
    /// Moves artefacts in and out of `store`.
    pub(crate) fn new(endpoint: Endpoint, store: Store) -> Self {
        Self { endpoint, store }
    }

    async fn open(
        &self,
        node: &NodeAddress,
        kind: &str,
        request: &(impl serde::Serialize + Sync),
    ) -> Result<ByteStream, TransferError> {
        let peer = Peer::node(node.node.as_str()).map_err(std::io::Error::other)?;
        let connection = connect(&self.endpoint, &peer, node.address).await?;
        connection.open_stream(kind, request).await.map_err(|error| std::io::Error::other(error).into())
    }

    async fn open_states(
        &self,
        node: &NodeAddress,
        request: StateRequest,
    ) -> Result<ByteStream, TransferError> {
        self.open(node, states::STREAM_KIND, &request).await
    }
}

/// The live connection to a node, or a new one.
async fn connect(endpoint: &Endpoint, peer: &Peer, address: SocketAddr) -> std::io::Result<Connection> {
    if let Some(connection) = endpoint.connection_to(peer) {
        return Ok(connection);
    }
    endpoint.connect(address, Expected::Peer(peer.clone())).await.map_err(std::io::Error::other)
}

#[async_trait]
impl Neighbours for QuicNeighbours {
    async fn fetch(&self, from: &NodeAddress, id: ArtifactId) -> Result<Manifest, TransferError> {
        let stream = self.open(from, STREAM_KIND, &TransferRequest::Fetch(id)).await?;
        let mut stream = tokio::io::join(stream.recv, stream.send);
        transfer::receive(&self.store, id, &mut stream).await
    }

    async fn push(&self, to: &NodeAddress, id: ArtifactId) -> Result<(), TransferError> {
        let stream = self.open(to, STREAM_KIND, &TransferRequest::Push(id)).await?;
        let mut stream = tokio::io::join(stream.recv, stream.send);
        transfer::send(&self.store, id, &mut stream).await
    }

    async fn hold(
        &self,
        to: &NodeAddress,
        tag: &HoldTag,
        manifest: &Manifest,
        files: &[Bytes],
    ) -> Result<(), TransferError> {
        let request = StateRequest::Hold { tag: *tag, manifest: manifest.encode() };
        states::send(self.open_states(to, request).await?, files).await
    }

    async fn list_held(
        &self,
        from: &NodeAddress,
        gang: GangId,
        epoch: Epoch,
    ) -> Result<Listing, TransferError> {
        states::receive_list(self.open_states(from, StateRequest::List { gang, epoch }).await?).await
    }

    async fn read_held(
        &self,
        from: &NodeAddress,
        gang: GangId,
        state: ArtifactId,
        file: &FileEntry,
    ) -> Result<Bytes, TransferError> {
        let request = StateRequest::Read { gang, state, file: file.name.clone() };
        states::receive_file(self.open_states(from, request).await?, file).await
    }
}

/// Lets the other nodes, the coordinator and users fetch artefacts of `store`, and nodes push into it.
pub(crate) fn serve_artifacts(endpoint: &Endpoint, store: Store) -> Registration {
    let places = Arc::new(Semaphore::new(TRANSFERS_MAX));
    // The handler runs on the endpoint's own thread, which must not move content.
    let runtime = tokio::runtime::Handle::current();
    endpoint.register_streams(STREAM_KIND, Roles::ANY, move |incoming| {
        let (store, places) = (store.clone(), Arc::clone(&places));
        runtime.spawn(async move {
            // The semaphore is never closed.
            let _place = places.acquire_owned().await;
            let from = incoming.from.clone();
            if let Err(error) = answer(&store, incoming).await {
                tracing::debug!(%from, %error, "a transfer failed");
            }
        });
    })
}

async fn answer(store: &Store, incoming: IncomingStream) -> Result<(), TransferError> {
    let Ok(request) = incoming.header::<TransferRequest>() else {
        return Ok(incoming.refuse("not a transfer request").await?);
    };
    match request {
        TransferRequest::Fetch(id) if !store.has(id) => {
            Ok(incoming.refuse("the artefact is not on this node").await?)
        }
        TransferRequest::Fetch(id) => {
            let stream = incoming.accept().await?;
            let mut stream = tokio::io::join(stream.recv, stream.send);
            transfer::send(store, id, &mut stream).await
        }
        TransferRequest::Push(_) if incoming.from.role() != Role::Node => {
            Ok(incoming.refuse("only nodes push artefacts").await?)
        }
        TransferRequest::Push(id) => {
            let stream = incoming.accept().await?;
            let mut stream = tokio::io::join(stream.recv, stream.send);
            transfer::receive(store, id, &mut stream).await.map(drop)
        }
    }
}

/// Whether a node answers over a fresh connection.
pub(crate) async fn probe(endpoint: &Endpoint, node: &NodeAddress) -> bool {
    let Ok(peer) = Peer::node(node.node.as_str()) else { return false };
    let deadline = std::time::Duration::from_millis(500);
    let dialled = tokio::time::timeout(deadline, endpoint.connect(node.address, Expected::Peer(peer))).await;
    matches!(dialled, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, SystemTime};

    use sixfold_transport::EndpointOptions;
    use sixfold_transport::identity::Authority;

    use super::*;

    /// A node of a cluster on loopback, with a store of its own.
    struct Node {
        _folder: tempfile::TempDir,
        _served: Registration,
        neighbours: QuicNeighbours,
        address: NodeAddress,
    }

    impl Node {
        fn start(authority: &Authority, name: &str) -> Self {
            let identity = authority
                .issue_identity(&Peer::node(name).unwrap(), SystemTime::now(), Duration::from_mins(10))
                .unwrap();
            let options = EndpointOptions::new((Ipv4Addr::LOCALHOST, 0).into());
            let endpoint = Endpoint::bind(identity, &options).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let address = NodeAddress { node: name.into(), address: endpoint.local_address().unwrap() };
            let served = serve_artifacts(&endpoint, store.clone());
            Self {
                _folder: folder,
                _served: served,
                neighbours: QuicNeighbours::new(endpoint, store),
                address,
            }
        }

        fn publish(&self, content: &[u8]) -> ArtifactId {
            let mut manifest = Manifest::new("tokens", "tokenize");
            manifest.files.push(self.neighbours.store.put("content", content).unwrap());
            self.neighbours.store.publish(&manifest).unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_push_and_fetch_is_acknowledged_whether_the_content_is_there_or_not() {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let (a, b) = (Node::start(&authority, "a"), Node::start(&authority, "b"));
        let there = a.publish(&vec![5; 3 << 20]);
        for round in 0_u32..100 {
            let new = a.publish(&round.to_le_bytes());
            for id in [new, there] {
                a.neighbours.push(&b.address, id).await.unwrap_or_else(|error| panic!("{round}: {error}"));
                assert!(b.neighbours.store.has(id));
            }
            let back = b.publish(&(1000 + round).to_le_bytes());
            a.neighbours.fetch(&b.address, back).await.unwrap_or_else(|error| panic!("{round}: {error}"));
        }
    }
}
