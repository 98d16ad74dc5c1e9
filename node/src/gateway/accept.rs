//! Connections: how many, and how long one may do nothing.
//!
//! `axum::serve` has no deadline for a request's head and no cap, so the loop is our own. A
//! connection that has not made a request yet makes room for a new one at the cap, so that idle
//! connections keep nobody out.

mod stall;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::GatewayOptions;
use stall::WriteDeadline;

/// Headers of a request, with its first line, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A pause after the system refused a connection, for example for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The accept loop and what each connection needs.
pub(super) struct Acceptor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    header_deadline: Duration,
    write_deadline: Duration,
    connections: Arc<Connections>,
    tracker: TaskTracker,
}

impl Acceptor {
    pub(super) fn new(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        options: &GatewayOptions,
        router: Router,
    ) -> Self {
        Self {
            listener,
            tls,
            router,
            header_deadline: options.header_deadline(),
            write_deadline: options.write_deadline(),
            connections: Arc::new(Connections {
                max: options.connections_max.max(1),
                table: Mutex::default(),
            }),
            tracker: TaskTracker::new(),
        }
    }

    /// Accepts until `stop`, then waits for the connections' running requests.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => self.connect(stream, from, &stop),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        let Self { listener, tracker, .. } = self;
        drop(listener);
        tracker.close();
        tracker.wait().await;
    }

    fn connect(&self, stream: TcpStream, from: SocketAddr, stop: &CancellationToken) {
        let Some(connection) = self.connections.enter() else {
            tracing::debug!(%from, "every connection is busy: a new one is closed");
            return;
        };
        // Tokens are small packets that must not wait for each other.
        let _ = stream.set_nodelay(true);
        let (tls, deadline, stop) = (self.tls.clone(), self.header_deadline, stop.clone());
        let serving = Serving { router: self.router.clone(), header_deadline: deadline, connection, stop };
        let stream = WriteDeadline::new(stream, self.write_deadline);
        self.tracker.spawn(async move {
            match tls {
                None => serving.run(stream).await,
                Some(tls) => match tokio::time::timeout(deadline, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serving.run(stream).await,
                    Ok(Err(error)) => tracing::debug!(%from, %error, "the TLS handshake failed"),
                    Err(_) => tracing::debug!(%from, "the TLS handshake took too long"),
                },
            }
        });
    }
}

/// One connection.
struct Serving {
    router: Router,
    header_deadline: Duration,
    connection: Connection,
    stop: CancellationToken,
}

impl Serving {
    async fn run(self, io: impl AsyncRead + AsyncWrite + Unpin) {
        let Self { router, header_deadline, connection, stop } = self;
        let asked = Arc::clone(&connection.state);
        let service = hyper::service::service_fn(move |request| {
            asked.has_asked.store(true, Ordering::Release);
            router.clone().oneshot(request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(header_deadline).max_buf_size(HEAD_BYTES_MAX);
        let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
        let evicted = connection.state.evicted.clone();
        let mut stopping = false;
        loop {
            tokio::select! {
                // A connection that breaks is the client's affair.
                _ = &mut serving => return,
                () = evicted.cancelled() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// The open connections, by the order in which they came.
struct Connections {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Arc<ConnectionState>>,
}

#[derive(Default)]
struct ConnectionState {
    has_asked: AtomicBool,
    evicted: CancellationToken,
}

/// An entry of the table; removed when dropped.
struct Connection {
    id: u64,
    state: Arc<ConnectionState>,
    connections: Arc<Connections>,
}

impl Connections {
    /// A place for a new connection; at the cap the oldest one that has asked for nothing goes.
    fn enter(self: &Arc<Self>) -> Option<Connection> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.open.len() >= self.max {
            let idle = table.open.iter().find(|(_, state)| !state.has_asked.load(Ordering::Acquire));
            let id = idle.map(|(&id, _)| id)?;
            if let Some(state) = table.open.remove(&id) {
                state.evicted.cancel();
            }
        }
        let (id, state) = (table.next, Arc::<ConnectionState>::default());
        table.next += 1;
        table.open.insert(id, Arc::clone(&state));
        Some(Connection { id, state, connections: Arc::clone(self) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.table.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.id);
    }
}
