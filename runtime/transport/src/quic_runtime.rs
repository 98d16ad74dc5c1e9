//! The threads that QUIC runs on.
//!
//! An endpoint whose timers share a runtime with busy actors declares live peers dead. So each
//! endpoint has its own small tokio runtime; whoever uses a connection may live on another.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::{Builder, Handle};

/// How long a dropped endpoint may take to tell its peers that it closes.
const FAREWELL: Duration = Duration::from_millis(250);

/// A tokio runtime that may be dropped anywhere.
#[derive(Debug)]
pub(crate) struct OwnedRuntime {
    runtime: Option<tokio::runtime::Runtime>,
    handle: Handle,
}

impl OwnedRuntime {
    /// A runtime of `threads` threads called `name`.
    pub(crate) fn start(name: &str, threads: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(1)
            .thread_name(name)
            .enable_all()
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the runtime once `quinn` has said good-bye to its peers, without waiting here.
    pub(crate) fn end_after(&mut self, quinn: quinn::Endpoint) {
        let Some(runtime) = self.runtime.take() else { return };
        let farewell = move || {
            let _ = runtime.block_on(async { tokio::time::timeout(FAREWELL, quinn.wait_idle()).await });
            drop(quinn);
            runtime.shutdown_background();
        };
        // Where no thread can be had, peers notice by their idle timeout.
        let _ = std::thread::Builder::new().name("sixfold-farewell".into()).spawn(farewell);
    }
}

impl Drop for OwnedRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets quinn run on a given tokio runtime, whichever one it is called from.
#[derive(Debug)]
pub(crate) struct QuicRuntime(Handle);

impl QuicRuntime {
    pub(crate) fn on(handle: &Handle) -> Arc<Self> {
        Arc::new(Self(handle.clone()))
    }
}

impl Runtime for QuicRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        let _entered = self.0.enter();
        TokioRuntime.now()
    }
}
