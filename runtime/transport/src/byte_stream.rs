//! Byte streams: ordered bytes both ways, for artefacts and other content too long for messages.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::de::DeserializeOwned;
use sixfold_wire::codec::{self, DecodeError};
use sixfold_wire::stream::{Refusal, StreamAnswer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framed;
use crate::identity::Peer;

/// Stream code of a writer that went away before it had finished.
const UNFINISHED: u32 = 1;

/// Both halves of an open byte stream.
#[derive(Debug)]
pub struct ByteStream {
    /// To the peer.
    pub send: SendHalf,
    /// From the peer.
    pub recv: RecvHalf,
}

impl ByteStream {
    pub(crate) fn new(send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self { send: SendHalf { stream: send, finished: false }, recv: RecvHalf(recv) }
    }
}

/// The sending half. `shutdown` ends it; if it is dropped before, the peer's read fails rather
/// than ends, so that half a content is never taken for the whole.
#[derive(Debug)]
pub struct SendHalf {
    stream: quinn::SendStream,
    finished: bool,
}

impl SendHalf {
    /// Ends the stream and waits until the peer's transport has everything.
    ///
    /// # Errors
    /// An error of the connection, or if the peer refuses to read on.
    pub async fn finish(mut self) -> io::Result<()> {
        self.finished = true;
        self.stream.finish()?;
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the peer stopped reading")),
            Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            // An error means that the stream has already ended.
            let _ = self.stream.reset(UNFINISHED.into());
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.stream), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        AsyncWrite::poll_shutdown(Pin::new(&mut self.stream), cx)
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct RecvHalf(quinn::RecvStream);

impl AsyncRead for RecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buffer)
    }
}

/// A stream that a peer wants to open.
#[derive(Debug)]
pub struct IncomingStream {
    /// The peer.
    pub from: Peer,
    pub(crate) header: Vec<u8>,
    pub(crate) send: quinn::SendStream,
    pub(crate) recv: quinn::RecvStream,
}

impl IncomingStream {
    /// The kind's header.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not an `H`.
    pub fn header<H: DeserializeOwned>(&self) -> Result<H, DecodeError> {
        codec::decode(&self.header)
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// An error of the connection.
    pub async fn accept(mut self) -> io::Result<ByteStream> {
        answer(&mut self.send, &StreamAnswer::Accepted { window: 0 }).await?;
        Ok(ByteStream::new(self.send, self.recv))
    }

    /// Refuses the stream.
    ///
    /// # Errors
    /// An error of the connection.
    pub async fn refuse(mut self, reason: &str) -> io::Result<()> {
        let reason = sixfold_wire::channel::clipped(reason).to_owned();
        answer(&mut self.send, &StreamAnswer::Refused(Refusal::Other(reason))).await
    }
}

async fn answer(send: &mut quinn::SendStream, answer: &StreamAnswer) -> io::Result<()> {
    framed::send(send, answer).await.map_err(io::Error::other)
}
