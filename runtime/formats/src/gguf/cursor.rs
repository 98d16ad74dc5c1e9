//! A place in bytes that are read once, front to back: [`Cursor`].

use crate::error::Fault;

/// The bytes of a file and the next one of them; every length is checked before it is believed.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The offset of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// All that comes.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The next `bytes` bytes of `field`.
    pub(crate) fn take(&mut self, field: &str, bytes: u64) -> Result<&'a [u8], Fault> {
        let wanted = usize::try_from(bytes).ok().filter(|bytes| *bytes <= self.left());
        let Some(bytes) = wanted else {
            let problem = format!("has {bytes} bytes, but the file has {} from there on", self.left());
            return Err(Fault::at(field, self.at, problem));
        };
        let taken = &self.bytes[self.at..self.at + bytes];
        self.at += bytes;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N as u64)?);
        Ok(array)
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A number of things of which each takes at least `bytes_min` bytes of what is left.
    pub(crate) fn count(&mut self, field: &str, bytes_min: usize) -> Result<usize, Fault> {
        let at = self.at;
        let count = self.u64(field)?;
        let most = self.left() / bytes_min;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(Fault::at(field, at, format!("says {count}, but the file has room for {most}"))),
        }
    }

    /// A length and as many bytes of text.
    pub(crate) fn text(&mut self, field: &str) -> Result<&'a str, Fault> {
        let at = self.at;
        let bytes = self.u64(field)?;
        let text = self.take(field, bytes)?;
        std::str::from_utf8(text).map_err(|error| Fault::at(field, at, format!("is not UTF-8: {error}")))
    }
}
