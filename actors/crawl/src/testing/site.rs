//! A small web site on loopback that answers as a test says and remembers what it was asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// One request, as the site saw it.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) target: String,
    pub(crate) user_agent: String,
    pub(crate) began: Instant,
}

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    hits: Arc<Mutex<Vec<Hit>>>,
    server: JoinHandle<()>,
}

impl Site {
    /// Serves on 127.0.0.`last`, so that a test can have several hosts.
    pub(crate) async fn start<F>(last: u8, answer: F) -> Self
    where
        F: Fn(&str) -> Response + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::new(127, 0, 0, last)), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&hits));
        let handler = move |uri: Uri, headers: HeaderMap| {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
            async move {
                let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
                let user_agent = headers["user-agent"].to_str().unwrap().to_owned();
                log.lock().unwrap().push(Hit { target: target.clone(), user_agent, began: Instant::now() });
                answer(&target)
            }
        };
        let app = Router::new().fallback(handler);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, hits, server }
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    pub(crate) fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, target: &str) -> usize {
        self.hits().iter().filter(|hit| hit.target == target).count()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) fn html(body: impl Into<Vec<u8>>) -> Response {
    Response::builder().header("content-type", "text/html").body(Body::from(body.into())).unwrap()
}

/// A page of links.
pub(crate) fn links(targets: impl IntoIterator<Item = impl std::fmt::Display>) -> Response {
    let anchors: String = targets.into_iter().map(|target| format!("<a href='{target}'>x</a>")).collect();
    html(anchors)
}

pub(crate) fn text(body: &'static str) -> Response {
    Response::builder().header("content-type", "text/plain").body(Body::from(body)).unwrap()
}

pub(crate) fn redirect(target: &str) -> Response {
    Response::builder().status(302).header("location", target).body(Body::empty()).unwrap()
}

pub(crate) fn status(code: u16) -> Response {
    Response::builder().status(code).body(Body::empty()).unwrap()
}
