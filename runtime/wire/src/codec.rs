//! Values to bytes and back, with bounds. The only user of bincode.
//!
//! The format is bincode 2 with fixed-width little-endian integers: what a value claims in memory
//! is what it takes on the wire, so one limit bounds both. Decoding refuses trailing bytes,
//! collections with more elements than the input has bytes (a few bytes could otherwise claim
//! 2^60 zero-sized elements) and values nested deeper than [`DEPTH_MAX`](crate::limits::DEPTH_MAX).

mod bounded;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MESSAGE_BYTES_MAX;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MESSAGE_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MESSAGE_BYTES_MAX>();

/// The value cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It is longer than the limit.
    #[error("the message takes {bytes} bytes; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Its encoded length.
        bytes: usize,
    },
    /// Its `Serialize` implementation failed.
    #[error("cannot encode: {0}")]
    Unsupported(String),
}

/// The bytes are not such a value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than the limit.
    #[error("{bytes} bytes claim to be one message; the limit is {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Length of the input.
        bytes: usize,
    },
    /// The value ended before the input did.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Truncated, out of range, not UTF-8, too deep, too many elements.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// The encoding of `value`.
///
/// # Errors
/// [`EncodeError`] if it is too long or not serialisable.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Appends the encoding of `value` to `out`; on an error `out` may hold a part of it.
///
/// # Errors
/// [`EncodeError`] if it is too long or not serialisable.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let bytes = bincode::serde::encode_into_std_write(value, out, CONFIG)
        .map_err(|error| EncodeError::Unsupported(error.to_string()))?;
    if bytes > MESSAGE_BYTES_MAX { Err(EncodeError::TooLong { bytes }) } else { Ok(()) }
}

/// The value that `bytes`, all of them, encode.
///
/// # Errors
/// [`DecodeError`] for anything else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong { bytes: bytes.len() });
    }
    let budget = bounded::Budget::for_input(bytes.len());
    let (value, used) =
        bincode::serde::seed_decode_from_slice(bounded::Seed::<T>::new(&budget), bytes, CONFIG)
            .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        trailing => Err(DecodeError::Trailing(trailing)),
    }
}

#[cfg(test)]
mod tests;
