//! A link over a QUIC connection of its own.
//!
//! A message is its length (`u64`, little endian) and its bytes. A task writes what `send` has
//! queued; `recv` takes from the stream on the caller's thread, so that copying is spread over both.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use super::endpoint::Plane;
use super::local::{check_length, timeout};
use super::queue::{Next, Queue};
use crate::connection::{Disconnect, close_at_expiry, close_code};
use crate::handshake::Verified;
use crate::link::{LinkError, TensorLink};

/// Chunks taken from the stream at once.
const CHUNKS: usize = 32;

/// Bytes of a message that leave together with its length.
const FIRST_BYTES: usize = 256 << 10;

/// How long an end that has finished waits for the other to have everything.
const FAREWELL: Duration = Duration::from_secs(5);

/// One end of a link over QUIC.
#[derive(Debug)]
pub struct QuicLink {
    queue: Arc<Queue>,
    recv: quinn::RecvStream,
    arrived: VecDeque<Bytes>,
    connection: quinn::Connection,
    peer: String,
    silence: Duration,
    bytes_sent: u64,
    waited: Duration,
    runtime: Handle,
    /// Keeps the threads running as long as the link is there.
    _plane: Arc<Plane>,
}

impl QuicLink {
    pub(super) fn new(
        plane: &Arc<Plane>,
        verified: &Verified,
        connection: quinn::Connection,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> Self {
        let queue = Arc::new(Queue::new(plane.options().window_bytes));
        let runtime = plane.runtime().clone();
        runtime.spawn(close_at_expiry(connection.clone(), verified.expires, plane.options().clock.clone()));
        let (writing, its_plane) = (write(queue.clone(), connection.clone(), send), plane.clone());
        runtime.spawn(async move {
            writing.await;
            // The last link's good-bye needs the threads, after the link itself has been dropped.
            drop(its_plane);
        });
        Self {
            queue,
            recv,
            arrived: VecDeque::new(),
            connection,
            peer: verified.peer.to_string(),
            silence: plane.options().silence,
            bytes_sent: 0,
            waited: Duration::ZERO,
            runtime,
            _plane: plane.clone(),
        }
    }

    fn closed(&self, reason: impl ToString) -> LinkError {
        let reason = match self.connection.close_reason() {
            Some(error) => Disconnect::from(error).to_string(),
            None => reason.to_string(),
        };
        LinkError::Closed { peer: self.peer.clone(), reason }
    }

    /// The writing task may not have noticed yet that the peer is gone.
    fn check_open(&self) -> Result<(), LinkError> {
        self.connection.close_reason().map_or(Ok(()), |reason| Err(self.closed(reason)))
    }

    /// Fills `buffer` from the stream.
    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), LinkError> {
        while !buffer.is_empty() {
            let Some(chunk) = self.arrived.front_mut() else {
                self.wait()?;
                continue;
            };
            let (now, later) = buffer.split_at_mut(chunk.len().min(buffer.len()));
            chunk.copy_to_slice(now);
            buffer = later;
            if chunk.is_empty() {
                self.arrived.pop_front();
            }
        }
        Ok(())
    }

    /// Waits until something has arrived.
    fn wait(&mut self) -> Result<(), LinkError> {
        let mut chunks: [Bytes; CHUNKS] = Default::default();
        let reading = self.recv.read_chunks(&mut chunks);
        let silence = self.silence;
        let since = Instant::now();
        let read = self.runtime.block_on(async { tokio::time::timeout(silence, reading).await });
        self.waited += since.elapsed();
        match read {
            Err(_) => Err(timeout(&self.peer, self.silence)),
            Ok(Ok(Some(count))) => {
                self.arrived.extend(chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty()));
                Ok(())
            }
            Ok(Ok(None)) => Err(self.closed("it dropped the link")),
            Ok(Err(error)) => Err(self.closed(error)),
        }
    }
}

impl Drop for QuicLink {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl TensorLink for QuicLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.check_open()?;
        let length = (message.len() as u64).to_le_bytes();
        let (first, rest) = message.split_at(message.len().min(FIRST_BYTES));
        let since = Instant::now();
        let pushed = self.queue.push(Bytes::from([&length, first].concat()));
        let pushed = pushed.and_then(|()| self.queue.push_pieces(rest));
        self.waited += since.elapsed();
        pushed.map_err(|reason| self.closed(reason))?;
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        self.check_open()?;
        let bytes = message.len() as u64;
        let pushed = self.queue.push_now(Bytes::copy_from_slice(&bytes.to_le_bytes()));
        pushed.and_then(|()| self.queue.push_now(message)).map_err(|reason| self.closed(reason))?;
        self.bytes_sent += bytes;
        Ok(())
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let mut length = [0; 8];
        self.fill(&mut length)?;
        check_length(&self.peer, message.len(), u64::from_le_bytes(length))?;
        self.fill(message)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn kind(&self) -> &'static str {
        "quic"
    }
}

/// Writes until the link is dropped and everything has been written, or the connection ends.
async fn write(queue: Arc<Queue>, connection: quinn::Connection, mut send: quinn::SendStream) {
    let mut lost = std::pin::pin!(connection.closed());
    let reason = loop {
        let next = tokio::select! {
            next = queue.pop_async() => next,
            reason = &mut lost => break Disconnect::from(reason).to_string(),
        };
        let Next::Message(message) = next else { return say_goodbye(&connection, send).await };
        let bytes = message.len();
        if let Err(error) = send.write_chunk(message).await {
            break error.to_string();
        }
        queue.release(bytes);
    };
    queue.fail(&reason);
}

/// A close would overtake data, so the peer, who reads to the end, closes first.
async fn say_goodbye(connection: &quinn::Connection, mut send: quinn::SendStream) {
    let farewell = async {
        if send.finish().is_ok() && matches!(send.stopped().await, Ok(None)) {
            connection.closed().await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    connection.close(close_code::ENDED.into(), b"it dropped the link");
}
