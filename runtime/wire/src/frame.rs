//! Frames: `u32` length, `u32` checksum, body; all little endian.
//!
//! The checksum is the low half of XXH64 over the body. It guards what happens above QUIC (a bug,
//! a bad memory cell); on the wire QUIC's AEAD has already refused anything changed. Read
//! [`FrameBuffer`] to cut a stream into frames and [`write_frame`] for the other direction.

use xxhash_rust::xxh64::xxh64;

/// Bytes before a frame's body.
pub const FRAME_HEAD_BYTES: usize = 8;

/// The byte stream is not a sequence of good frames; it must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame claims more than the limit. Nothing was allocated for it.
    #[error("a frame claims {claimed} bytes; the limit is {limit}")]
    TooLong {
        /// Length in its head.
        claimed: u32,
        /// The limit.
        limit: usize,
    },
    /// The body does not match its checksum.
    #[error("a frame of {bytes} bytes does not match its checksum")]
    Checksum {
        /// Length of the body.
        bytes: usize,
    },
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Length of the body.
    pub body_bytes: usize,
    checksum: u32,
}

impl FrameHead {
    /// Reads a head.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] if the body would exceed `limit` bytes.
    pub fn parse(head: [u8; FRAME_HEAD_BYTES], limit: usize) -> Result<Self, FrameError> {
        let [a, b, c, d, rest @ ..] = head;
        let claimed = u32::from_le_bytes([a, b, c, d]);
        let body_bytes = usize::try_from(claimed).unwrap_or(usize::MAX);
        if body_bytes > limit {
            return Err(FrameError::TooLong { claimed, limit });
        }
        Ok(Self { body_bytes, checksum: u32::from_le_bytes(rest) })
    }

    /// Compares the body with the head's checksum.
    ///
    /// # Errors
    /// [`FrameError::Checksum`] if they differ.
    pub fn check(self, body: &[u8]) -> Result<(), FrameError> {
        if checksum(body) == self.checksum { Ok(()) } else { Err(FrameError::Checksum { bytes: body.len() }) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is the checksum")]
fn checksum(body: &[u8]) -> u32 {
    xxh64(body, 0) as u32
}

/// Appends one frame whose body is what `fill` appends. When `fill` fails, `out` is as before.
///
/// # Errors
/// What `fill` returns.
pub fn write_frame<E>(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    if let Err(error) = fill(out) {
        out.truncate(start);
        return Err(error);
    }
    let body = &out[start + FRAME_HEAD_BYTES..];
    // No caller writes more than a limit far below 4 GiB; a longer body would be refused by any reader.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = checksum(body).to_le_bytes();
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + FRAME_HEAD_BYTES].copy_from_slice(&checksum);
    Ok(())
}

/// Bytes received so far, cut into frames. Holds at most one unfinished frame and what was pushed
/// last.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    limit: usize,
}

/// An empty buffer gives back memory above this.
const IDLE_BYTES: usize = 256 << 10;

impl FrameBuffer {
    /// An empty buffer that refuses bodies longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, limit }
    }

    /// Adds received bytes.
    pub fn push(&mut self, received: &[u8]) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_BYTES);
        } else if self.start > 0 {
            self.bytes.drain(..self.start);
        }
        self.start = 0;
        self.bytes.extend_from_slice(received);
    }

    /// The body of the next complete frame, or `None` until more is pushed.
    ///
    /// # Errors
    /// [`FrameError`] for a frame that is too long or damaged; the stream cannot go on after that.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some((head, rest)) = self.bytes[self.start..].split_first_chunk::<FRAME_HEAD_BYTES>() else {
            return Ok(None);
        };
        let head = FrameHead::parse(*head, self.limit)?;
        let Some(body) = rest.get(..head.body_bytes) else { return Ok(None) };
        head.check(body)?;
        self.start += FRAME_HEAD_BYTES + head.body_bytes;
        Ok(Some(body))
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests;
