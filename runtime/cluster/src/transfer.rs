//! Artefacts from one node's store to another's, over any byte stream.
//!
//! ```text
//! sender   -> u32 length, manifest
//! receiver -> one byte a file: 1 if it wants the content, 0 if it has it
//! sender   -> the wanted contents, one after the other, and the end of its stream
//! receiver -> 1 once the artefact is durable in its store, and the end of its stream
//! ```
//! Each side reads the other's stream to its end: one that is dropped before counts as a peer that went away.
//! The receiver checks every hash while it writes; an artefact is visible to it whole or not at all.

use std::io::Write;

use bytes::Bytes;
use sixfold_artifact::{FileEntry, Manifest, Store, StoreError};
use sixfold_wire::id::ArtifactId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Name of the stream kind.
pub const STREAM_KIND: &str = "artifact";

const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 4;
const MANIFEST_BYTES_MAX: u32 = 16 << 20;

/// First thing on a stream: what the opener wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum TransferRequest {
    /// Send me this artefact.
    Fetch(ArtifactId),
    /// Keep this artefact.
    Push(ArtifactId),
}

/// Why an artefact did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The stream broke.
    #[error("the transfer broke off: {0}")]
    Stream(#[from] std::io::Error),
    /// A store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The peer sent something else than was asked for.
    #[error("the peer broke the transfer protocol: {0}")]
    Protocol(&'static str),
}

/// Sends an artefact from `store`; returns once the receiver has it durably.
///
/// # Errors
/// [`TransferError`] where the artefact is not here or the stream breaks.
pub(crate) async fn send<S>(store: &Store, id: ArtifactId, stream: &mut S) -> Result<(), TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let manifest = store.manifest(id)?;
    let encoded = manifest.encode();
    let length = u32::try_from(encoded.len()).map_err(|_| TransferError::Protocol("manifest too large"))?;
    stream.write_u32(length).await?;
    stream.write_all(&encoded).await?;
    stream.flush().await?;
    let mut wanted = vec![0; manifest.files.len()];
    stream.read_exact(&mut wanted).await?;
    for (file, _) in manifest.files.iter().zip(&wanted).filter(|(_, wanted)| **wanted == 1) {
        let content = tokio::fs::File::open(store.entry_path(file)?).await?;
        let mut content = tokio::io::BufReader::with_capacity(CHUNK_BYTES, content).take(file.bytes);
        if tokio::io::copy_buf(&mut content, stream).await? != file.bytes {
            return Err(TransferError::Protocol("a file became shorter"));
        }
    }
    stream.shutdown().await?;
    if stream.read_u8().await? != 1 {
        return Err(TransferError::Protocol("no acknowledgement"));
    }
    expect_end(stream).await
}

/// Receives an artefact into `store`.
///
/// # Errors
/// [`TransferError`] where the stream breaks or brings something else; nothing is visible then.
pub async fn receive<S>(store: &Store, id: ArtifactId, stream: &mut S) -> Result<Manifest, TransferError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = stream.read_u32().await?;
    if length > MANIFEST_BYTES_MAX {
        return Err(TransferError::Protocol("manifest too large"));
    }
    let mut encoded = vec![0; length as usize];
    stream.read_exact(&mut encoded).await?;
    let manifest = Manifest::decode(&encoded).map_err(|source| StoreError::Manifest { id, source })?;
    if manifest.id() != id {
        return Err(TransferError::Protocol("another artefact than asked for"));
    }
    let wanted: Vec<u8> = manifest.files.iter().map(|file| u8::from(!store.has_blob(&file.hash))).collect();
    stream.write_all(&wanted).await?;
    stream.flush().await?;
    for (file, _) in manifest.files.iter().zip(&wanted).filter(|(_, wanted)| **wanted == 1) {
        receive_file(store, file, stream).await?;
    }
    expect_end(stream).await?;
    let (publisher, published) = (store.clone(), manifest.clone());
    blocking(move || publisher.publish(&published)).await?;
    stream.write_u8(1).await?;
    stream.shutdown().await?;
    Ok(manifest)
}

/// Reads the end of the peer's stream.
async fn expect_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), TransferError> {
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(TransferError::Protocol("more than the artefact")),
    }
}

