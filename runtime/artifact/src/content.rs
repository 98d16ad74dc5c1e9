//! Memory for the content of a large file: [`ContentBuffer`].

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use memmap2::MmapMut;

/// Below this length the allocator's memory is as good.
const MAPPED_BYTES_MIN: usize = 4 << 20;

/// Bytes to be filled in once and read by many. Where the system has large pages, long content takes them: taking and
/// returning a hundred MiB in small ones costs several times as much as copying them.
#[derive(Debug)]
pub struct ContentBuffer(Memory);

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl ContentBuffer {
    /// As many zeros.
    pub fn zeroed(bytes: usize) -> Self {
        let mapped = (bytes >= MAPPED_BYTES_MIN).then(|| MmapMut::map_anon(bytes).ok()).flatten();
        let Some(map) = mapped else { return Self(Memory::Heap(vec![0; bytes])) };
        // A system without large pages gives small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Self(Memory::Mapped(map))
    }
}

impl Deref for ContentBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(map) => map,
        }
    }
}

impl DerefMut for ContentBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(map) => map,
        }
    }
}

impl From<ContentBuffer> for Bytes {
    fn from(buffer: ContentBuffer) -> Self {
        match buffer.0 {
            Memory::Heap(bytes) => bytes.into(),
            Memory::Mapped(map) => Self::from_owner(map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_written_whatever_its_length() {
        for bytes in [0, 1, MAPPED_BYTES_MIN - 1, MAPPED_BYTES_MIN, MAPPED_BYTES_MIN + 1] {
            let mut buffer = ContentBuffer::zeroed(bytes);
            assert!(buffer.len() == bytes && buffer.iter().all(|byte| *byte == 0));
            buffer.iter_mut().zip(1..).for_each(|(byte, at): (&mut u8, usize)| *byte = (at * 7) as u8);
            let content = Bytes::from(buffer);
            assert!(content.iter().copied().eq((1..=bytes).map(|at| (at * 7) as u8)), "{bytes}");
        }
    }
}
