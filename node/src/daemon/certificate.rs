//! A node's identity: made when it joins, kept in its folder, renewed by itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sixfold_transport::identity::{Clock, Identity, JoinToken, Role};
use sixfold_transport::{Connection, Endpoint, join, renew};

use crate::cli::NodeArgs;

/// Pause before the next try to renew a certificate.
const RETRY_PAUSE: Duration = Duration::from_mins(1);

fn file(dir: &Path) -> PathBuf {
    dir.join("identity.pem")
}

/// The identity in the node's folder, or a new one for the token.
pub(super) async fn obtain(args: &NodeArgs) -> Result<Identity> {
    let file = file(&args.dir);
    if file.exists() {
        let identity = Identity::load(&file)?;
        if identity.expires() > SystemTime::now() {
            return Ok(identity);
        }
        tracing::warn!("the node's certificate has expired; it joins anew");
    }
    let Some(token) = &args.token else {
        bail!(
            "{} holds no valid identity: join with `--token T`; `sixfold token create --role node` on the \
             coordinator's machine makes one",
            args.dir.display()
        );
    };
    let token: JoinToken = token.parse()?;
    if token.role != Role::Node {
        bail!(
            "this token is for a {}, not for a node: `sixfold token create --role node` makes one",
            token.role
        );
    }
    let name = args.name.clone().map_or_else(default_name, Ok)?;
    let identity =
        join(args.join, &token, &name, &Clock::system()).await.context("cannot join the cluster")?;
    identity.save(&file)?;
    Ok(identity)
}

/// The host's name as a DNS label.
fn default_name() -> Result<String> {
    let name = super::machine::host_name();
    let label: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(63)
        .collect();
    let label = label.trim_matches('-').to_owned();
    if label.is_empty() {
        bail!("this machine's name `{name}` is none for a node; choose one with `--name NAME`");
    }
    Ok(label)
}

/// Renews the certificate when half of its time is over, for as long as the process lives.
pub(super) fn keep(endpoint: Endpoint, dir: PathBuf, coordinator: SocketAddr) {
    tokio::spawn(async move {
        loop {
            crate::process::sleep_until(endpoint.identity().renew_after()).await;
            match renew_once(&endpoint, &dir, coordinator).await {
                Ok(()) => tracing::info!("the node's certificate was renewed"),
                Err(error) => {
                    tracing::warn!("the node's certificate was not renewed: {error:#}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    });
}

async fn renew_once(endpoint: &Endpoint, dir: &Path, coordinator: SocketAddr) -> Result<()> {
    let identity = renew(&connection(endpoint, coordinator).await?).await?;
    identity.save(&file(dir))?;
    Ok(endpoint.set_identity(identity)?)
}

/// The daemon's connection to the coordinator, or one of our own.
async fn connection(endpoint: &Endpoint, coordinator: SocketAddr) -> Result<Connection> {
    let connections = endpoint.connections().into_iter();
    let mut live =
        connections.filter(|one| one.peer().role() == Role::Coordinator && one.close_reason().is_none());
    match live.next() {
        Some(connection) => Ok(connection),
        None => Ok(endpoint.connect(coordinator, Role::Coordinator).await?),
    }
}
