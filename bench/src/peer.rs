//! Other processes: the same program again, with identities of the same cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sixfold_transport::identity::{Authority, Identity, Peer};

/// Argument that makes a benchmark the child of itself.
pub const CHILD: &str = "--child";

const LIFETIME: Duration = Duration::from_hours(1);
const END_OF_IDENTITY: &str = "end of identity\n";

/// Where benchmarks listen.
pub fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A running child; it ends when this is dropped.
pub struct Partner {
    child: Child,
    /// Its end is the sign for the child to end.
    stdin: ChildStdin,
    /// Where the child listens.
    pub address: SocketAddr,
}

/// Starts the child as node `b` with these arguments and returns this process's identity, node `a`.
///
/// # Errors
/// If the child does not start or does not say where it listens.
pub fn start(arguments: &[&str]) -> Result<(Partner, Identity)> {
    let now = SystemTime::now();
    let authority = Authority::create(now)?;
    let theirs = authority.issue_identity(&Peer::node("b")?, now, LIFETIME)?;
    let Spawned { child, stdin, address, .. } = spawn(&theirs, arguments)?;
    Ok((Partner { child, stdin, address }, authority.issue_identity(&Peer::node("a")?, now, LIFETIME)?))
}

/// A child that has said where it listens.
struct Spawned {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

fn spawn(identity: &Identity, arguments: &[&str]) -> Result<Spawned> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .arg(CHILD)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start another process")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all((identity.to_pem() + END_OF_IDENTITY).as_bytes())?;
    stdin.flush()?;
    let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    let address = line.trim().parse().context("the other process did not start")?;
    Ok(Spawned { child, stdin, stdout, address })
}

/// Has `count` children work together, each a rank: the last line that each printed. All listen, and know where the others
/// do ([`addresses`]).
///
/// # Errors
/// If one does not start or fails.
pub fn gang(count: usize, arguments: &[&str]) -> Result<Vec<String>> {
    let now = SystemTime::now();
    let authority = Authority::create(now)?;
    let mut members = Vec::new();
    for rank in 0..count {
        let identity = authority.issue_identity(&Peer::node(&format!("rank-{rank}"))?, now, LIFETIME)?;
        let rank = rank.to_string();
        let Spawned { child, mut stdin, stdout, address } =
            spawn(&identity, &[&[rank.as_str()], arguments].concat())?;
        writeln!(stdin, "{count}")?;
        members.push((Partner { child, stdin, address }, stdout));
    }
    let all: String = members.iter().map(|(member, _)| format!("{}\n", member.address)).collect();
    for (member, _) in &mut members {
        member.stdin.write_all(all.as_bytes())?;
        member.stdin.flush()?;
    }
    let outcome = |(mut member, mut stdout): (Partner, BufReader<ChildStdout>)| {
        let mut said = String::new();
        stdout.read_to_string(&mut said)?;
        let status = member.child.wait()?;
        anyhow::ensure!(status.success(), "a rank failed: {status}");
        Ok(said.lines().last().unwrap_or_default().to_owned())
    };
    members.into_iter().map(outcome).collect()
}

/// In a child of a [`gang`] that has said where it listens: where all do, by rank.
///
/// # Errors
/// If the parent did not tell.
pub fn addresses() -> Result<Vec<SocketAddr>> {
    let mut lines = std::io::stdin().lock().lines();
    let mut next = || lines.next().context("the parent has gone")?.map_err(anyhow::Error::from);
    let count: usize = next()?.parse()?;
    (0..count).map(|_| Ok(next()?.parse()?)).collect()
}

impl Partner {
    /// Resident memory of the child, in bytes.
    ///
    /// # Errors
    /// If the child has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        Ok(sixfold_telemetry::usage::resident_bytes(&self.child.id().to_string())?)
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: the identity that the parent gave it.
///
/// # Errors
/// If the parent gave none.
pub fn given_identity() -> Result<Identity> {
    let mut text = String::new();
    for line in std::io::stdin().lock().lines() {
        let line = line? + "\n";
        if line == END_OF_IDENTITY {
            break;
        }
        text.push_str(&line);
    }
    Ok(Identity::from_pem(&text)?)
}

/// In the child: says where it listens.
///
/// # Errors
/// If the parent has gone.
pub fn announce(address: SocketAddr) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{address}")?;
    Ok(stdout.flush()?)
}

/// In the child: waits until the parent has gone.
pub fn wait_for_parent() {
    // Any error is the end as well.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
