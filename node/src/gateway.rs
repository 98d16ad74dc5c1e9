//! The HTTP gateway: OpenAI's API in front of the cluster's inference replicas.
//!
//! A request passes through, in this order: [`accept`] (connections: caps and deadlines), [`keys`]
//! (who asks), [`limits`] (how much at once), [`body`] (bytes and nesting), [`openai`] (its form),
//! [`failover`] (a replica that answers, and another one when it dies), which finds replicas in
//! the [`pool`]. The gateway holds no model and no tokenizer; what it knows of the cluster it reads
//! from the [`ClusterView`] that its daemon keeps current.
//!
//! Read [`Gateway::start`] first.

mod accept;
mod asked;
mod body;
mod dial;
mod failover;
mod keys;
mod limits;
mod measure;
mod openai;
mod options;
mod pool;
mod routes;
mod session;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sixfold_cluster::protocol::ClusterView;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use asked::AskedTokens;
pub(crate) use dial::QuicDial;
pub(crate) use options::{GatewayOptions, TlsFiles};
pub(crate) use pool::Dial;

use asked::AskedCounts;
use limits::Limits;
use pool::Pool;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    /// Keys and prompts would travel in the open.
    #[error(
        "the HTTP gateway would listen on {0} without TLS: keys and prompts would be readable on the \
         network. Listen on a loopback address, or configure a certificate and its key"
    )]
    PlainText(SocketAddr),
    /// The certificate or its key cannot be used.
    #[error("the HTTP gateway's certificate: {0}")]
    Certificate(String),
    /// The address is taken, or not ours.
    #[error("the HTTP gateway cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the gateway is given by its daemon.
pub(crate) struct GatewayParts {
    /// The cluster: which replicas serve what, and who may ask.
    pub(crate) view: watch::Receiver<ClusterView>,
    /// How to reach a replica.
    pub(crate) dial: Arc<dyn Dial>,
    /// The process's metrics in Prometheus' text format.
    pub(crate) metrics_text: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What the handlers share.
struct Shared {
    options: GatewayOptions,
    view: watch::Receiver<ClusterView>,
    pool: Arc<Pool>,
    asked: AskedCounts,
    limits: Limits,
    draining: AtomicBool,
    metrics_text: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A running gateway. Dropping it takes no more connections; [`Gateway::drain`] also waits.
pub(crate) struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: DropGuard,
    acceptor: JoinHandle<()>,
}

impl Gateway {
    /// Listens and serves until [`Gateway::drain`].
    ///
    /// # Errors
    /// [`GatewayError`] where it may not or cannot listen.
    pub(crate) async fn start(options: GatewayOptions, parts: GatewayParts) -> Result<Self, GatewayError> {
        let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
        let listen = options.listen;
        if tls.is_none() && !listen.ip().is_loopback() {
            return Err(GatewayError::PlainText(listen));
        }
        let refused = |source| GatewayError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let shared = Arc::new(Shared::new(options, parts));
        let stop = CancellationToken::new();
        let acceptor =
            accept::Acceptor::new(listener, tls, &shared.options, routes::router(Arc::clone(&shared)));
        let (accepting, acceptor) = (stop.clone().drop_guard(), tokio::spawn(acceptor.run(stop)));
        measure::describe();
        tracing::info!(%address, "the HTTP gateway listens");
        Ok(Self { address, shared, accepting, acceptor })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often each token has been asked of each model since the last call, for the drift monitor.
    pub(crate) fn take_asked(&self) -> AskedTokens {
        self.shared.asked.take()
    }

    /// Turns not ready, takes no more connections, and waits for the answers in the making, at
    /// most as long as `grace`.
    pub(crate) async fn drain(self, grace: Duration) {
        self.shared.draining.store(true, std::sync::atomic::Ordering::Release);
        drop(self.accepting);
        // What has not ended by then is cut off with the process.
        let _ = tokio::time::timeout(grace, self.acceptor).await;
    }
}

impl Shared {
    fn new(options: GatewayOptions, parts: GatewayParts) -> Self {
        let GatewayParts { view, dial, metrics_text } = parts;
        let limits = Limits::new(options.requests_max, options.requests_per_key_max);
        let pool = Arc::new(Pool::new(view.clone(), dial));
        let (asked, draining) = (AskedCounts::default(), AtomicBool::new(false));
        Self { options, view, pool, asked, limits, draining, metrics_text }
    }
}
