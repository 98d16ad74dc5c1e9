//! Other nodes' stores over QUIC: serving this node's artefacts, fetching and pushing theirs.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_transport::identity::{Expected, Peer, Role, Roles};
use sixfold_transport::link::TensorLink;
use sixfold_transport::{ByteStream, Connection, Endpoint, IncomingStream, Registration};
use sixfold_wire::id::{ArtifactId, Epoch};
use tokio::sync::Semaphore;

use crate::holder::HoldTag;
use crate::host::Neighbours;
use crate::protocol::NodeAddress;
use crate::states::links::{self, LINKED_BYTES_MIN};
use crate::states::{self, Listing, StateLinks, StateRequest};
use crate::task::GangId;
use crate::transfer::{self, STREAM_KIND, TransferError, TransferRequest};

/// Transfers that a node serves at the same time; further ones wait.
const TRANSFERS_MAX: usize = 16;

/// The way to other nodes over QUIC.
pub(crate) struct QuicNeighbours {
    endpoint: Endpoint,
    store: Store,
    links: Arc<StateLinks>,
}

impl QuicNeighbours {
    /// Moves artefacts in and out of `store`.
    pub(crate) fn new(endpoint: Endpoint, store: Store, links: Arc<StateLinks>) -> Self {
        Self { endpoint, store, links }
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

    /// Connects the link that `stream` has asked for.
    async fn link(
        &self,
        node: &NodeAddress,
        stream: &mut ByteStream,
        (gang, epoch): (GangId, Epoch),
        what: &str,
    ) -> Result<Box<dyn TensorLink>, TransferError> {
        let address = SocketAddr::new(node.address.ip(), states::receive_port(stream).await?);
        let peer = Peer::node(node.node.as_str()).map_err(std::io::Error::other)?;
        let key = states::link_key(gang, epoch, self.endpoint.identity().peer(), what);
        self.links.connect(address, peer, key).await
    }

    async fn hold_linked(
        &self,
        to: &NodeAddress,
        tag: &HoldTag,
        manifest: Vec<u8>,
        files: &[Bytes],
    ) -> Result<(), TransferError> {
        let what = states::held_content(&manifest);
        let mut stream = self.open_states(to, StateRequest::HoldLinked { tag: *tag, manifest }).await?;
        let link = self.link(to, &mut stream, (tag.gang, tag.epoch), &what).await?;
        links::push(link, files.to_vec()).await?;
        states::receive_acknowledgement(&mut stream).await
    }

    async fn read_linked(
        &self,
        from: &NodeAddress,
        (gang, epoch): (GangId, Epoch),
        state: ArtifactId,
        file: &FileEntry,
    ) -> Result<Bytes, TransferError> {
        let what = states::read_content_of(state, &file.name);
        let request = StateRequest::ReadLinked { gang, epoch, state, file: file.name.clone() };
        let mut stream = self.open_states(from, request).await?;
        let link = self.link(from, &mut stream, (gang, epoch), &what).await?;
        let mut files = links::pull(link, std::slice::from_ref(file)).await?;
        files.pop().ok_or(TransferError::Protocol("no file"))
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
        let encoded = manifest.encode();
        if manifest.bytes() >= LINKED_BYTES_MIN {
            match self.hold_linked(to, tag, encoded.clone(), files).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(node = %to.node, %error, "a state does not go over a link"),
            }
        }
        let request = StateRequest::Hold { tag: *tag, manifest: encoded };
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
        (gang, epoch): (GangId, Epoch),
        state: ArtifactId,
        file: &FileEntry,
    ) -> Result<Bytes, TransferError> {
        if file.bytes >= LINKED_BYTES_MIN {
            match self.read_linked(from, (gang, epoch), state, file).await {
                Ok(content) => return Ok(content),
                Err(error) => tracing::debug!(node = %from.node, %error, "a state does not come over a link"),
            }
        }
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
    use sixfold_transport::tensor::LinkPolicy;
    use sixfold_wire::id::{ContentHash, JobId};

    use super::*;
    use crate::states::SharedHolder;

    const HOLD_BYTES: u64 = 32 << 20;

    /// A node of a cluster on loopback, with a store of its own.
    struct Node {
        _folder: tempfile::TempDir,
        _served: [Registration; 2],
        holder: SharedHolder,
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
            let links = Arc::new(StateLinks::new(endpoint.clone(), LinkPolicy::Auto));
            let holder = SharedHolder::new(HOLD_BYTES);
            let served = [
                serve_artifacts(&endpoint, store.clone()),
                states::serve_states(&endpoint, holder.clone(), Arc::clone(&links)),
            ];
            Self {
                _folder: folder,
                _served: served,
                holder,
                neighbours: QuicNeighbours::new(endpoint, store, links),
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

    fn state(bytes: u64) -> (HoldTag, Manifest, Vec<Bytes>) {
        let files = [bytes, 3]
            .map(|bytes| Bytes::from((0..bytes).map(|at| ((at * 7) >> 3) as u8).collect::<Vec<_>>()));
        let mut manifest = Manifest::new("checkpoint", "train");
        manifest.files.extend(["units", "losses"].iter().zip(&files).map(|(name, content)| FileEntry {
            name: (*name).to_owned(),
            hash: ContentHash::of(content),
            bytes: content.len() as u64,
        }));
        let gang = GangId { job: JobId(1), phase: 0 };
        (HoldTag { gang, epoch: Epoch(1), step: 1, complete: 0 }, manifest, files.into())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn states_are_held_and_read_back_over_streams_and_links() {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let (a, b) = (Node::start(&authority, "a"), Node::start(&authority, "b"));
        for bytes in [0, 1000, LINKED_BYTES_MIN + 1] {
            let (tag, manifest, files) = state(bytes);
            a.neighbours.hold(&b.address, &tag, &manifest, &files).await.unwrap();
            for (entry, file) in manifest.files.iter().zip(&files) {
                let held = b.holder.lock().read(tag.gang, manifest.id(), &entry.name);
                assert!(held.as_ref() == Some(file), "{bytes}");
                let attempt = (tag.gang, Epoch(2));
                let read = a.neighbours.read_held(&b.address, attempt, manifest.id(), entry).await.unwrap();
                assert!(read == file, "{bytes}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_large_state_goes_over_a_link_and_is_refused_like_any() {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let (a, b) = (Node::start(&authority, "a"), Node::start(&authority, "b"));
        let (tag, manifest, files) = state(LINKED_BYTES_MIN);
        a.neighbours.hold_linked(&b.address, &tag, manifest.encode(), &files).await.unwrap();
        let stale = HoldTag { epoch: Epoch(0), ..tag };
        let (_, large, files) = state(HOLD_BYTES);
        for (tag, manifest, why) in [(stale, &manifest, "a newer attempt"), (tag, &large, "do not fit")] {
            let error = a.neighbours.hold(&b.address, &tag, manifest, &files).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let (gang, id) = (tag.gang, large.id());
        let gone = a.neighbours.read_linked(&b.address, (gang, tag.epoch), id, &large.files[0]).await;
        assert!(gone.unwrap_err().to_string().contains("not held here"));
    }
}
