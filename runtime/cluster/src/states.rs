//! States from one node's memory to another's, over byte streams.
//!
//! ```text
//! Hold   opener -> the contents of the manifest's files, one after the other, and the end of its stream
//!        holder -> 1 once it holds the state, and the end of its stream
//! List   holder -> what it holds of the gang, as JSON, and the end of its stream
//! Read   holder -> the content, and the end of its stream
//! HoldLinked, ReadLinked   holder -> the u16 port of its links; the opener connects one for the contents; for
//!        HoldLinked, holder -> 1 once it holds the state, and the end of its stream
//! ```
//! Large states take the way over a link ([`StateLinks`]), where one can be had.
//! Nothing is written to a disk. Whoever uses a state compares its content with the manifest's hashes.

pub(crate) mod links;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sixfold_artifact::{FileEntry, Manifest, StoreError};
use sixfold_transport::identity::{Peer, Role};
use sixfold_transport::tensor::LinkKey;
use sixfold_transport::{ByteStream, Endpoint, IncomingStream, Registration};
use sixfold_wire::id::{ArtifactId, ContentHash, Epoch};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::holder::{Held, HoldTag, Holder};
use crate::task::GangId;
use crate::transfer::TransferError;

pub(crate) use links::StateLinks;

/// Name of the stream kind.
pub(crate) const STREAM_KIND: &str = "state";
/// Longest list of one gang's states, in bytes.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// States that arrive at a node at the same time; further ones wait.
const STREAMS_MAX: usize = 16;

/// First thing on a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum StateRequest {
    /// Hold this state; its manifest as JSON.
    Hold { tag: HoldTag, manifest: Vec<u8> },
    /// Say to this attempt what you hold of its gang.
    List { gang: GangId, epoch: Epoch },
    /// Send a file of a state that you hold.
    Read { gang: GangId, state: ArtifactId, file: String },
    /// As `Hold`, with the contents over a link.
    HoldLinked { tag: HoldTag, manifest: Vec<u8> },
    /// As `Read`, with the content over a link of this attempt.
    ReadLinked { gang: GangId, epoch: Epoch, state: ArtifactId, file: String },
}

/// The link for contents of a state, which `opener` connects.
pub(crate) fn link_key(gang: GangId, epoch: Epoch, opener: &Peer, what: &str) -> LinkKey {
    let purpose = format!("{what} of phase {} for {opener}", gang.phase);
    LinkKey { job: gang.job, epoch, from: 0, to: 1, purpose }
}

/// What a link of [`StateRequest::HoldLinked`] is for.
pub(crate) fn held_content(manifest: &[u8]) -> String {
    format!("state {}", ContentHash::of(manifest))
}

/// What a link of [`StateRequest::ReadLinked`] is for.
pub(crate) fn read_content_of(state: ArtifactId, file: &str) -> String {
    format!("{file} of state {}", state.0)
}

/// What a node holds of a gang.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// Steps and manifests.
    pub(crate) states: Vec<(u64, Manifest)>,
    /// The newest attempt that was seen, and the newest step of it.
    pub(crate) furthest: (Epoch, u64),
}

/// The table of a node, shared by its tasks and its peers.
#[derive(Clone)]
pub(crate) struct SharedHolder(Arc<Mutex<Holder>>);

impl SharedHolder {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Holder::new(limit_bytes))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Holder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held of a gang, told to an attempt of it.
    pub(crate) fn list(&self, gang: GangId, epoch: Epoch) -> Listing {
        let mut holder = self.lock();
        holder.see(gang, epoch);
        let (states, furthest) = holder.list(gang);
        Listing { states, furthest }
    }
}

/// Room for a state that is on its way; given back if it does not arrive.
struct Arriving<'a> {
    holder: &'a SharedHolder,
    bytes: u64,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.holder.lock().give_up(self.bytes);
    }
}

/// Sends a state to a node; returns once that node holds it.
pub(crate) async fn send(stream: ByteStream, files: &[Bytes]) -> Result<(), TransferError> {
    let mut stream = tokio::io::join(stream.recv, stream.send);
    for file in files {
        stream.write_all(file).await?;
    }
    stream.shutdown().await?;
    match stream.read_u8().await? {
        1 => expect_end(&mut stream).await,
        _ => Err(TransferError::Protocol("no acknowledgement")),
    }
}

/// Waits until a state whose contents went over a link is held.
pub(crate) async fn receive_acknowledgement(stream: &mut ByteStream) -> Result<(), TransferError> {
    match stream.recv.read_u8().await? {
        1 => expect_end(&mut stream.recv).await,
        _ => Err(TransferError::Protocol("no acknowledgement")),
    }
}

/// Reads the port of a holder's links.
pub(crate) async fn receive_port(stream: &mut ByteStream) -> Result<u16, TransferError> {
    Ok(stream.recv.read_u16().await?)
}

/// Reads a list of states.
pub(crate) async fn receive_list(stream: ByteStream) -> Result<Listing, TransferError> {
    let mut json = Vec::new();
    stream.recv.take(LIST_BYTES_MAX).read_to_end(&mut json).await?;
    serde_json::from_slice(&json).map_err(|_| TransferError::Protocol("not a list of states"))
}

