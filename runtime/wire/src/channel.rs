//! Frames of an actor channel: one QUIC stream between a `RemoteRef` and an actor.
//!
//! The opener sends [`Cast`](ChannelFrame::Cast) and [`Call`](ChannelFrame::Call), the acceptor
//! the rest. A frame's body is one kind byte, fixed fields, then the payload in the encoding of
//! [`codec`](crate::codec).

use crate::codec::EncodeError;
use crate::frame::write_frame;
use crate::limits::REASON_BYTES_MAX;

/// One frame of an actor channel, with borrowed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelFrame<'a> {
    /// A message without an answer.
    Cast(&'a [u8]),
    /// A message to be answered.
    Call {
        /// Chosen by the caller; grows by one with each call.
        id: u64,
        /// How long the caller waits, in milliseconds.
        deadline_ms: u32,
        /// The message.
        payload: &'a [u8],
    },
    /// The answer to a call.
    Reply {
        /// The call's id.
        id: u64,
        /// The reply.
        payload: &'a [u8],
    },
    /// The actor let the call go without an answer.
    Unanswered {
        /// The call's id.
        id: u64,
    },
    /// Messages have been handled: the sender gets these credits back.
    Credit(u32),
    /// The actor has stopped; nothing follows.
    Stopped(&'a str),
}

/// The body is not a channel frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelFrameError {
    /// No such kind in this version.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Fields are missing, surplus or out of range.
    #[error("malformed frame of kind {0}")]
    Fields(u8),
}

const CAST: u8 = 1;
const CALL: u8 = 2;
const REPLY: u8 = 3;
const UNANSWERED: u8 = 4;
const CREDIT: u8 = 5;
const STOPPED: u8 = 6;

impl<'a> ChannelFrame<'a> {
    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`ChannelFrameError`] if it is not one.
    pub fn parse(body: &'a [u8]) -> Result<Self, ChannelFrameError> {
        let Some((&kind, fields)) = body.split_first() else { return Err(ChannelFrameError::Kind(0)) };
        let frame = match kind {
            CAST => Some(Self::Cast(fields)),
            CALL => parse_call(fields),
            REPLY => split_u64(fields).map(|(id, payload)| Self::Reply { id, payload }),
            UNANSWERED => fields.try_into().ok().map(|id| Self::Unanswered { id: u64::from_le_bytes(id) }),
            CREDIT => fields.try_into().ok().map(|count| Self::Credit(u32::from_le_bytes(count))),
            STOPPED => parse_reason(fields).map(Self::Stopped),
            _ => return Err(ChannelFrameError::Kind(kind)),
        };
        frame.ok_or(ChannelFrameError::Fields(kind))
    }

    /// Appends the frame, head and all, to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let written = write_frame(out, |out| {
            self.write_body(out);
            Ok::<(), std::convert::Infallible>(())
        });
        match written {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Cast(payload) => {
                out.push(CAST);
                out.extend_from_slice(payload);
            }
            Self::Call { id, deadline_ms, payload } => {
                write_call_head(out, id, deadline_ms);
                out.extend_from_slice(payload);
            }
            Self::Reply { id, payload } => {
                write_id(out, REPLY, id);
                out.extend_from_slice(payload);
            }
            Self::Unanswered { id } => write_id(out, UNANSWERED, id),
            Self::Credit(count) => {
                out.push(CREDIT);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Self::Stopped(reason) => {
                out.push(STOPPED);
                out.extend_from_slice(clipped(reason).as_bytes());
            }
        }
    }
}

/// Appends a cast of `message`; returns the payload's length.
///
/// # Errors
/// [`EncodeError`]; `out` is then as before.
pub fn write_cast<M: serde::Serialize>(out: &mut Vec<u8>, message: &M) -> Result<usize, EncodeError> {
    write_with_payload(out, |out| out.push(CAST), message)
}

/// Appends a call with `message`; returns the payload's length.
///
/// # Errors
/// [`EncodeError`]; `out` is then as before.
pub fn write_call<M: serde::Serialize>(
    out: &mut Vec<u8>,
    id: u64,
    deadline_ms: u32,
    message: &M,
) -> Result<usize, EncodeError> {
    write_with_payload(out, |out| write_call_head(out, id, deadline_ms), message)
}

/// Appends the reply to a call; returns the payload's length.
///
/// # Errors
/// [`EncodeError`]; `out` is then as before.
pub fn write_reply<R: serde::Serialize>(out: &mut Vec<u8>, id: u64, reply: &R) -> Result<usize, EncodeError> {
    write_with_payload(out, |out| write_id(out, REPLY, id), reply)
}

