//! The engine's threads: how many one call may use, and the two ways in which kernels split work.
//!
//! Work is split into parts with disjoint outputs, so a result never depends on the count. The count is one a
//! process until [`set_threads`] says otherwise, because several workers often share a machine's cores.
//! After [`pin_threads`] each has cores of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rayon::prelude::*;

use super::cores::{CoreLease, unconfine_process};

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

static ENGINE: RwLock<Engine> = RwLock::new(Engine { pool: None, cores: None });
static PIN: AtomicBool = AtomicBool::new(false);

/// What computes.
struct Engine {
    /// None for the calling thread alone.
    pool: Option<Arc<rayon::ThreadPool>>,
    /// Where it computes, if no other process shall.
    cores: Option<Arc<CoreLease>>,
}

/// From the next [`set_threads`] on, gives the engine's threads cores of their own, one each, which no other process
/// of this user on this machine gets by the same way, and keeps all threads of this process on those.
///
/// Where too few cores are free the log says so, and threads run where the system puts them.
pub fn pin_threads() {
    PIN.store(true, Ordering::Relaxed);
}

/// Sets how many threads one kernel call of this process may use; 0 counts as 1.
///
/// Calls that run already keep the threads they started with.
///
/// # Errors
/// The system refuses to start the threads; the count stays as it was.
pub fn set_threads(count: usize) -> Result<(), ThreadsError> {
    let wanted = count.max(1);
    let mut engine = ENGINE.write().unwrap_or_else(PoisonError::into_inner);
    if PIN.load(Ordering::Relaxed) {
        // Given back first: they may be among those that are wanted now.
        engine.cores = None;
        engine.cores = lease(wanted);
    }
    engine.pool = match wanted {
        1 => None,
        _ => {
            let pool = start(wanted, engine.cores.clone());
            Some(Arc::new(pool.map_err(|source| ThreadsError { wanted, source })?))
        }
    };
    Ok(())
}

fn lease(count: usize) -> Option<Arc<CoreLease>> {
    let leased = CoreLease::take(count).and_then(|cores| cores.confine_process().map(|()| Arc::new(cores)));
    if let Err(error) = &leased {
        tracing::warn!(%error, "threads are not pinned to cores");
        unconfine_process().ok();
    }
    leased.ok()
}

fn start(
    count: usize,
    cores: Option<Arc<CoreLease>>,
) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    let pin = move |index| {
        if let Some(Err(error)) = cores.as_ref().map(|cores| cores.pin_thread(index)) {
            tracing::warn!(%error, "an engine thread is not pinned to a core");
        }
    };
    let name = |index| format!("engine-{index}");
    rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(name).start_handler(pin).build()
}

/// How many threads one kernel call of this process may use.
pub fn threads() -> usize {
    pool().map_or(1, |pool| pool.current_num_threads())
}

fn pool() -> Option<Arc<rayon::ThreadPool>> {
    ENGINE.read().unwrap_or_else(PoisonError::into_inner).pool.clone()
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
