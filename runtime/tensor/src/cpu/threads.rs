//! The engine's threads: how many one call may use, and the two ways in which kernels split work.
//!
//! Work is split into parts with disjoint outputs, which threads take one after the other, so a result never depends on
//! the count. The thread that calls a kernel is one of those that compute. The count is one a process until
//! [`set_threads`] says otherwise, because several workers often share a machine's cores; after [`pin_threads`] each
//! process has cores of its own.

mod team;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::cores::{CoreLease, unconfine_process};
use team::Team;

/// The engine's threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {wanted} engine threads")]
pub struct ThreadsError {
    /// The count that was asked for.
    pub wanted: usize,
    source: std::io::Error,
}

/// Fewest multiply-adds worth waking other threads for: some microseconds of work.
const PARALLEL_COST: usize = 1 << 18;

static ENGINE: RwLock<Engine> = RwLock::new(Engine { team: None, cores: None });
static PIN: AtomicBool = AtomicBool::new(false);

/// What computes.
struct Engine {
    /// None for the calling thread alone.
    team: Option<Arc<Team>>,
    /// Where it computes, if no other process shall.
    cores: Option<Arc<CoreLease>>,
}

/// From the next [`set_threads`] on, keeps all threads of this process on as many cores, which no other process of
/// this user on this machine gets by the same way: each thread that helps on one of them, so that one is left to the caller.
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
    engine.team = match wanted {
        1 => None,
        _ => {
            let team = start(wanted, engine.cores.clone());
            Some(Arc::new(team.map_err(|source| ThreadsError { wanted, source })?))
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

fn start(count: usize, cores: Option<Arc<CoreLease>>) -> std::io::Result<Team> {
    // The first core is left to the caller.
    Team::start(count - 1, move |index| {
        if let Some(Err(error)) = cores.as_ref().map(|cores| cores.pin_thread(index + 1)) {
            tracing::warn!(%error, "an engine thread is not pinned to a core");
        }
    })
}

/// How many threads one kernel call of this process may use.
pub fn threads() -> usize {
    team().map_or(1, |team| team.size())
}

fn team() -> Option<Arc<Team>> {
    ENGINE.read().unwrap_or_else(PoisonError::into_inner).team.clone()
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
    let parts = data.len().div_ceil(chunk_len);
    // Small work does not even ask for the team, which all threads share.
    let team = if parts > 1 && cost >= PARALLEL_COST { team() } else { None };
    let chunks = Mutex::new(data.chunks_mut(chunk_len).enumerate());
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let all = || {
        while let Some((index, chunk)) = next() {
            work(index, chunk);
        }
    };
    match team {
        Some(team) => team.call(team.size().min(parts) - 1, &all),
        None => all(),
    }
}

/// Runs `work` for each of `tasks`, which hold their outputs; `cost` is that of all, in multiply-adds.
pub(crate) fn for_each<T: Send>(tasks: &mut [T], cost: usize, work: impl Fn(&mut T) + Sync) {
    for_each_chunk(tasks, 1, cost, |_, task| task.iter_mut().for_each(&work));
}