/// Reads a file of a state.
pub(crate) async fn receive_file(mut stream: ByteStream, file: &FileEntry) -> Result<Bytes, TransferError> {
    let content = read_content(&mut stream.recv, file).await?;
    expect_end(&mut stream.recv).await?;
    Ok(content)
}

async fn read_content(
    stream: &mut (impl AsyncRead + Unpin),
    file: &FileEntry,
) -> Result<Bytes, TransferError> {
    let bytes = usize::try_from(file.bytes).map_err(|_| TransferError::Protocol("a file too large"))?;
    let mut content = Vec::with_capacity(bytes);
    let read = stream.take(file.bytes).read_to_end(&mut content).await?;
    if read == bytes { Ok(content.into()) } else { Err(TransferError::Protocol("a file too short")) }
}

async fn expect_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), TransferError> {
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(TransferError::Protocol("more than was announced")),
    }
}

/// Lets other nodes keep states here, and read them.
pub(crate) fn serve_states(
    endpoint: &Endpoint,
    holder: SharedHolder,
    links: Arc<StateLinks>,
) -> Registration {
    let places = Arc::new(tokio::sync::Semaphore::new(STREAMS_MAX));
    // The handler runs on the endpoint's own thread, which must not move content.
    let runtime = tokio::runtime::Handle::current();
    endpoint.register_streams(STREAM_KIND, Role::Node, move |incoming| {
        let (holder, links, places) = (holder.clone(), Arc::clone(&links), Arc::clone(&places));
        runtime.spawn(async move {
            // The semaphore is never closed.
            let _place = places.acquire_owned().await;
            let from = incoming.from.clone();
            if let Err(error) = answer(&holder, &links, incoming).await {
                tracing::debug!(%from, %error, "a state did not arrive");
            }
        });
    })
}

async fn answer(
    holder: &SharedHolder,
    links: &StateLinks,
    incoming: IncomingStream,
) -> Result<(), TransferError> {
    match incoming.header::<StateRequest>() {
        Err(_) => Ok(incoming.refuse("not a request for states").await?),
        Ok(StateRequest::Hold { tag, manifest }) => hold(holder, None, incoming, &tag, &manifest).await,
        Ok(StateRequest::HoldLinked { tag, manifest }) => {
            hold(holder, Some(links), incoming, &tag, &manifest).await
        }
        Ok(StateRequest::List { gang, epoch }) => {
            let listing = holder.list(gang, epoch);
            let json = serde_json::to_vec(&listing).map_err(std::io::Error::other)?;
            give(incoming, &json).await
        }
        Ok(StateRequest::Read { gang, state, file }) => {
            let content = holder.lock().read(gang, state, &file);
            match content {
                Some(content) => give(incoming, &content).await,
                None => Ok(incoming.refuse("the state is not held here").await?),
            }
        }
        Ok(StateRequest::ReadLinked { gang, epoch, state, file }) => {
            let content = holder.lock().read(gang, state, &file);
            let Some(content) = content else {
                return Ok(incoming.refuse("the state is not held here").await?);
            };
            let opener = incoming.from.clone();
            let key = link_key(gang, epoch, &opener, &read_content_of(state, &file));
            let mut stream = incoming.accept().await?;
            stream.send.write_u16(links.port()?).await?;
            links::push(links.accept(opener, key).await?, vec![content]).await?;
            Ok(stream.send.shutdown().await?)
        }
    }
}

async fn give(incoming: IncomingStream, content: &[u8]) -> Result<(), TransferError> {
    let mut stream = incoming.accept().await?;
    stream.send.write_all(content).await?;
    Ok(stream.send.finish().await?)
}

/// Takes a state in, over a link if `links` are given.
async fn hold(
    holder: &SharedHolder,
    links: Option<&StateLinks>,
    incoming: IncomingStream,
    tag: &HoldTag,
    manifest: &[u8],
) -> Result<(), TransferError> {
    let id = ArtifactId(ContentHash::of(manifest));
    let opener = incoming.from.clone();
    let key = link_key(tag.gang, tag.epoch, &opener, &held_content(manifest));
    let manifest = Manifest::decode(manifest).map_err(|source| StoreError::Manifest { id, source })?;
    let bytes = manifest.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
    let reserved = holder.lock().reserve(tag, bytes);
    if let Err(error) = reserved {
        return Ok(incoming.refuse(&error.to_string()).await?);
    }
    let mut arriving = Arriving { holder, bytes };
    let stream = incoming.accept().await?;
    let mut stream = tokio::io::join(stream.recv, stream.send);
    let mut files = Vec::with_capacity(manifest.files.len());
    if let Some(links) = links {
        stream.write_u16(links.port()?).await?;
        files = links::pull(links.accept(opener, key).await?, &manifest.files).await?;
    } else {
        for file in &manifest.files {
            files.push(read_content(&mut stream, file).await?);
        }
        expect_end(&mut stream).await?;
    }
    // From here on the table itself gives the room back.
    arriving.bytes = 0;
    let held = holder.lock().put(tag, Held { manifest, files });
    stream.write_u8(u8::from(held.is_ok())).await?;
    Ok(stream.shutdown().await?)
}
