//! The other process: the same program again, with an identity of the same cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
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
    _stdin: ChildStdin,
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
    let program = std::env::current_exe()?;
    let mut child = Command::new(program)
        .arg(CHILD)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the second process")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all((theirs.to_pem() + END_OF_IDENTITY).as_bytes())?;
    stdin.flush()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut line)?;
    let address = line.trim().parse().context("the second process did not start")?;
    Ok((
        Partner { child, _stdin: stdin, address },
        authority.issue_identity(&Peer::node("a")?, now, LIFETIME)?,
    ))
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
