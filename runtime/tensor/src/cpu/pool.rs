//! Memory that buffers of the CPU take and give back: [`Pool`].
//!
//! Memory that is new costs a page fault every 4 KiB, memory from [`vec!`] a pass of zeros; what was given back costs
//! neither.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cpu::{PANEL_COLUMNS, Panels};
use crate::device::MemoryUse;
use crate::free_list::{FreeList, size_class};

/// Packed operands that are kept: as many as one pass has at once.
const PANELS_KEPT: usize = 4;

/// Freed memory of one device.
#[derive(Default)]
pub(crate) struct Pool {
    /// See [`Device::strict_cpu`](crate::Device::strict_cpu).
    strict: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: FreeList<Vec<f32>>,
    /// Packed operands, which have memory of another alignment.
    panels: Vec<Panels>,
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
        let memory = state.free.take(class).unwrap_or_else(|| vec![0.0; class]);
        let dropped = state.free.trim();
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
        state.free.give_back(memory.len(), memory);
        let dropped = state.free.trim();
        drop(state);
        drop(dropped);
    }

    /// Returns what is free to the system, and forgets how much was in use before.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        let free = (state.free.release(), std::mem::take(&mut state.panels));
        drop(state);
        drop(free);
    }

    /// What is in use, and what is kept.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        self.state().free.memory_use()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
