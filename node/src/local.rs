//! A temporary cluster on this machine: one coordinator and some node daemons, each a process with
//! a folder of its own.
//!
//! Children hold the read end of a pipe from this process and end when it closes, so nothing stays
//! behind even if this process is killed. A coordinator that dies is started again on its address;
//! a node that dies stays dead, as a lost machine would.

mod namespaces;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use crate::cli::Links;
use namespaces::Namespaces;

/// How long a process may take to say that it listens.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may take to end once asked.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Coordinator restarts before the cluster is given up.
const RESTARTS_MAX: u32 = 200;

/// What a daemon prints when it is ready; followed by its address.
pub(crate) const READY_PREFIX: &str = "listening on ";

/// How to start a local cluster.
pub(crate) struct LocalOptions {
    /// Where the folders of the processes go.
    pub(crate) dir: PathBuf,
    /// Node daemons.
    pub(crate) nodes: u32,
    /// Cores that each node offers; all if not said.
    pub(crate) cores: Option<u32>,
    /// Tensor links between workers.
    pub(crate) links: Links,
    /// A network namespace a node.
    pub(crate) namespaces: bool,
}

/// A running local cluster. Ends when dropped; [`LocalCluster::end`] waits for that.
pub(crate) struct LocalCluster {
    dir: PathBuf,
    cores: Option<u32>,
    links: Links,
    coordinator: SocketAddr,
    keeper: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    nodes: Vec<Process>,
    namespaces: Option<Namespaces>,
}

impl LocalCluster {
    /// Starts the coordinator. Nodes follow with [`LocalCluster::start_nodes`], which needs a token.
    pub(crate) async fn start(options: &LocalOptions) -> Result<Self> {
        let LocalOptions { dir, nodes, cores, links, namespaces } = options;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let namespaces = if *namespaces { Some(Namespaces::create(*nodes).await?) } else { None };
        let listen = SocketAddr::new(namespaces.as_ref().map_or(LOOPBACK, Namespaces::bridge), 0);
        let process = start_coordinator(dir, listen).await?;
        let coordinator = process.address;
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep_coordinator(dir.clone(), process, stop.clone()));
        Ok(Self {
            dir: dir.clone(),
            cores: *cores,
            links: *links,
            coordinator,
            keeper,
            stop,
            nodes: Vec::new(),
            namespaces,
        })
    }

    /// The folder with the first user's identity.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    /// Starts node daemons, side by side, and waits until all have joined.
    pub(crate) async fn start_nodes(&mut self, token: &str, count: u32) -> Result<()> {
        let first = self.nodes.len() as u32;
        let starting: Vec<_> =
            (first..first + count).map(|index| self.start_node(index, token)).collect::<Result<_>>()?;
        self.nodes.extend(futures::future::try_join_all(starting).await?);
        Ok(())
    }

    fn start_node(&self, index: u32, token: &str) -> Result<impl Future<Output = Result<Process>> + use<>> {
        let name = format!("node-{}", index + 1);
        let mut command = match &self.namespaces {
            Some(namespaces) => namespaces.command(index)?,
            None => Command::new(std::env::current_exe()?),
        };
        let address = self.namespaces.as_ref().map_or(LOOPBACK, |namespaces| namespaces.address(index));
        command
            .args(["node", "--with-parent", "--join", &self.coordinator.to_string(), "--name", &name])
            .args(["--listen", &SocketAddr::new(address, 0).to_string(), "--http", "127.0.0.1:0"])
            .args(["--links", self.links.as_argument()])
            .arg("--dir")
            .arg(self.dir.join(&name))
            .env("SIXFOLD_TOKEN", token);
        if let Some(cores) = self.cores {
            command.args(["--cores", &cores.to_string()]);
        }
        let log = self.dir.join(format!("{name}.log"));
        Ok(async move { Process::start(command, &log).await })
    }

    /// Ends every process and waits for it.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        for node in &mut self.nodes {
            node.release();
        }
        for node in &mut self.nodes {
            node.end().await;
        }
        let _ = (&mut self.keeper).await;
        if let Some(namespaces) = self.namespaces.take() {
            namespaces.remove().await;
        }
    }
}

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

async fn start_coordinator(dir: &Path, listen: SocketAddr) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["coordinator", "--with-parent", "--listen", &listen.to_string(), "--dir"])
        .arg(dir.join("coordinator"));
    Process::start(command, &dir.join("coordinator.log")).await
}

/// Starts the coordinator again each time that it dies, until told to stop.
async fn keep_coordinator(dir: PathBuf, mut process: Process, stop: CancellationToken) {
    for _ in 0..RESTARTS_MAX {
        tokio::select! {
            () = stop.cancelled() => {
                process.release();
                process.end().await;
                return;
            }
            _ = process.child.wait() => {
                tracing::warn!("the coordinator died; starting it again");
                match start_coordinator(&dir, process.address).await {
                    Ok(started) => process = started,
                    Err(error) => {
                        tracing::error!("the coordinator does not start again: {error:#}");
                        return;
                    }
                }
            }
        }
    }
    tracing::error!("the coordinator died {RESTARTS_MAX} times; giving up");
}

/// A child process that has said where it listens.
struct Process {
    child: Child,
    /// Keeps the process alive; apart from the child, since waiting for a child closes its input.
    lifeline: Option<ChildStdin>,
    address: SocketAddr,
}

impl Process {
    async fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log_file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        let log_file = log_file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a process of this program")?;
        let lifeline = child.stdin.take();
        let stdout = child.stdout.take().context("the process has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(address) = line.strip_prefix(READY_PREFIX) {
                    return address.parse().with_context(|| format!("`{address}` is no address"));
                }
            }
            bail!("it ended before it was ready")
        };
        let address = match tokio::time::timeout(READY_TIMEOUT, ready).await {
            Ok(Ok(address)) => address,
            Ok(Err(error)) => return Err(error.context(last_lines(log))),
            Err(_) => bail!("not ready within {} s; {}", READY_TIMEOUT.as_secs(), last_lines(log)),
        };
        // Keep the pipe open and empty: a full one would block the process.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, lifeline, address })
    }

    /// Closes the pipe that keeps the process alive.
    fn release(&mut self) {
        drop(self.lifeline.take());
    }

    async fn end(&mut self) {
        if tokio::time::timeout(END_TIMEOUT, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::warn!(%error, "cannot end a process");
        }
    }
}

/// The end of a log, for an error message.
fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("see {}; it ends with:\n{}", log.display(), lines.join("\n"))
}
