//! Single frames on a stream, for openings and handshakes. Bounded before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sixfold_wire::codec::{self, DecodeError, EncodeError};
use sixfold_wire::frame::{FRAME_HEAD_BYTES, FrameError, FrameHead, write_frame};
use sixfold_wire::limits::OPENING_BYTES_MAX;

/// A frame could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FramedError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    #[error(transparent)]
    Read(#[from] quinn::ReadExactError),
    #[error("longer than the limit of an opening")]
    TooLong,
    #[error("it took too long")]
    Timeout,
}

pub(crate) async fn send<T: Serialize>(stream: &mut quinn::SendStream, value: &T) -> Result<(), FramedError> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, |out| codec::encode_into(value, out))?;
    if bytes.len() > OPENING_BYTES_MAX {
        return Err(FramedError::TooLong);
    }
    Ok(stream.write_all(&bytes).await?)
}

pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut quinn::RecvStream) -> Result<T, FramedError> {
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let head = FrameHead::parse(head, OPENING_BYTES_MAX)?;
    let mut body = vec![0; head.body_bytes];
    stream.read_exact(&mut body).await?;
    head.check(&body)?;
    Ok(codec::decode(&body)?)
}
