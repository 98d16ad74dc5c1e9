//! A replica in another process: one byte stream a request.
//!
//! The client sends the request as one message and keeps its direction open for as long as it
//! wants the answer; the replica sends [`TokenEvent`]s. Whatever ends the client's direction
//! cancels the request. A client that does not read fills the stream's window and then the
//! replica's bounded channel; its sequence is held, and no other. How full a replica is comes as one
//! message on a stream of another kind.
//!
//! [`serve`] and [`ask`] know bytes and frames only; [`RemoteReplica`] and [`answer`] put them on the
//! cluster's transport, which knows who may open such streams.

mod quic;

use std::io;
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sixfold_wire::codec::{self, DecodeError, EncodeError};
use sixfold_wire::frame::{FRAME_HEAD_BYTES, FrameError, FrameHead, write_frame};
use sixfold_wire::limits::MESSAGE_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::message::{GenerateRequest, ReplicaError, TokenEvent};
use crate::replica::{EventStream, ReplicaClient};

pub use quic::{RemoteReplica, answer, tell_load};

/// Kind of the byte streams that carry requests, in the transport's terms.
pub const STREAM_KIND: &str = "generate";
/// Kind of the byte streams on which a replica says how full it is.
pub const LOAD_STREAM_KIND: &str = "load";
/// How long a client may take to send its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Why a stream between a gateway and a replica broke.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream ended or failed.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    /// A frame was too long or damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message does not encode.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A message does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The request did not come in time.
    #[error("no request came in time")]
    Deadline,
}

/// Answers one request on a stream; returns when it is answered or the client has gone.
///
/// # Errors
/// [`StreamError`] where the client speaks something else or its stream broke.
pub async fn serve<R, W>(replica: &dyn ReplicaClient, mut read: R, mut write: W) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let request: GenerateRequest =
        timeout(REQUEST_DEADLINE, receive(&mut read)).await.map_err(|_| StreamError::Deadline)??;
    let mut events = match replica.generate(request).await {
        Ok(events) => events,
        Err(error) => {
            send(&mut write, &TokenEvent::Failed(error)).await?;
            return Ok(write.shutdown().await?);
        }
    };
    let answer = async {
        while let Some(event) = events.next().await {
            send(&mut write, &event).await?;
        }
        Ok(write.shutdown().await?)
    };
    // Nothing more is expected from the client: whatever its direction yields, it has gone.
    let mut nothing = [0_u8; 1];
    tokio::select! {
        answered = answer => answered,
        _ = read.read(&mut nothing) => Ok(()),
    }
}

/// Sends a request on a fresh stream; the answer is what the stream brings.
///
/// # Errors
/// [`ReplicaError::Lost`] where the stream breaks already, [`ReplicaError::Invalid`] where the
/// request is too long for a message.
pub async fn ask<R, W>(request: &GenerateRequest, read: R, mut write: W) -> Result<EventStream, ReplicaError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    send(&mut write, request).await.map_err(|error| match error {
        StreamError::Encode(error) => ReplicaError::invalid("prompt", error),
        error => ReplicaError::Lost(error.to_string()),
    })?;
    // The write half lives as long as the answer is wanted.
    let events = futures::stream::unfold(Some((read, write)), |halves| async {
        let (mut read, write) = halves?;
        match receive::<TokenEvent>(&mut read).await {
            Ok(event) if is_last(&event) => Some((event, None)),
            Ok(event) => Some((event, Some((read, write)))),
            Err(error) => Some((TokenEvent::Failed(ReplicaError::Lost(error.to_string())), None)),
        }
    });
    Ok(Box::pin(events))
}

fn is_last(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_))
}

async fn send<T: Serialize>(write: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), StreamError> {
    let mut frame = Vec::new();
    write_frame(&mut frame, |body| codec::encode_into(message, body))?;
    write.write_all(&frame).await?;
    Ok(write.flush().await?)
}

async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> Result<T, StreamError> {
    let mut head = [0; FRAME_HEAD_BYTES];
    read.read_exact(&mut head).await?;
    let head = FrameHead::parse(head, MESSAGE_BYTES_MAX)?;
    let mut body = vec![0; head.body_bytes];
    read.read_exact(&mut body).await?;
    head.check(&body)?;
    Ok(codec::decode(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{replica, request};

    async fn all(mut events: EventStream) -> Vec<TokenEvent> {
        let mut seen = Vec::new();
        while let Some(event) = events.next().await {
            seen.push(event);
        }
        seen
    }

    #[tokio::test]
    async fn a_stream_carries_the_same_events() {
        let replica = replica();
        let (client, server) = tokio::io::duplex(256);
        let (read, write) = tokio::io::split(server);
        let serving = replica.clone();
        let server = tokio::spawn(async move { serve(&serving, read, write).await });
        let (read, write) = tokio::io::split(client);
        let remote = all(ask(&request("hello"), read, write).await.unwrap()).await;
        assert_eq!(remote, all(replica.generate(request("hello")).await.unwrap()).await);
        assert_eq!(remote.len(), 14);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_cancels_its_request() {
        let replica = replica();
        let (client, server) = tokio::io::duplex(64);
        let (read, write) = tokio::io::split(server);
        let serving = replica.clone();
        let server = tokio::spawn(async move { serve(&serving, read, write).await });
        let (read, write) = tokio::io::split(client);
        let mut events = ask(&request("hello"), read, write).await.unwrap();
        assert!(matches!(events.next().await, Some(TokenEvent::Started { .. })));
        drop(events);
        let _ = server.await.unwrap();
        let mut load = replica.engine().watch();
        load.wait_for(|load| load.blocks_used == 0).await.unwrap();
    }

    #[tokio::test]
    async fn a_replica_that_dies_is_an_event() {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(client);
        let events = ask(&request("hello"), read, write).await.unwrap();
        send(&mut server, &TokenEvent::Started { prompt_tokens: vec![1] }).await.unwrap();
        server.write_all(&[1, 2, 3]).await.unwrap();
        drop(server);
        let events = all(events).await;
        assert_eq!(events.len(), 2);
        assert!(matches!(events[1], TokenEvent::Failed(ReplicaError::Lost(_))), "{events:?}");
    }

    #[tokio::test]
    async fn a_frame_of_four_gibibytes_is_refused() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(&[0xff; FRAME_HEAD_BYTES]).await.unwrap();
        let (read, write) = tokio::io::split(server);
        assert!(matches!(
            serve(&replica(), read, write).await,
            Err(StreamError::Frame(FrameError::TooLong { .. }))
        ));
    }
}
