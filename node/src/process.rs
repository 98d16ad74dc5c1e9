//! The life of a long-running process: what ends it, and waiting for a time of day.

use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

/// Longest single sleep: a machine that was suspended notices within this time.
const SLEEP_MAX: Duration = Duration::from_mins(10);

/// Waits for an order to end: Ctrl-C, SIGTERM, or, for a process that a launcher started, the end
/// of standard input.
pub(crate) async fn end(with_parent: bool) {
    tokio::select! {
        () = terminated() => {}
        () = parent_gone(), if with_parent => {}
    }
}

async fn terminated() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        tracing::warn!("SIGTERM cannot be listened for");
        return interrupted().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        () = interrupted() => {}
    }
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        tracing::warn!("Ctrl-C cannot be listened for");
        std::future::pending::<()>().await;
    }
}

/// Nothing is ever written to the pipe: it only closes.
async fn parent_gone() {
    let mut input = tokio::io::stdin();
    let mut nothing = [0; 64];
    while matches!(input.read(&mut nothing).await, Ok(count) if count > 0) {}
}

/// Waits until the wall clock shows `time`.
pub(crate) async fn sleep_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(SLEEP_MAX)).await;
    }
}
