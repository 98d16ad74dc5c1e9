//! Freed memory of a device that later buffers use again: [`FreeList`].
//!
//! A training step asks for the same sizes again and again, and new memory is dear on every device.

use std::collections::{BTreeMap, VecDeque};

use crate::device::MemoryUse;

/// Smallest size in elements that is handed out.
const LEAST: usize = 256;

/// Pieces of memory `M` that were freed.
///
/// Together with what is in use they stay within five quarters of the most that was in use at once: sizes that are needed at
/// different times of a step are all kept, those of another job are not.
pub(crate) struct FreeList<M> {
    /// By size class; in each the longest freed first, with the number of pieces that were freed before it.
    free: BTreeMap<usize, VecDeque<(u64, M)>>,
    freed: u64,
    memory: MemoryUse,
}

impl<M> Default for FreeList<M> {
    fn default() -> Self {
        Self { free: BTreeMap::new(), freed: 0, memory: MemoryUse::default() }
    }
}

impl<M> FreeList<M> {
    /// A piece of the class, or None where the caller has to ask the system for one; in use from now on.
    pub(crate) fn take(&mut self, class: usize) -> Option<M> {
        let found = self.free.get_mut(&class).and_then(VecDeque::pop_back);
        match found {
            Some(_) => self.memory.free_bytes -= bytes(class),
            None => self.memory.allocations += 1,
        }
        self.memory.used_bytes += bytes(class);
        self.memory.used_bytes_max = self.memory.used_bytes_max.max(self.memory.used_bytes);
        found.map(|(_, piece)| piece)
    }

    /// A piece of the class is not in use any more.
    pub(crate) fn give_back(&mut self, class: usize, piece: M) {
        self.memory.used_bytes -= bytes(class);
        self.memory.free_bytes += bytes(class);
        self.freed += 1;
        self.free.entry(class).or_default().push_back((self.freed, piece));
    }

    /// Takes out what is above the bound, the longest freed first. The caller drops it outside of its lock.
    pub(crate) fn trim(&mut self) -> Vec<M> {
        let mut dropped = Vec::new();
        let MemoryUse { used_bytes, used_bytes_max, .. } = self.memory;
        while self.memory.free_bytes > 0
            && used_bytes + self.memory.free_bytes > used_bytes_max + used_bytes_max / 4
        {
            let oldest =
                self.free.iter_mut().min_by_key(|(_, pieces)| pieces.front().map_or(u64::MAX, |one| one.0));
            let Some((class, (_, piece))) =
                oldest.and_then(|(class, pieces)| Some((*class, pieces.pop_front()?)))
            else {
                break;
            };
            self.memory.free_bytes -= bytes(class);
            dropped.push(piece);
        }
        if !dropped.is_empty() {
            self.free.retain(|_, pieces| !pieces.is_empty());
        }
        dropped
    }

    /// Takes out everything, and forgets how much was in use before.
    pub(crate) fn release(&mut self) -> Vec<M> {
        self.memory.used_bytes_max = self.memory.used_bytes;
        self.drain()
    }

    /// Takes out everything.
    pub(crate) fn drain(&mut self) -> Vec<M> {
        self.memory.free_bytes = 0;
        std::mem::take(&mut self.free).into_values().flatten().map(|(_, piece)| piece).collect()
    }

    /// What is in use, and what is kept.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        self.memory
    }
}

fn bytes(class: usize) -> usize {
    class * size_of::<f32>()
}

/// `len` rounded up to one of eight sizes between powers of two, so that calls of slightly other sizes find each
/// other's memory.
pub(crate) fn size_class(len: usize) -> usize {
    let len = len.max(LEAST);
    len.next_multiple_of(len.next_power_of_two() / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_near_what_they_hold() {
        for len in [1, 255, 256, 257, 1000, 1 << 20, (1 << 20) + 1] {
            let class = size_class(len);
            assert!(class >= len && class <= (len + len / 8).max(LEAST), "{len}: {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
