//! The HTTP server of a local site: loopback only, GET and HEAD only.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::folder::Folder;
use super::own;

/// Marks a generated listing: the crawler follows its links, but counts it neither as a page nor as
/// a level of depth.
pub(super) const LISTING_HEADER: (&str, &str) = ("x-sixfold-listing", "1");
/// Ports that are tried first, below those that systems hand out. An address holds the port, and a
/// document's id the address: with the same port, two crawls of a folder give the same documents.
const PORTS: std::ops::Range<u16> = 18_606..18_622;
/// Files read at the same time.
const READS_MAX: usize = 16;

/// Serves a site on loopback until dropped.
pub(crate) struct SiteServer {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

/// What is served.
pub(super) enum Source {
    /// A folder of this machine.
    Folder(Folder),
    /// The site in this binary.
    Own,
}

/// What a request gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A file, with its `Content-Type`.
    File(String, Bytes),
    /// A generated listing.
    Listing(String),
    /// The folder's address, which ends in a slash.
    Folder(String),
    /// A file that is larger than any page.
    TooLarge,
    /// Nothing is there.
    Nothing,
}

impl SiteServer {
    /// Serves on a free port.
    ///
    /// # Errors
    /// Where no port is free.
    pub(super) async fn start(source: Source) -> Result<Self> {
        let listener = listen().await.context("cannot serve a site on this machine")?;
        let address = listener.local_addr()?;
        let router = router(source, address);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the local site server stopped");
            }
        });
        Ok(Self { address, task })
    }

    /// `127.0.0.1` and the port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SiteServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen() -> std::io::Result<TcpListener> {
    for port in PORTS {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            return Ok(listener);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

struct Shared {
    source: Source,
    address: SocketAddr,
    reads: Semaphore,
}

pub(super) fn router(source: Source, address: SocketAddr) -> Router {
    let shared = Arc::new(Shared { source, address, reads: Semaphore::new(READS_MAX) });
    Router::new().route("/", get(answer)).route("/{*path}", get(answer)).with_state(shared)
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Answer {
    let Ok(_turn) = shared.reads.acquire().await else { return Answer::Nothing };
    let reader = Arc::clone(&shared);
    let read = move || match &reader.source {
        Source::Folder(folder) => folder.answer(uri.path()),
        Source::Own => own::answer(uri.path(), reader.address),
    };
    tokio::task::spawn_blocking(read).await.unwrap_or(Answer::Nothing)
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::File(content_type, bytes) => ([(CONTENT_TYPE, content_type)], bytes).into_response(),
            Self::Listing(page) => ([LISTING_HEADER], Html(page)).into_response(),
            Self::Folder(location) => (StatusCode::MOVED_PERMANENTLY, [(LOCATION, location)]).into_response(),
            Self::TooLarge => (StatusCode::FORBIDDEN, "too large to be served here\n").into_response(),
            Self::Nothing => (StatusCode::NOT_FOUND, "nothing is here\n").into_response(),
        }
    }
}

#[cfg(test)]
mod tests;
