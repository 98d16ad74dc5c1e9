//! Memory that buffers of the CPU take and give back: [`Pool`].
//!
//! A training step asks for the same sizes again and again. Memory that is new costs a page fault every 4 KiB, memory from
//! [`vec!`] a pass of zeros; what was given back costs neither.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::{PANEL_COLUMNS, Panels};
use crate::device::MemoryUse;

/// Smallest size in elements that is handed out.
const LEAST: usize = 256;
/// Packed operands that are kept: as many as one pass has at once.
const PANELS_KEPT: usize = 4;

/// Freed memory of one device.
///
/// Together with what is in use it stays within five quarters of the most that was in use at once: sizes that are needed at
/// different times of a step are all kept, those of another job are not.
#[derive(Default)]
pub(crate) struct Pool {
    /// See [`Device::strict_cpu`](crate::Device::strict_cpu).
    strict: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By size class; in each the longest freed first, with the number of pieces that were freed before it.
    free: BTreeMap<usize, VecDeque<(u64, Vec<f32>)>>,
    freed: u64,
    /// Packed operands, which have memory of another alignment.
    panels: Vec<Panels>,
    memory: MemoryUse,
}

impl Pool {
    /// Nothing freed yet.
    pub(crate) fn new(strict: bool) -> Self {
        Self { strict, state: Mutex::default() }
    }

    /// Memory for `len` elements or more, which hold anything.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Block {
        let mut memory = if len == 0 { Vec::new() } else { self.find(size_class(len)) };
        if self.strict {
            memory.fill(f32::NAN);
        }
        Block { memory, pool: self.clone() }
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    fn find(&self, class: usize) -> Vec<f32> {
        let mut state = self.state();
        let found = state.free.get_mut(&class).and_then(VecDeque::pop_back);
        let memory = match found {
            Some((_, memory)) => {
                state.memory.free_bytes -= bytes(&memory);
                memory
            }
            None => {
                state.memory.allocations += 1;
                vec![0.0; class]
            }
        };
        state.memory.used_bytes += bytes(&memory);
        state.memory.used_bytes_max = state.memory.used_bytes_max.max(state.memory.used_bytes);
        let dropped = state.trim();
        drop(state);
        // Unmapped outside of the lock.
        drop(dropped);
        memory
    }

    /// Memory for a packed operand of `rows` by `cols`, which holds anything.
    pub(crate) fn take_panels(self: &Arc<Self>, rows: usize, cols: usize) -> PanelsBlock {
        let wanted = rows * cols.next_multiple_of(PANEL_COLUMNS) * size_of::<f32>();
        let mut state = self.state();
        // The smallest that is large enough, else the largest.
        let order = |panels: &Panels| match panels.capacity_bytes() {
            bytes if bytes >= wanted => (0, bytes),
            bytes => (1, usize::MAX - bytes),
        };
        let found = (0..state.panels.len()).min_by_key(|&index| order(&state.panels[index]));
        let panels = found.map(|index| state.panels.swap_remove(index)).unwrap_or_default();
        PanelsBlock { panels, pool: self.clone() }
    }

    fn give_back_panels(&self, panels: Panels) {
        let mut state = self.state();
        state.panels.push(panels);
        let least = (0..state.panels.len()).min_by_key(|&index| state.panels[index].capacity_bytes());
        let dropped =
            least.filter(|_| state.panels.len() > PANELS_KEPT).map(|index| state.panels.swap_remove(index));
        drop(state);
        drop(dropped);
    }

    fn give_back(&self, memory: Vec<f32>) {
        let mut state = self.state();
        state.memory.used_bytes -= bytes(&memory);
        state.memory.free_bytes += bytes(&memory);
        state.freed += 1;
        let freed = state.freed;
        state.free.entry(memory.len()).or_default().push_back((freed, memory));
        let dropped = state.trim();
        drop(state);
        drop(dropped);
    }

    /// Returns what is free to the system, and forgets how much was in use before.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        state.memory.used_bytes_max = state.memory.used_bytes;
        state.memory.free_bytes = 0;
        let free = (std::mem::take(&mut state.free), std::mem::take(&mut state.panels));
        drop(state);
        drop(free);
    }

    /// What is in use, and what is kept.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        self.state().memory
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out what is above the bound, the longest freed first.
    fn trim(&mut self) -> Vec<Vec<f32>> {
        let mut dropped = Vec::new();
        let MemoryUse { used_bytes, used_bytes_max, .. } = self.memory;
        while self.memory.free_bytes > 0
            && used_bytes + self.memory.free_bytes > used_bytes_max + used_bytes_max / 4
        {
            let oldest =
                self.free.values_mut().min_by_key(|pieces| pieces.front().map_or(u64::MAX, |one| one.0));
            let Some((_, memory)) = oldest.and_then(VecDeque::pop_front) else { break };
            self.memory.free_bytes -= bytes(&memory);
            dropped.push(memory);
        }
        if !dropped.is_empty() {
            self.free.retain(|_, pieces| !pieces.is_empty());
        }
        dropped
    }
}

