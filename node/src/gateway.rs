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
mod direct;
mod failover;
mod keys;
mod limits;
mod load;
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
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sixfold_cluster::protocol::ClusterView;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use asked::AskedTokens;
pub(crate) use dial::QuicDial;
pub(crate) use measure::vllm::BUCKETS;
pub(crate) use options::{GatewayOptions, TlsFiles};
pub(crate) use pool::Dial;

use asked::AskedCounts;
use direct::Direct;
use limits::Limits;
use load::Loads;
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
    /// The process's metrics in Prometheus' text format; its recorder knows [`BUCKETS`].
    pub(crate) metrics_text: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What the handlers share.
struct Shared {
    options: GatewayOptions,
    view: watch::Receiver<ClusterView>,
    pool: Arc<Pool>,
    asked: AskedCounts,
    loads: Loads,
    limits: Limits,
    draining: AtomicBool,
    metrics_text: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A running gateway. Dropping it takes no more connections; [`Gateway::drain`] also waits.
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    http: Option<Http>,
}

/// The HTTP side of a gateway.
struct Http {
    address: SocketAddr,
    accepting: CancellationToken,
    acceptor: Mutex<Option<JoinHandle<()>>>,
    _guard: DropGuard,
}

/// A listening socket, before anybody is served.
pub(crate) struct HttpSocket {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl HttpSocket {
    /// Listens as the options say.
    ///
    /// # Errors
    /// [`GatewayError`] where it may not or cannot.
    pub(crate) async fn bind(options: &GatewayOptions) -> Result<Self, GatewayError> {
        let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
        let listen = options.listen;
        if tls.is_none() && !listen.ip().is_loopback() {
            return Err(GatewayError::PlainText(listen));
        }
        let refused = |source| GatewayError::Listen { address: listen, source };
        Ok(Self { listener: TcpListener::bind(listen).await.map_err(refused)?, tls })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn serve(self, shared: &Arc<Shared>) -> std::io::Result<Http> {
        let (address, accepting) = (self.address()?, CancellationToken::new());
        let router = routes::router(Arc::clone(shared));
        let acceptor = accept::Acceptor::new(self.listener, self.tls, &shared.options, router);
        let acceptor = tokio::spawn(acceptor.run(accepting.clone()));
        tracing::info!(%address, "the HTTP gateway listens");
        let guard = accepting.clone().drop_guard();
        Ok(Http { address, accepting, acceptor: Mutex::new(Some(acceptor)), _guard: guard })
    }
}

impl Gateway {
    /// Finds replicas from now on, and serves HTTP on `socket` until [`Gateway::drain`].
    ///
    /// # Errors
    /// Where the socket has no address.
    pub(crate) fn start(
        options: GatewayOptions,
        parts: GatewayParts,
        socket: Option<HttpSocket>,
    ) -> std::io::Result<Self> {
        measure::describe();
        let shared = Arc::new(Shared::new(options, parts));
        let http = socket.map(|socket| socket.serve(&shared)).transpose()?;
        Ok(Self { shared, http })
    }

    /// Where it serves HTTP.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    /// All replicas as one, for questions that do not come over HTTP.
    pub(crate) fn replicas(&self) -> Direct {
        Direct { shared: Arc::clone(&self.shared) }
    }

    /// How often each token has been asked of each model since the last call, for the drift monitor.
    pub(crate) fn take_asked(&self) -> AskedTokens {
        self.shared.asked.take()
    }

    /// Turns not ready, takes no more connections, and waits for the answers in the making, at
    /// most as long as `grace`.
    pub(crate) async fn drain(&self, grace: Duration) {
        self.shared.draining.store(true, std::sync::atomic::Ordering::Release);
        let Some(http) = &self.http else { return };
        http.accepting.cancel();
        let acceptor = http.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(acceptor) = acceptor {
            // What has not ended by then is cut off with the process.
            let _ = tokio::time::timeout(grace, acceptor).await;
        }
    }
}

impl Shared {
    fn new(options: GatewayOptions, parts: GatewayParts) -> Self {
        let GatewayParts { view, dial, metrics_text } = parts;
        let limits = Limits::new(options.requests_max, options.requests_per_key_max);
        let pool = Arc::new(Pool::new(view.clone(), dial));
        let (asked, loads, draining) = (AskedCounts::default(), Loads::default(), AtomicBool::new(false));
        Self { options, view, pool, asked, loads, limits, draining, metrics_text }
    }
}
