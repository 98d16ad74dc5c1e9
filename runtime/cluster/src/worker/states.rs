//! Held states between a worker and its daemon.
//!
//! Their content goes through files of the task's scratch folder, which the receiver removes at once: a copy
//! into the page cache and one out of it, where a loopback connection would encrypt every byte. They are
//! never synced, and one that is damaged fails its hash where the state is used.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sixfold_artifact::{ContentBuffer, Manifest};
use sixfold_wire::id::NodeName;

use super::WorkerReply;
use crate::host::DaemonHost;
use crate::task::{Commit, HeldState, HeldStates, HostError, TaskHost};

/// Where a worker leaves a file of a state for its daemon to hold.
fn commit_file(scratch: &Path, index: usize) -> PathBuf {
    scratch.join(format!("commit-{index}"))
}

/// Where a daemon leaves a file of a held state for its worker.
fn held_file(scratch: &Path, index: u32) -> PathBuf {
    scratch.join(format!("held-{index}"))
}

fn failed(action: &str, path: &Path, error: &io::Error) -> HostError {
    HostError::NotHeld(format!("{action} {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(HostError::NotHeld(error.to_string())))
}

fn take(path: &Path) -> Result<Bytes, HostError> {
    let read = || {
        let mut file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut content = ContentBuffer::zeroed(bytes);
        file.read_exact(&mut content)?;
        Ok(content)
    };
    let content = read().map_err(|error| failed("read", path, &error))?;
    std::fs::remove_file(path).map_err(|error| failed("remove", path, &error))?;
    Ok(content.into())
}

/// Leaves the files of a state to the daemon.
pub(super) async fn put_commit(scratch: &Path, files: Vec<Bytes>) -> Result<(), HostError> {
    let scratch = scratch.to_owned();
    blocking(move || {
        for (index, content) in files.iter().enumerate() {
            let path = commit_file(&scratch, index);
            std::fs::write(&path, content).map_err(|error| failed("write", &path, &error))?;
        }
        Ok(())
    })
    .await
}

/// Takes a file that the daemon left.
pub(super) async fn take_held(scratch: &Path, index: u32) -> Result<Bytes, HostError> {
    let path = held_file(scratch, index);
    blocking(move || take(&path)).await
}

fn decode(manifest: &[u8]) -> Result<Manifest, HostError> {
    Manifest::decode(manifest).map_err(|error| HostError::NotHeld(error.to_string()))
}

/// What a daemon said that nodes hold.
pub(super) fn decode_held(
    states: Vec<(u64, Vec<u8>, Vec<NodeName>)>,
    furthest: u64,
) -> Result<HeldStates, HostError> {
    let state = |(step, manifest, nodes): (u64, Vec<u8>, _)| {
        Ok(HeldState { step, manifest: decode(&manifest)?, nodes })
    };
    let states: Result<Vec<_>, HostError> = states.into_iter().map(state).collect();
    Ok(HeldStates { states: states?, furthest })
}

/// Holds a state whose files a worker left.
pub(crate) async fn answer_commit(
    host: &DaemonHost,
    scratch: &Path,
    (step, complete): (u64, u64),
    manifest: &[u8],
) -> Result<WorkerReply, HostError> {
    let manifest = decode(manifest)?;
    let bytes = manifest.bytes();
    // Before the content is in this process's memory, there must be room for it.
    host.reserve(step, complete, bytes)?;
    let (scratch, count) = (scratch.to_owned(), manifest.files.len());
    let taken = blocking(move || (0..count).map(|index| take(&commit_file(&scratch, index))).collect()).await;
    let files: Vec<Bytes> = taken.inspect_err(|_| host.give_up(bytes))?;
    if files.iter().zip(&manifest.files).any(|(content, file)| content.len() as u64 != file.bytes) {
        host.give_up(bytes);
        return Err(HostError::NotHeld("a file has another length than its manifest says".to_owned()));
    }
    host.hold_reserved(Commit { step, complete, manifest, files }).await.map(|()| WorkerReply::Done)
}

/// Says what nodes hold.
pub(crate) async fn answer_held(host: &DaemonHost) -> Result<WorkerReply, HostError> {
    let HeldStates { states, furthest } = host.held().await?;
    let encode = |state: HeldState| (state.step, state.manifest.encode(), state.nodes);
    Ok(WorkerReply::Held { states: states.into_iter().map(encode).collect(), furthest })
}

/// Leaves a file of a held state to a worker.
pub(crate) async fn answer_read_held(
    host: &DaemonHost,
    scratch: &Path,
    (manifest, nodes): (&[u8], Vec<NodeName>),
    index: u32,
) -> Result<WorkerReply, HostError> {
    let state = HeldState { step: 0, manifest: decode(manifest)?, nodes };
    let Some(file) = state.manifest.files.get(index as usize) else {
        return Err(HostError::NotHeld("the state has no such file".to_owned()));
    };
    let content = host.read_held(&state, file).await?;
    let path = held_file(scratch, index);
    blocking(move || std::fs::write(&path, content).map_err(|error| failed("write", &path, &error))).await?;
    Ok(WorkerReply::Done)
}