fn bytes(memory: &[f32]) -> usize {
    size_of_val(memory)
}

/// `len` rounded up to one of eight sizes between powers of two, so that calls of slightly other sizes find each
/// other's memory.
fn size_class(len: usize) -> usize {
    let len = len.max(LEAST);
    len.next_multiple_of(len.next_power_of_two() / 16)
}

/// Memory in use; goes back to its pool when it is dropped.
pub(crate) struct Block {
    memory: Vec<f32>,
    pool: Arc<Pool>,
}

impl Block {
    pub(crate) fn elements(&self) -> &[f32] {
        &self.memory
    }

    pub(crate) fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.memory
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.memory.is_empty() {
            self.pool.give_back(std::mem::take(&mut self.memory));
        }
    }
}

/// A packed operand in use; its memory goes back to its pool when it is dropped.
pub(crate) struct PanelsBlock {
    pub(crate) panels: Panels,
    pool: Arc<Pool>,
}

impl Drop for PanelsBlock {
    fn drop(&mut self) {
        if self.panels.capacity_bytes() > 0 {
            self.pool.give_back_panels(std::mem::take(&mut self.panels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Dtype, Mat};

    #[test]
    fn steps_of_the_same_sizes_allocate_once() {
        let pool = Arc::new(Pool::new(false));
        let step = || {
            let kept: Vec<Block> = [5000, 300, 7000].map(|len| pool.take(len)).into();
            drop(kept);
            // Another size, at another time of the step.
            drop(pool.take(3000));
        };
        step();
        let first = pool.memory_use().allocations;
        (0..3).for_each(|_| step());
        assert_eq!((first, pool.memory_use().allocations), (4, 4));
    }

    #[test]
    fn sizes_that_are_near_each_other_share_memory() {
        let pool = Arc::new(Pool::new(false));
        drop(pool.take(4096 + 500));
        assert!(pool.take(4096 + 400).elements().len() >= 4096 + 400);
        assert_eq!(pool.memory_use().allocations, 1);
        for len in [1, 255, 256, 257, 1000, 1 << 20, (1 << 20) + 1] {
            let class = size_class(len);
            assert!(class >= len && class <= (len + len / 8).max(LEAST), "{len}: {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn what_is_freed_is_bounded_by_what_was_in_use_and_the_oldest_goes_first() {
        let pool = Arc::new(Pool::new(false));
        for len in [1 << 10, 1 << 11, 1 << 12] {
            drop(pool.take(len));
        }
        let MemoryUse { used_bytes, used_bytes_max, free_bytes, .. } = pool.memory_use();
        assert_eq!((used_bytes, used_bytes_max, free_bytes), (0, 4 << 12, 4 << 12));
        drop(pool.take(1 << 12));
        assert_eq!(pool.memory_use().allocations, 3, "the newest was kept");
    }

    #[test]
    fn packed_operands_use_the_memory_that_fits_best() {
        let pool = Arc::new(Pool::new(false));
        let packed = |rows: usize| {
            let mut block = pool.take_panels(rows, 32);
            block.panels.pack_from(Mat::row_major(&vec![1.0; rows * 32], rows, 32), Dtype::F32);
            block
        };
        let sizes: Vec<_> = [10, 20, 30].map(packed).map(|block| block.panels.capacity_bytes()).into();
        let again = [25, 5, 40].map(packed).map(|block| block.panels.capacity_bytes());
        assert!(again[0] == sizes[2] && again[1] == sizes[0] && again[2] >= 40 * 128, "{sizes:?} {again:?}");
        drop((0..10).map(packed).collect::<Vec<_>>());
        assert_eq!(pool.state().panels.len(), PANELS_KEPT);
    }

    #[test]
    fn what_is_free_can_be_released() {
        let pool = Arc::new(Pool::new(false));
        let kept = pool.take(1000);
        drop(pool.take(5000));
        pool.release();
        let used_bytes = 4 * kept.elements().len();
        let expected = MemoryUse { used_bytes, used_bytes_max: used_bytes, free_bytes: 0, allocations: 2 };
        assert_eq!(pool.memory_use(), expected);
    }

    #[test]
    fn memory_without_a_content_is_poisoned_where_that_is_asked_for() {
        let pool = Arc::new(Pool::new(true));
        for _ in 0..2 {
            let mut block = pool.take(300);
            assert!(block.elements().iter().all(|value| value.is_nan()));
            block.elements_mut().fill(1.0);
        }
    }
}
