//! The engine's threads: how many one call may use, and the two ways in which kernels split work.
//!
//! Work is split into parts with disjoint outputs, so a result never depends on the count. The count is one a
//! process until [`set_threads`] says otherwise, because several workers often share a machine's cores.

use std::sync::{Arc, PoisonError, RwLock};

use rayon::prelude::*;

/// The engine's threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {wanted} engine threads")]
pub struct ThreadsError {
    /// The count that was asked for.
    pub wanted: usize,
    source: rayon::ThreadPoolBuildError,
}

/// Fewest multiply-adds worth waking other threads for: some microseconds of work.
const PARALLEL_COST: usize = 1 << 18;

static POOL: RwLock<Option<Arc<rayon::ThreadPool>>> = RwLock::new(None);

/// Sets how many threads one kernel call of this process may use; 0 counts as 1.
///
/// Calls that run already keep the threads they started with.
///
/// # Errors
/// The system refuses to start the threads; the count stays as it was.
pub fn set_threads(count: usize) -> Result<(), ThreadsError> {
    let pool = match count {
        0 | 1 => None,
        wanted => Some(Arc::new(start(wanted).map_err(|source| ThreadsError { wanted, source })?)),
    };
    let before = std::mem::replace(&mut *POOL.write().unwrap_or_else(PoisonError::into_inner), pool);
    drop(before);
    Ok(())
}

fn start(count: usize) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("engine-{index}")).build()
}

/// How many threads one kernel call of this process may use.
pub fn threads() -> usize {
    pool().map_or(1, |pool| pool.current_num_threads())
}

fn pool() -> Option<Arc<rayon::ThreadPool>> {
    POOL.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How many parts to cut `cost` into: two a thread, so that a thread that lost its core holds up less.
pub(crate) fn parts(cost: usize) -> usize {
    match threads() {
        count if count > 1 && cost >= PARALLEL_COST => 2 * count,
        _ => 1,
    }
}

/// Runs `work(index, chunk)` for each chunk of `chunk_len` elements of `data`; `cost` is that of the whole, in
/// multiply-adds.
pub(crate) fn for_each_chunk<T: Send>(
    data: &mut [T],
    chunk_len: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    // Small work does not even ask for the pool, which all threads share.
    let pool = if data.len() > chunk_len && cost >= PARALLEL_COST { pool() } else { None };
    match pool {
        Some(pool) => pool.install(|| {
            data.par_chunks_mut(chunk_len).enumerate().for_each(|(index, chunk)| work(index, chunk));
        }),
        None => data.chunks_mut(chunk_len).enumerate().for_each(|(index, chunk)| work(index, chunk)),
    }
}

/// Runs `work` for each of `tasks`, which hold their outputs; `cost` is that of all, in multiply-adds.
pub(crate) fn for_each<T: Send>(tasks: &mut [T], cost: usize, work: impl Fn(&mut T) + Sync) {
    for_each_chunk(tasks, 1, cost, |_, task| task.iter_mut().for_each(&work));
}
