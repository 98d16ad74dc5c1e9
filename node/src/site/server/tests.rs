//! Tests of the server: what its answers look like on the wire.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use tower::ServiceExt;

use super::*;
use crate::site::testing::folder;

async fn ask(router: Router, method: Method, path: &str) -> (StatusCode, String, String, usize) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let field = |name: &str| {
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let (status, content_type) = (response.status(), field("content-type"));
    let other = [field("content-length"), field("location"), field(LISTING_HEADER.0)].join("|");
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, content_type, other, body.len())
}

#[tokio::test]
async fn answers_head_with_the_length_and_without_the_body() {
    let files = folder(&[("a.html", "<p>text"), ("b/c.html", "")]);
    let router =
        router(Source::Folder(Folder::open(files.path()).unwrap()), SocketAddr::from(([127, 0, 0, 1], 1)));
    let html = || "text/html; charset=utf-8".to_owned();
    let got = ask(router.clone(), Method::GET, "/a.html").await;
    assert_eq!(got, (StatusCode::OK, html(), "7||".to_owned(), 7));
    let head = ask(router.clone(), Method::HEAD, "/a.html").await;
    assert_eq!(head, (StatusCode::OK, html(), "7||".to_owned(), 0));
    let (status, content_type, other, bytes) = ask(router.clone(), Method::HEAD, "/").await;
    assert_eq!((status, content_type, bytes), (StatusCode::OK, html(), 0));
    assert!(other.ends_with("||1"), "{other}");
    let moved = ask(router.clone(), Method::GET, "/b").await;
    assert_eq!((moved.0, moved.2.as_str()), (StatusCode::MOVED_PERMANENTLY, "0|/b/|"));
    assert_eq!(ask(router.clone(), Method::POST, "/a.html").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(router, Method::GET, "/none").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn is_gone_when_dropped_and_listens_on_loopback_only() {
    let server = SiteServer::start(Source::Own).await.unwrap();
    let address = server.address();
    assert!(address.ip().is_loopback());
    assert!(tokio::net::TcpStream::connect(address).await.is_ok());
    // The listener belongs to the task; the port itself may be another server's a moment later.
    let task = server.task.abort_handle();
    drop(server);
    let ended = async {
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
}
