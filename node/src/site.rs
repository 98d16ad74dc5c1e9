//! A small local web server for a folder of documentation, so that it is crawled as any site is.
//!
//! Folders without an index page get a generated listing, marked with a header: the crawler
//! follows its links but counts it neither as a page nor as a level of depth.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use tower_http::services::ServeDir;

/// Marks a generated listing.
const LISTING_HEADER: (&str, &str) = ("x-sixfold-listing", "1");
/// Entries of one listing.
const LISTING_ENTRIES_MAX: usize = 10_000;

/// A folder served over HTTP on loopback until dropped.
pub(crate) struct SiteServer {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl SiteServer {
    /// Serves `folder` on a free port.
    ///
    /// # Errors
    /// Where the folder cannot be read or no port is free.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("cannot read the folder {}", folder.display()))?;
        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let router = router(folder);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the local site server stopped");
            }
        });
        Ok(Self { address, task })
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SiteServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(folder: PathBuf) -> Router {
    let listing = Router::new().fallback(list).with_state(folder.clone());
    Router::new().fallback_service(ServeDir::new(folder).append_index_html_on_directories(true).fallback(listing))
}

/// Answers what is no file: a listing for a folder, else 404.
async fn list(State(root): State<PathBuf>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let listing = tokio::task::spawn_blocking(move || listing(&root, &path)).await;
    match listing {
        Ok(Some(page)) => ([LISTING_HEADER], Html(page)).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn listing(root: &Path, url_path: &str) -> Option<String> {
    let relative: PathBuf = decode(url_path)?.split('/').filter(|part| !part.is_empty()).collect();
    let folder = root.join(relative).canonicalize().ok()?;
    if !folder.starts_with(root) || !url_path.ends_with('/') {
        return None;
    }
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .ok()?
        .take(LISTING_ENTRIES_MAX)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            // Follows links: documentation folders are full of them.
            let slash = if entry.path().is_dir() { "/" } else { "" };
            Some(format!("{}{slash}", entry.file_name().to_str()?))
        })
        .collect();
    names.sort_unstable();
    let links: String = names.iter().map(|name| format!("<li><a href=\"{0}\">{0}</a></li>\n", escape(name))).collect();
    Some(format!("<!doctype html>\n<title>{0}</title>\n<ul>\n{links}</ul>\n", escape(url_path)))
}

fn decode(path: &str) -> Option<String> {
    let url = reqwest::Url::parse("http://localhost").ok()?.join(path).ok()?;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = url.path().bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains("..") && !text.contains('\0'))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use tower::ServiceExt;

    async fn get(folder: &Path, path: &str) -> (StatusCode, bool) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(folder.canonicalize().unwrap()).oneshot(request).await.unwrap();
        (response.status(), response.headers().contains_key(LISTING_HEADER.0))
    }

    #[tokio::test]
    async fn lists_folders_without_an_index_and_serves_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/index.html"), "<p>a").unwrap();
        std::fs::write(folder.path().join("a/b/x.html"), "<p>x").unwrap();
        assert_eq!(get(folder.path(), "/").await, (StatusCode::OK, true));
        assert_eq!(get(folder.path(), "/a/").await, (StatusCode::OK, false));
        assert_eq!(get(folder.path(), "/a/b/").await, (StatusCode::OK, true));
        assert_eq!(get(folder.path(), "/a/b/x.html").await, (StatusCode::OK, false));
        assert_eq!(get(folder.path(), "/none/").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn stays_inside_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["/../", "/%2e%2e/", "/..%2f..%2fetc/"] {
            let (status, listed) = get(folder.path(), path).await;
            assert!(!status.is_success() || listed, "{path}: {status}");
            assert!(listing(folder.path(), path).is_none_or(|page| !page.contains("passwd")));
        }
    }
}
