//! `sixfold node`: joins the cluster, runs the node daemon, and serves the HTTP gateway beside it.
//!
//! The daemon itself is [`sixfold_cluster::daemon`]; this module gives it an identity, tells it
//! what the machine has and which roles this binary knows, and ends it in good order.

mod asking;
mod certificate;
mod machine;
mod training;
mod watching;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sixfold_cluster::daemon::{DaemonOptions, NodeDaemon};
use sixfold_telemetry::{MetricsHandle, Samples};
use sixfold_transport::{Endpoint, EndpointOptions, Registration};

use crate::cli::{NodeArgs, WorkerArgs};
use crate::gateway::{Gateway, GatewayOptions, GatewayParts, HttpSocket, QuicDial, TlsFiles};
use crate::local::READY_PREFIX;
use crate::{process, roles};

pub(crate) use asking::STREAM_KIND as ASK_STREAM;

/// How long a leaving node may take to hand its tasks and artefacts over.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);
/// How long answers in the making may go on while the gateway ends.
const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// Runs a node daemon until it is told to end.
pub(crate) async fn run(args: NodeArgs, metrics: MetricsHandle) -> Result<()> {
    let listen = listen_address(&args)?;
    let identity = certificate::obtain(&args).await?;
    let endpoint = Endpoint::bind(identity, &EndpointOptions::new(listen))
        .context("the node cannot listen; `--listen ADDR` chooses another address")?;
    let gateway = gateway_options(&args);
    let http = match args.http {
        Some(_) => Some(HttpSocket::bind(&gateway).await?),
        None => None,
    };
    let options = DaemonOptions {
        coordinator: args.join,
        dir: args.dir.clone(),
        capabilities: machine::capabilities(&args),
        http: http.as_ref().map(HttpSocket::address).transpose()?,
        links: args.links.into(),
        worker: (std::env::current_exe()?, WorkerArgs { pin_threads: args.pin_threads }.command_line()),
        roles: roles::all(),
        hold_bytes_max: machine::hold_bytes_max(&args),
    };
    let daemon = NodeDaemon::start(endpoint.clone(), options).await?;
    certificate::keep(endpoint.clone(), args.dir.clone(), args.join);
    let door = Door::open(&endpoint, &daemon, (gateway, http), metrics)?;
    let end = process::end(args.with_parent);
    tokio::pin!(end);
    tokio::select! {
        () = &mut end => return close(door, &daemon, true).await,
        () = daemon.joined() => {}
    }
    if let Some(address) = door.gateway.address() {
        println!("HTTP API on {address}");
    }
    println!("{READY_PREFIX}{}", endpoint.local_address()?);
    end.await;
    close(door, &daemon, args.with_parent).await
}

/// A launcher that is gone waits for nothing; a person's node hands over what it has.
async fn close(door: Door, daemon: &NodeDaemon, at_once: bool) -> Result<()> {
    if at_once {
        daemon.stop().await;
    } else {
        tracing::info!("leaving the cluster; a second Ctrl-C ends at once");
        tokio::select! {
            () = async { door.close().await; daemon.leave(LEAVE_PATIENCE).await } => {}
            () = process::end(false) => daemon.stop().await,
        }
    }
    Ok(())
}

/// Where the daemon listens: as told, or the address from which this machine reaches the coordinator.
fn listen_address(args: &NodeArgs) -> Result<SocketAddr> {
    match args.listen {
        Some(listen) if listen.ip().is_unspecified() => bail!(
            "`--listen {listen}`: other nodes need one address of this machine; leave the option out to use \
             the one from which it reaches the coordinator"
        ),
        Some(listen) => Ok(listen),
        None => {
            let any = if args.join.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let route = || -> std::io::Result<SocketAddr> {
                // Connecting a UDP socket sends nothing; it only chooses the route.
                let socket = UdpSocket::bind(any)?;
                socket.connect(args.join)?;
                socket.local_addr()
            };
            let address = route().with_context(|| format!("no route to the coordinator at {}", args.join))?;
            Ok(SocketAddr::new(address.ip(), 0))
        }
    }
}

fn gateway_options(args: &NodeArgs) -> GatewayOptions {
    let defaults = GatewayOptions::default();
    let files = args.http_certificate.clone().zip(args.http_key.clone());
    let tls = files.map(|(certificate, key)| TlsFiles { certificate, key });
    GatewayOptions { listen: args.http.unwrap_or(defaults.listen), tls, ..defaults }
}

/// What people ask this node for: over HTTP where it has a gateway, and over QUIC always.
struct Door {
    gateway: Arc<Gateway>,
    _asking: Registration,
    watching: tokio::task::JoinHandle<()>,
}

impl Door {
    fn open(
        endpoint: &Endpoint,
        daemon: &NodeDaemon,
        (options, http): (GatewayOptions, Option<HttpSocket>),
        metrics: MetricsHandle,
    ) -> Result<Self> {
        let tasks = daemon.figures_reader();
        let parts = GatewayParts {
            view: daemon.view(),
            dial: Arc::new(QuicDial { endpoint: endpoint.clone() }),
            metrics_text: Arc::new(move || {
                let mut samples = Samples::default();
                training::sample(&tasks(), &mut samples);
                metrics.render_with(samples)
            }),
        };
        let gateway = Arc::new(Gateway::start(options, parts, http)?);
        let asking = asking::serve(endpoint, Arc::clone(&gateway));
        let watching = tokio::spawn(watching::feed(endpoint.clone(), daemon.view(), Arc::clone(&gateway)));
        Ok(Self { gateway, _asking: asking, watching })
    }

    async fn close(&self) {
        self.gateway.drain(DRAIN_GRACE).await;
        self.watching.abort();
    }
}
