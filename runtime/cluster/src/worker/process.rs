//! The daemon's side: starting a worker, asking it to stop, and noticing at once that it has died.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::{Assignment, STOP_LINE};

/// How long a worker may take to save its state once asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A worker process that was started.
pub(crate) struct WorkerProcess {
    child: Child,
    input: Option<ChildStdin>,
}

/// How a worker process ended.
pub(crate) struct Ended(pub(crate) std::io::Result<ExitStatus>);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Ok(status) => write!(f, "the worker process ended: {status}"),
            Err(error) => write!(f, "the worker process could not be watched: {error}"),
        }
    }
}

impl WorkerProcess {
    /// Starts `program` with `arguments` and hands it its assignment; its output goes to `log`.
    pub(crate) async fn start(
        (program, arguments): &(PathBuf, Vec<String>),
        assignment: &Assignment,
        log: &Path,
    ) -> std::io::Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut line = serde_json::to_string(assignment)?;
        line.push('\n');
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            input.write_all(line.as_bytes()).await?;
        }
        Ok(Self { child, input })
    }

    /// The process's id, for people who look for it.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the process ends; asks it to stop when `cancel` is set, and kills it if it does not.
    pub(crate) async fn watch(mut self, cancel: Arc<CancellationToken>) -> Ended {
        tokio::select! {
            status = self.child.wait() => return Ended(status),
            () = cancel.cancelled() => {}
        }
        if let Some(input) = &mut self.input {
            // A worker that is gone does not read; its end is noticed below.
            let _ = input.write_all(format!("{STOP_LINE}\n").as_bytes()).await;
        }
        if let Ok(status) = tokio::time::timeout(STOP_GRACE, self.child.wait()).await {
            return Ended(status);
        }
        if let Err(error) = self.child.start_kill() {
            return Ended(Err(error));
        }
        Ended(self.child.wait().await)
    }
}
