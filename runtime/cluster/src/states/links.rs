//! Tensor links for the content of large states: shared memory on one host, else QUIC with its own socket, large
//! packets and threads apart from control. [`StateLinks`].

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sixfold_artifact::{ContentBuffer, FileEntry};
use sixfold_transport::Endpoint;
use sixfold_transport::identity::{Identity, Peer};
use sixfold_transport::link::{LinkError, TensorLink};
use sixfold_transport::tensor::{LinkKey, LinkPolicy, SetupError, TensorEndpoint, TensorOptions};

use crate::transfer::TransferError;

/// Content of this length or more is worth a link of its own.
pub(crate) const LINKED_BYTES_MIN: u64 = 4 << 20;
/// Length of a message. Short enough to stay in a core's cache between the two ends.
const PIECE_BYTES: usize = 128 << 10;
/// What a link takes in before its sender waits.
const WINDOW_BYTES: usize = 8 << 20;
/// How long two daemons may take to meet.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other end may send nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// Makes links to and from other daemons. Its socket is opened with the first of them.
pub(crate) struct StateLinks {
    endpoint: Endpoint,
    policy: LinkPolicy,
    bound: Mutex<Option<(Arc<Identity>, TensorEndpoint)>>,
}

impl StateLinks {
    /// Links with the identity and on the interface of `endpoint`.
    pub(crate) fn new(endpoint: Endpoint, policy: LinkPolicy) -> Self {
        Self { endpoint, policy, bound: Mutex::new(None) }
    }

    /// The socket with this node's present certificate.
    fn bound(&self) -> Result<TensorEndpoint, TransferError> {
        let identity = self.endpoint.identity();
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((with, links)) = &*bound
            && Arc::ptr_eq(with, &identity)
        {
            return Ok(links.clone());
        }
        let bind = SocketAddr::new(self.endpoint.local_address()?.ip(), 0);
        let options = TensorOptions {
            policy: self.policy,
            threads: 1,
            window_bytes: WINDOW_BYTES,
            setup_timeout: SETUP_TIMEOUT,
            silence: SILENCE,
            ..TensorOptions::new(bind)
        };
        let links = TensorEndpoint::bind(Arc::clone(&identity), options).map_err(io::Error::other)?;
        *bound = Some((identity, links.clone()));
        Ok(links)
    }

    /// The port on which links are accepted.
    pub(crate) fn port(&self) -> Result<u16, TransferError> {
        Ok(self.bound()?.local_address()?.port())
    }

    /// Makes the link `key` to the daemon `peer` at `address`.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        peer: Peer,
        key: LinkKey,
    ) -> Result<Box<dyn TensorLink>, TransferError> {
        self.bound()?.connect(address, peer, key).await.map_err(setup)
    }

    /// Takes the link `key` from the daemon `peer`.
    pub(crate) async fn accept(
        &self,
        peer: Peer,
        key: LinkKey,
    ) -> Result<Box<dyn TensorLink>, TransferError> {
        self.bound()?.accept(peer, key).await.map_err(setup)
    }
}

fn setup(error: SetupError) -> TransferError {
    io::Error::other(error).into()
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LinkError> + Send + 'static,
) -> Result<T, TransferError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
    done.map_err(|error| io::Error::other(error).into())
}

/// Sends the contents of files, one after the other.
pub(crate) async fn push(mut link: Box<dyn TensorLink>, files: Vec<Bytes>) -> Result<(), TransferError> {
    let pieces = move |file: &Bytes| file.chunks(PIECE_BYTES).try_for_each(|piece| link.send(piece));
    on_thread(move || files.iter().try_for_each(pieces)).await
}

/// Receives the contents of files, one after the other.
pub(crate) async fn pull(
    mut link: Box<dyn TensorLink>,
    files: &[FileEntry],
) -> Result<Vec<Bytes>, TransferError> {
    let lengths: Result<Vec<usize>, _> = files.iter().map(|file| usize::try_from(file.bytes)).collect();
    let lengths = lengths.map_err(|_| TransferError::Protocol("a file too large"))?;
    let mut receive = move |bytes| {
        let mut content = ContentBuffer::zeroed(bytes);
        content.chunks_mut(PIECE_BYTES).try_for_each(|piece| link.recv(piece))?;
        Ok(Bytes::from(content))
    };
    on_thread(move || lengths.into_iter().map(&mut receive).collect()).await
}