fn write_with_payload<T: serde::Serialize>(
    out: &mut Vec<u8>,
    head: impl FnOnce(&mut Vec<u8>),
    value: &T,
) -> Result<usize, EncodeError> {
    let mut payload_bytes = 0;
    write_frame(out, |out| {
        head(out);
        let start = out.len();
        crate::codec::encode_into(value, out)?;
        payload_bytes = out.len() - start;
        Ok(())
    })?;
    Ok(payload_bytes)
}

fn write_call_head(out: &mut Vec<u8>, id: u64, deadline_ms: u32) {
    write_id(out, CALL, id);
    out.extend_from_slice(&deadline_ms.to_le_bytes());
}

fn write_id(out: &mut Vec<u8>, kind: u8, id: u64) {
    out.push(kind);
    out.extend_from_slice(&id.to_le_bytes());
}

fn parse_call(fields: &[u8]) -> Option<ChannelFrame<'_>> {
    let (id, rest) = split_u64(fields)?;
    let (deadline, payload) = rest.split_first_chunk::<4>()?;
    Some(ChannelFrame::Call { id, deadline_ms: u32::from_le_bytes(*deadline), payload })
}

fn parse_reason(fields: &[u8]) -> Option<&str> {
    std::str::from_utf8(fields).ok().filter(|reason| reason.len() <= REASON_BYTES_MAX)
}

fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

/// `reason`, cut to the length that a peer accepts.
pub fn clipped(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::FrameBuffer;

    fn body_of(frame: ChannelFrame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.write(&mut out);
        let mut buffer = FrameBuffer::new(1 << 20);
        buffer.push(&out);
        buffer.next_frame().unwrap().unwrap().to_vec()
    }

    fn frames(payload: &[u8], id: u64, count: u32) -> [ChannelFrame<'_>; 6] {
        [
            ChannelFrame::Cast(payload),
            ChannelFrame::Call { id, deadline_ms: count, payload },
            ChannelFrame::Reply { id, payload },
            ChannelFrame::Unanswered { id },
            ChannelFrame::Credit(count),
            ChannelFrame::Stopped("panicked"),
        ]
    }

    proptest! {
        #[test]
        fn parses_what_was_written(payload in proptest::collection::vec(any::<u8>(), 0..64), id: u64, count: u32) {
            for frame in frames(&payload, id, count) {
                let body = body_of(frame);
                prop_assert_eq!(ChannelFrame::parse(&body).unwrap(), frame);
            }
        }

        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ChannelFrame::parse(&body);
        }
    }

    #[test]
    fn wrong_fields_are_refused() {
        assert_eq!(ChannelFrame::parse(&[]), Err(ChannelFrameError::Kind(0)));
        assert_eq!(ChannelFrame::parse(&[99]), Err(ChannelFrameError::Kind(99)));
        assert_eq!(ChannelFrame::parse(&[CREDIT, 1, 0, 0, 0, 0]), Err(ChannelFrameError::Fields(CREDIT)));
        assert_eq!(ChannelFrame::parse(&[STOPPED, 0xff]), Err(ChannelFrameError::Fields(STOPPED)));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "é".repeat(REASON_BYTES_MAX);
        let body = body_of(ChannelFrame::Stopped(&reason));
        assert!(matches!(ChannelFrame::parse(&body), Ok(ChannelFrame::Stopped(_))));
    }

    /// Golden frames of wire version 1: they may never change.
    #[test]
    fn version_1_frames_are_pinned() {
        let mut out = Vec::new();
        for frame in frames(b"xy", 258, 7) {
            frame.write(&mut out);
        }
        let golden = concat!(
            "03000000e908685e017879",
            "0f000000ce626cc4020201000000000000070000007879",
            "0b000000d5ed13e30302010000000000007879",
            "09000000010aee67040201000000000000",
            "050000007559cfe40507000000",
            "09000000895c95530670616e69636b6564",
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&out), golden);
    }

    #[test]
    fn typed_and_raw_writers_agree() {
        let (mut typed, mut raw) = (Vec::new(), Vec::new());
        assert_eq!(write_cast(&mut typed, &7_u16).unwrap(), 2);
        write_call(&mut typed, 1, 2, &7_u16).unwrap();
        write_reply(&mut typed, 1, &7_u16).unwrap();
        ChannelFrame::Cast(&[7, 0]).write(&mut raw);
        ChannelFrame::Call { id: 1, deadline_ms: 2, payload: &[7, 0] }.write(&mut raw);
        ChannelFrame::Reply { id: 1, payload: &[7, 0] }.write(&mut raw);
        assert_eq!(typed, raw);
    }
}
