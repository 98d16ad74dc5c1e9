//! What a cluster's processes hold, while a trial runs: [`Watch`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sixfold_telemetry::usage;
use sixfold_tests::Process;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Peaks of memory, in bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peaks {
    /// The most that one process ever held.
    pub(crate) process: u64,
    /// The most that all processes held at a look, pages that they share counted for each.
    pub(crate) cluster: u64,
}

/// A thread that looks at the processes of a cluster again and again.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Peaks>>,
}

impl Watch {
    /// Watches the cluster in this folder.
    pub(crate) fn start(folder: &Path) -> Self {
        let (stop, folder) = (Arc::new(AtomicBool::new(false)), folder.display().to_string());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut peaks = Peaks::default();
            while !stopped.load(Ordering::Relaxed) {
                let ids: Vec<String> =
                    Process::of_cluster(&folder).iter().map(|process| process.id.to_string()).collect();
                // A process that has just ended holds nothing.
                let all = |of: fn(&str) -> std::io::Result<u64>| {
                    ids.iter().map(|id| of(id).unwrap_or(0)).collect::<Vec<_>>()
                };
                let largest = all(usage::peak_resident_bytes).into_iter().max().unwrap_or(0);
                peaks.process = peaks.process.max(largest);
                peaks.cluster = peaks.cluster.max(all(usage::resident_bytes).iter().sum());
                std::thread::sleep(PAUSE);
            }
            peaks
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) -> Peaks {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}
