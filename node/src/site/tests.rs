//! Tests of the choice, and of the server together with the crawler.

use std::time::Instant;

use sixfold_crawl::CrawlOptions;

use super::testing::{crawl, folder, options, write};
use super::*;

async fn refusal(site: &str) -> String {
    format!("{:#}", choose(Some(site)).await.err().unwrap())
}

#[tokio::test]
async fn listings_count_neither_as_pages_nor_as_depth() {
    let files = folder(&[
        ("a/b/c/deep.html", "<a href='/a/next.html'>next</a>"),
        ("a/next.html", "<a href='/a/last.html'>last</a>"),
        ("top.html", "<p>top"),
    ]);
    // Listed pages are as near as a seed: three folders down is still no step.
    let site = choose(Some(files.path().to_str().unwrap())).await.unwrap();
    let crawled = crawl(CrawlOptions { depth_max: 0, ..options(&site) }).await;
    assert_eq!(crawled.paths(), ["/a/b/c/deep.html", "/a/next.html", "/top.html"]);
    assert_eq!((crawled.count("pages_fetched"), crawled.count("listings")), (3, 4));

    // A budget of pages is not spent on listings.
    let crawled = crawl(CrawlOptions { pages_max: 3, ..options(&site) }).await;
    assert_eq!(crawled.count("pages_fetched"), 3);

    // A folder that has an index page is a page like any other, and its links are steps.
    write(files.path(), "a/index.html", "<a href='b/c/deep.html'>deep</a>");
    let crawled = crawl(CrawlOptions { depth_max: 0, ..options(&site) }).await;
    assert_eq!((crawled.paths(), crawled.count("listings")), (vec!["/a/", "/top.html"], 1));
}

#[tokio::test]
async fn a_named_folder_is_served_and_crawled_without_a_pause() {
    let files = folder(&[("x.html", "x")]);
    let site = choose(Some(files.path().to_str().unwrap())).await.unwrap();
    let address = site.server.as_ref().unwrap().address();
    assert_eq!(site.seeds, [format!("http://{address}/")]);
    assert_eq!(site.allow_private_hosts, [address.to_string()]);
    assert_eq!((site.delay_ms, site.path_prefixes), (0, vec![]));
    assert!(site.about.contains("1 HTML files") && site.about.contains("without a pause"), "{}", site.about);
}

#[tokio::test]
async fn says_what_is_wrong_with_a_name() {
    let files = folder(&[("handbook/x.html", "x"), ("empty/x.txt", "x")]);
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    assert!(refusal(&path("handbok")).await.contains("did you mean"));
    assert!(refusal(&path("empty")).await.contains("holds no HTML page"));
    assert!(refusal(&path("handbook/x.html")).await.contains("is no folder"));
    assert!(refusal("ftp://example.org/").await.contains("only http and https"));
    assert!(refusal("example.org").await.contains("https://example.org"));
}

#[tokio::test]
async fn without_documentation_the_site_in_the_binary_is_served() {
    let nothing = folder(&[]);
    let site = found(Places { documentation: nothing.path().to_owned(), rust: None }).await.unwrap();
    assert!(site.about.contains("out of this binary"), "{}", site.about);
    let crawled = crawl(options(&site)).await;
    assert_eq!(crawled.pages.len(), own::pages());
}

#[tokio::test]
async fn found_documentation_is_crawled_within_its_sections() {
    let files = folder(&[("d/debian-handbook/html/fr-FR/x.html", "x")]);
    for number in 0..50 {
        let next = format!("<a href='{}.html'>n</a><a href='/fr-FR/x.html'>x</a>", number + 1);
        write(files.path(), &format!("d/debian-handbook/html/en-US/{number}.html"), next);
    }
    let site = found(Places { documentation: files.path().join("d"), rust: None }).await.unwrap();
    let crawled = crawl(options(&site)).await;
    assert_eq!(crawled.pages.len(), 50);
    assert!(crawled.paths().iter().all(|path| path.starts_with("/en-US/")), "{:?}", crawled.paths());
}

#[tokio::test]
async fn an_index_page_is_fetched_once() {
    let files = folder(&[
        ("index.html", "<a href='a/x.html'>x</a>"),
        ("a/x.html", "<a href='../index.html'>back</a>"),
    ]);
    let site = choose(Some(files.path().to_str().unwrap())).await.unwrap();
    assert_eq!(crawl(options(&site)).await.paths(), ["/a/x.html", "/index.html"]);
}

/// On a real folder: the same pages every time, at a pace that leaves the time to other stages.
#[tokio::test(flavor = "multi_thread")]
async fn two_crawls_of_the_debian_handbook_are_equal() {
    let places = Places { documentation: "/usr/share/doc".into(), rust: None };
    let Some(handbook) = places.find().filter(|found| found.folder.ends_with("debian-handbook/html")) else {
        println!("skipped: the package debian-handbook is not installed");
        return;
    };
    let site = serve_folder(handbook).await.unwrap();
    let began = Instant::now();
    let first = crawl(options(&site)).await;
    let seconds = began.elapsed().as_secs_f64();
    let pages = first.pages.len();
    println!("{pages} pages in {seconds:.2} s ({:.0} pages/s), {}", pages as f64 / seconds, site.about);
    assert_eq!(format!("{pages} HTML files"), *site.about.split(['(', ')']).nth(1).unwrap());
    assert_eq!(first.count("errors"), 0);
    assert_eq!(crawl(options(&site)).await.pages, first.pages);
}