/// Reads one file's content; a thread of its own writes it, as disks block.
async fn receive_file<S>(store: &Store, file: &FileEntry, stream: &mut S) -> Result<(), TransferError>
where
    S: AsyncRead + Unpin,
{
    let (chunks, mut received) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
    let (store, expected) = (store.clone(), file.clone());
    let writing = tokio::task::spawn_blocking(move || -> Result<(), TransferError> {
        let mut writer = store.writer()?;
        while let Some(chunk) = received.blocking_recv() {
            writer.write_all(&chunk)?;
        }
        writer.finish_expecting(&expected)?;
        Ok(())
    });
    let mut left = file.bytes;
    while left > 0 {
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES))];
        stream.read_exact(&mut chunk).await?;
        left -= chunk.len() as u64;
        if chunks.send(chunk.into()).await.is_err() {
            break;
        }
    }
    drop(chunks);
    writing.await.map_err(|_| TransferError::Protocol("the writer stopped"))?
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, TransferError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|_| TransferError::Protocol("the writer stopped"))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    fn publish(store: &Store) -> ArtifactId {
        let mut manifest = Manifest::new("tokens", "tokenize");
        manifest.files.push(store.put("small", b"abc").unwrap());
        manifest.files.push(store.put("large", &vec![7; 3 * CHUNK_BYTES + 1]).unwrap());
        manifest.files.push(store.put("empty", b"").unwrap());
        store.publish(&manifest).unwrap()
    }

    #[tokio::test]
    async fn moves_an_artefact_whole() {
        let ((_a, from), (_b, to)) = (store(), store());
        let id = publish(&from);
        to.put("small", b"abc").unwrap();
        let (mut left, mut right) = tokio::io::duplex(1 << 16);
        let (sent, received) = tokio::join!(send(&from, id, &mut left), receive(&to, id, &mut right));
        sent.unwrap();
        assert_eq!(received.unwrap().id(), id);
        to.verify(id).unwrap();
    }

    #[tokio::test]
    async fn damaged_content_is_never_visible() {
        let ((_a, from), (_b, to)) = (store(), store());
        let id = publish(&from);
        let path = from.file_path(id, "small").unwrap();
        std::fs::write(path, b"abX").unwrap();
        let (mut left, mut right) = tokio::io::duplex(1 << 16);
        let (_, received) = tokio::join!(
            async {
                let sent = send(&from, id, &mut left).await;
                drop(left);
                sent
            },
            async {
                let received = receive(&to, id, &mut right).await;
                drop(right);
                received
            }
        );
        assert!(matches!(received, Err(TransferError::Store(StoreError::Damaged { .. }))), "{received:?}");
        assert!(!to.has(id));
    }

    #[tokio::test]
    async fn a_broken_stream_leaves_nothing_visible() {
        let ((_a, from), (_b, to)) = (store(), store());
        let id = publish(&from);
        let (mut left, mut right) = tokio::io::duplex(1 << 10);
        let receiving = receive(&to, id, &mut right);
        let half = async {
            let manifest = from.manifest(id).unwrap().encode();
            left.write_u32(manifest.len() as u32).await.unwrap();
            left.write_all(&manifest).await.unwrap();
            left.read_exact(&mut [0; 3]).await.unwrap();
            left.write_all(b"ab").await.unwrap();
            drop(left);
        };
        let (received, ()) = tokio::join!(receiving, half);
        assert!(matches!(received, Err(TransferError::Stream(_))));
        assert!(!to.has(id));
    }

    #[tokio::test]
    async fn refuses_a_manifest_of_another_artefact() {
        let ((_a, from), (_b, to)) = (store(), store());
        let id = publish(&from);
        let other = ArtifactId(sixfold_wire::id::ContentHash::of(b"other"));
        let (mut left, mut right) = tokio::io::duplex(1 << 16);
        let sending = async { send(&from, id, &mut left).await };
        let receiving = async {
            let received = receive(&to, other, &mut right).await;
            drop(right);
            received
        };
        let (_, received) = tokio::join!(sending, receiving);
        assert!(matches!(received, Err(TransferError::Protocol(_))));
    }
}
