//! Tests of `run`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use sixfold_cluster::task::{Metric, Record};
use tokio::sync::Notify;

use super::*;
use crate::testing::{Node, Site, html, links, options, redirect, status, text};

fn count(output: &TaskOutput, name: &str) -> u64 {
    match output.metrics.get(name) {
        Some(Metric::Count(count)) => *count,
        _ => 0,
    }
}

fn hash(output: &TaskOutput) -> String {
    match &output.metrics["crawl_blake3"] {
        Metric::Text(hash) => hash.clone(),
        other => panic!("{other:?}"),
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The head of a packed page.
fn packed() -> axum::http::response::Builder {
    Response::builder().header("content-type", "text/html").header("content-encoding", "gzip")
}

#[tokio::test]
async fn crawls_a_site_as_its_robots_and_sitemaps_say() {
    let site = Site::start(1, |target| match target {
        "/robots.txt" => text("User-agent: *\nDisallow: /private\n\nUser-agent: other\nDisallow: /\n"),
        "/sitemap.xml" => {
            html("<urlset><url><loc>/hidden</loc></url><url><loc>/private/2</loc></url></urlset>")
        }
        "/" => links(["/a", "/private/1", "/missing", "/image.png", "mailto:x"]),
        "/a" => html(broken_page()),
        "/hidden" => text("plain"),
        _ => status(404),
    })
    .await;
    let node = Node::new();
    let options = CrawlOptions { sitemaps: true, contact: "me@example.com".into(), ..options(&[&site], "/") };
    let output = node.crawl(&options).await.unwrap();
    let pages = node.archived(&output);
    assert_eq!(pages.keys().collect::<Vec<_>>(), [&site.url("/"), &site.url("/a"), &site.url("/hidden")]);
    assert_eq!(pages[&site.url("/a")], broken_page());
    assert_eq!((site.count("/robots.txt"), site.count("/private/1") + site.count("/private/2")), (1, 0));
    assert_eq!((count(&output, "pages_fetched"), count(&output, "errors_status_4xx")), (3, 1));
    assert_eq!((count(&output, "skipped_robots"), count(&output, "skipped_extension")), (2, 1));
    assert!(
        site.hits()
            .iter()
            .all(|hit| hit.user_agent.starts_with("sixfold/") && hit.user_agent.contains("me@"))
    );
}

/// Bytes that are no UTF-8, a NUL, and tags that never end: kept as they are.
fn broken_page() -> Vec<u8> {
    [b"<p>\xff\xfe\0\xc3\x28".to_vec(), b"<b>".repeat(20_000)].concat()
}

#[tokio::test]
async fn a_server_in_trouble_allows_nothing() {
    let site = Site::start(1, |_| status(500)).await;
    let error = Node::new().crawl(&options(&[&site], "/")).await.unwrap_err();
    assert!(
        matches!(&error, CrawlError::NoPages { why, .. } if why == "1 skipped_robots_unreachable"),
        "{error}"
    );
    assert_eq!((site.count("/robots.txt"), site.count("/")), (3, 0));
}

#[tokio::test]
async fn a_host_out_of_reach_is_named_as_such() {
    let closed = Site::start(1, |_| status(404)).await;
    let open = options(&[&closed], "/");
    let private = CrawlOptions { allow_private_hosts: Vec::new(), ..open.clone() };
    let error = Node::new().crawl(&private).await.unwrap_err();
    assert!(
        matches!(&error, CrawlError::NoPages { why, .. } if why == "1 errors_private_address"),
        "{error}"
    );
    assert!(closed.hits().is_empty());
    drop(closed);
    tokio::task::yield_now().await;
    let error = Node::new().crawl(&open).await.unwrap_err();
    assert!(matches!(&error, CrawlError::NoPages { why, .. } if why == "1 errors_connect"), "{error}");
}

#[tokio::test]
async fn a_robots_txt_without_end_counts_by_its_beginning() {
    let site = Site::start(1, |target| match target {
        "/robots.txt" => html(format!("User-agent: *\nDisallow: /private\n{}", "# x\n".repeat(1 << 20))),
        "/" => links(["/private", "/public"]),
        _ => html("x"),
    })
    .await;
    let node = Node::new();
    let output = node.crawl(&options(&[&site], "/")).await.unwrap();
    assert_eq!(node.archived(&output).into_keys().collect::<Vec<_>>(), [site.url("/"), site.url("/public")]);
}

#[tokio::test]
async fn never_connects_to_private_addresses() {
    let inner = Site::start(2, |_| html("secret")).await;
    let port = inner.address.port();
    let targets = [
        format!("http://127.0.0.2:{port}/"),
        format!("http://[::ffff:127.0.0.2]:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://0x7f000002:{port}/x"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    let listed = targets.clone();
    let site = Site::start(1, move |target| match target {
        "/" => links((0..listed.len()).map(|index| format!("/to/{index}"))),
        target => match target.strip_prefix("/to/") {
            Some(index) => redirect(&listed[index.parse::<usize>().unwrap()]),
            None => status(404),
        },
    })
    .await;
    let hosts = ["127.0.0.2", "[::ffff:7f00:2]", "localhost"].map(|host| format!("{host}:{port}"));
    let options = CrawlOptions {
        allow_hosts: hosts.into_iter().chain(["169.254.169.254".to_owned()]).collect(),
        obey_robots: false,
        retries: 0,
        ..options(&[&site], "/")
    };
    let node = Node::new();
    let output = node.crawl(&options).await.unwrap();
    assert_eq!(node.archived(&output).len(), 1);
    assert_eq!(count(&output, "errors_private_address"), 5, "{:?}", output.metrics);
    assert_eq!(count(&output, "errors_status_other"), 1);
    assert!(inner.hits().is_empty());
}

#[tokio::test]
async fn a_trap_costs_its_budget_and_other_hosts_nothing() {
    let trap = Site::start(1, |target| match target {
        "/robots.txt" => status(404),
        target => links([format!("{target}x/"), format!("{target}y/")]),
    })
    .await;
    let good = Site::start(2, |target| match target {
        "/" => links((0..30).map(|index| format!("/{index}"))),
        "/robots.txt" => status(404),
        _ => html("good"),
    })
    .await;
    let mut options = CrawlOptions { host_pages_max: Some(40), ..options(&[&trap, &good], "/") };
    options.seeds.push(good.url("/"));
    let node = Node::new();
    let output = node.crawl(&options).await.unwrap();
    let pages = node.archived(&output);
    assert_eq!(pages.keys().filter(|url| url.starts_with(&good.url("/"))).count(), 31);
    assert_eq!((pages.len(), trap.hits().len()), (71, 41));
}

#[tokio::test]
async fn bombs_and_giants_are_given_up() {
    let bomb = gzip(&vec![b' '; 32 << 20]);
    let site = Site::start(1, move |target| match target {
        "/" => links(["/bomb", "/giant", "/redirect", "/brotli"]),
        "/bomb" => packed().body(Body::from(bomb.clone())).unwrap(),
        "/giant" => html(vec![b' '; 3 << 20]),
        "/redirect" => {
            packed().status(301).header("location", "/end").body(Body::from(bomb.clone())).unwrap()
        }
        "/brotli" => Response::builder()
            .header("content-type", "text/html")
            .header("content-encoding", "br")
            .body(Body::from("x"))
            .unwrap(),
        "/end" => packed().body(Body::from(gzip(b"the end"))).unwrap(),
        _ => status(404),
    })
    .await;
    let node = Node::new();
    let options = CrawlOptions { page_bytes_max: 2 << 20, ..options(&[&site], "/") };
    let output = node.crawl(&options).await.unwrap();
    let pages = node.archived(&output);
    assert_eq!(pages.len(), 2);
    assert_eq!(pages[&site.url("/end")], b"the end");
    assert_eq!(
        (count(&output, "errors_bomb"), count(&output, "errors_too_large")),
        (1, 1),
        "{:?}",
        output.metrics
    );
    assert_eq!(count(&output, "errors_coding"), 1);
}

#[tokio::test]
async fn comes_back_when_a_server_says_so() {
    let tries = AtomicUsize::new(0);
    let site = Site::start(1, move |target| match target {
        "/" if tries.fetch_add(1, Ordering::Relaxed) == 0 => {
            Response::builder().status(503).header("retry-after", "1").body(Body::empty()).unwrap()
        }
        "/" => links(["/late"]),
        "/late" => Response::builder().status(429).header("retry-after", "3600").body(Body::empty()).unwrap(),
        _ => status(404),
    })
    .await;
    let node = Node::new();
    let output = node.crawl(&options(&[&site], "/")).await.unwrap();
    let began: Vec<Instant> =
        site.hits().iter().filter(|hit| hit.target == "/").map(|hit| hit.began).collect();
    assert_eq!((began.len(), site.count("/late")), (2, 1));
    assert!(began[1] - began[0] >= Duration::from_secs(1), "{:?}", began[1] - began[0]);
    assert_eq!((count(&output, "pages_fetched"), count(&output, "errors_status_4xx")), (1, 1));
}

#[tokio::test]
async fn pauses_between_requests_to_a_host_and_asks_hosts_side_by_side() {
    let answer = |target: &str| match target {
        "/" => links((0..4).map(|index| format!("/{index}"))),
        "/robots.txt" => text("User-agent: *\nCrawl-delay: 0.06\n"),
        _ => html("x"),
    };
    let (first, second) = (Site::start(1, answer).await, Site::start(2, answer).await);
    let mut options = CrawlOptions { delay_ms: 20, ..options(&[&first, &second], "/") };
    options.seeds.push(second.url("/"));
    Node::new().crawl(&options).await.unwrap();
    for site in [&first, &second] {
        let hits = site.hits();
        assert_eq!(hits.len(), 6);
        for pair in hits.windows(2) {
            assert!(pair[1].began - pair[0].began >= Duration::from_millis(60), "{hits:?}");
        }
    }
    let (first, second) = (first.hits(), second.hits());
    assert!(second[0].began < first[5].began && first[0].began < second[5].began);
}

#[tokio::test]
async fn follows_listings_without_counting_them() {
    let listing = |targets: &[&str]| {
        let mut response = links(targets);
        response.headers_mut().insert("x-sixfold-listing", "1".parse().unwrap());
        response
    };
    let site = Site::start(1, move |target| match target {
        "/" => listing(&["/a/", "/p.html"]),
        "/a/" => listing(&["/a/b/"]),
        "/a/b/" => listing(&["q.html", "/"]),
        "/a/b/q.html" => links(["deeper.html"]),
        "/robots.txt" => status(404),
        _ => html("x"),
    })
    .await;
    let node = Node::new();
    let output = node.crawl(&CrawlOptions { depth_max: 0, ..options(&[&site], "/") }).await.unwrap();
    let pages = node.archived(&output);
    assert_eq!(pages.keys().collect::<Vec<_>>(), [&site.url("/a/b/q.html"), &site.url("/p.html")]);
    assert_eq!((count(&output, "listings"), count(&output, "pages_fetched")), (3, 2));
}

/// A site of 60 pages that hangs at one request, once.
async fn hanging_site(at: usize) -> (Site, Arc<Notify>) {
    let hung = Arc::new(Notify::new());
    let (asked, done, tell) = (AtomicUsize::new(0), AtomicBool::new(false), Arc::clone(&hung));
    let site = Site::start(1, move |target| {
        if asked.fetch_add(1, Ordering::Relaxed) == at && !done.swap(true, Ordering::Relaxed) {
            tell.notify_one();
            let endless = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
            return Response::builder().header("content-type", "text/html").body(endless).unwrap();
        }
        match target.trim_start_matches('/').parse::<u32>() {
            Ok(page) if page < 60 => links([page * 2, page * 2 + 1, page + 7].map(|next| format!("/{next}"))),
            _ => status(404),
        }
    })
    .await;
    (site, hung)
}

#[tokio::test]
async fn a_crawl_killed_in_a_round_ends_with_the_same_pages() {
    for at in [1, 9, 30] {
        let (site, hung) = hanging_site(at).await;
        let options = CrawlOptions { round_requests: 8, ..options(&[&site], "/1") };
        let node = Node::new();
        let first = async {
            tokio::select! { _ = node.crawl(&options) => false, () = hung.notified() => true }
        };
        assert!(first.await, "the crawl ended before it was killed");
        let before = site.hits().len();
        let output = node.crawl(&options).await.unwrap();
        let pages = node.archived(&output);
        let whole = Node::new().crawl(&options).await.unwrap();
        assert_eq!(hash(&output), hash(&whole));
        assert_eq!(pages.len(), 59);
        assert_eq!(count(&output, "pages_fetched"), count(&whole, "pages_fetched"));
        // robots.txt, and what was in flight.
        let asked_again = site.hits()[..before].iter().filter(|hit| site.count(&hit.target) > 2).count();
        assert!(asked_again <= 1 + options.round_requests, "{asked_again} of {before}");
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_read_costs_time_only() {
    let (site, _) = hanging_site(usize::MAX).await;
    let options = options(&[&site], "/1");
    let node = Node::new();
    let output = node.crawl(&options).await.unwrap();
    let mut context = node.context(&options);
    context.spec.resume[0].artifact = output.artifacts[0];
    let again = run(&context, options, |_| ()).await.unwrap();
    assert_eq!(hash(&again), hash(&output));
    assert!(
        node.host.records().iter().any(|record| matches!(record, Record::Log(line) if line.contains("anew")))
    );
}

#[tokio::test]
async fn cancelling_ends_a_crawl_at_once() {
    let (site, hung) = hanging_site(3).await;
    let options = options(&[&site], "/1");
    let node = Node::new();
    let context = node.context(&options);
    let cancel = async {
        hung.notified().await;
        context.cancel.cancel();
    };
    let (result, ()) = tokio::join!(run(&context, options, |_| ()), cancel);
    assert!(matches!(result, Err(CrawlError::Cancelled)));
}
