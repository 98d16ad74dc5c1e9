//! Tests of `campaign`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;
use crate::links::PageLinks;

/// A site in memory: links by address.
type Site = BTreeMap<String, Vec<String>>;

fn page(links: &[String]) -> FetchedPage {
    FetchedPage {
        request_head: Vec::new(),
        response_head: Vec::new(),
        payload: b"0123456789".to_vec(),
        digest: "sha1:X".to_owned(),
        date: OffsetDateTime::UNIX_EPOCH,
        address: None,
        links: PageLinks {
            links: links.iter().filter_map(|link| PageUrl::parse(link).ok()).collect(),
            noindex: false,
        },
        is_listing: false,
    }
}

fn answer(site: &Site, pending: &Pending) -> Outcome {
    match site.get(pending.url.as_str()) {
        Some(links) => Outcome::Page(Box::new(page(links))),
        None => Outcome::Failed(FailureClass::ClientStatus),
    }
}

/// Crawls to the end; returns the addresses in the order in which they were archived.
fn crawl(campaign: &mut Campaign, answer: impl Fn(&Pending) -> Outcome) -> Vec<String> {
    let mut archived = Vec::new();
    loop {
        let round = campaign.next_round();
        if round.is_empty() {
            return archived;
        }
        let settled: Vec<_> = round.into_iter().map(|pending| (pending.clone(), answer(&pending))).collect();
        archived.extend(campaign.settle(settled).into_iter().map(|page| page.url.to_string()));
    }
}

fn options(seed: &str) -> CrawlOptions {
    CrawlOptions::new([seed])
}

fn begin(options: CrawlOptions) -> Campaign {
    Campaign::begin(options).unwrap()
}

fn site(pages: &[(&str, &[&str])]) -> Site {
    let name = |path: &&str| format!("http://a{path}");
    pages.iter().map(|(path, links)| (name(path), links.iter().map(name).collect())).collect()
}

fn skipped(campaign: &Campaign, reason: SkipReason) -> u64 {
    campaign.state().skipped.get(&reason).copied().unwrap_or(0)
}

#[test]
fn goes_breadth_first_in_the_order_of_addresses() {
    let site = site(&[("/", &["/z", "/b"]), ("/b", &["/a"]), ("/z", &["/", "/c"]), ("/a", &[]), ("/c", &[])]);
    let mut campaign = begin(options("http://a/"));
    let order = crawl(&mut campaign, |pending| answer(&site, pending));
    assert_eq!(order, ["/", "/b", "/z", "/a", "/c"].map(|path| format!("http://a{path}")));
    assert_eq!(campaign.state().requests, 5);
}

#[test]
fn keeps_the_budgets_of_pages_depth_requests_and_bytes() {
    let endless = |pending: &Pending| {
        let base = pending.url.to_string();
        Outcome::Page(Box::new(page(&[format!("{base}a"), format!("{base}b")])))
    };
    let with = |change: fn(&mut CrawlOptions)| {
        let mut options = options("http://a/");
        change(&mut options);
        let mut campaign = begin(options);
        let pages = crawl(&mut campaign, endless).len();
        (pages, campaign)
    };
    assert_eq!(with(|options| options.pages_max = 7).0, 7);
    assert_eq!(with(|options| options.requests_max = Some(9)).0, 9);
    assert_eq!(with(|options| options.host_pages_max = Some(3)).0, 3);
    let (pages, campaign) = with(|options| options.depth_max = 2);
    assert_eq!((pages, skipped(&campaign, SkipReason::Depth)), (7, 8));
    let (pages, campaign) = with(|options| options.total_bytes_max = 45);
    assert_eq!((pages, campaign.state().bytes), (4, 40));
    let (pages, campaign) = with(|options| {
        options.frontier_urls_max = 5;
        options.round_requests = 1;
        options.requests_max = Some(50);
    });
    assert!(pages == 50 && skipped(&campaign, SkipReason::FrontierFull) > 0);
    assert!(campaign.state().frontier.len() <= 5);
}

#[test]
fn a_calendar_ends_at_its_number_of_queries_and_leaves_room_for_others() {
    let answer = |pending: &Pending| {
        let url = pending.url.to_string();
        let links = match url.split_once("month=") {
            Some((_, month)) => {
                vec![format!("http://a/calendar?month={}", month.parse::<u32>().unwrap() + 1)]
            }
            None if url == "http://a/" => vec!["http://a/calendar?month=1".into(), "http://a/page".into()],
            None => vec![],
        };
        Outcome::Page(Box::new(page(&links)))
    };
    let mut campaign = begin(CrawlOptions { query_variants_max: 12, depth_max: 500, ..options("http://a/") });
    let pages = crawl(&mut campaign, answer);
    assert_eq!((pages.len(), skipped(&campaign, SkipReason::QueryVariants)), (14, 1));
    assert!(pages.contains(&"http://a/page".to_owned()));
}

#[test]
fn a_redirect_is_a_link_of_the_same_depth_and_ends_somewhere() {
    let answer = |pending: &Pending| match pending.url.as_str() {
        "http://a/" => Outcome::Redirect(PageUrl::parse("https://www.b/").unwrap()),
        "https://www.b/" => {
            Outcome::Page(Box::new(page(&["https://www.b/loop0".into(), "https://www.b/self".into()])))
        }
        "https://www.b/self" => Outcome::Redirect(pending.url.clone()),
        other => Outcome::Redirect(PageUrl::parse(&format!("{other}0")).unwrap()),
    };
    let mut campaign = begin(CrawlOptions { redirects_max: 4, depth_max: 1, ..options("http://a/") });
    assert_eq!(crawl(&mut campaign, answer), ["https://www.b/"]);
    assert_eq!(campaign.state().redirects, 5);
    assert_eq!(skipped(&campaign, SkipReason::Redirects), 1);
    assert_eq!(campaign.state().failed[&FailureClass::OtherStatus], 1);
}

#[test]
fn only_a_seed_leads_to_another_host() {
    let answer = |pending: &Pending| match pending.url.as_str() {
        "http://a/" => Outcome::Page(Box::new(page(&["http://a/x".into(), "http://b/".into()]))),
        _ => Outcome::Redirect(PageUrl::parse("http://c/").unwrap()),
    };
    let mut campaign = begin(options("http://a/"));
    assert_eq!(crawl(&mut campaign, answer), ["http://a/"]);
    assert_eq!(skipped(&campaign, SkipReason::OutOfScope), 2);
}

#[test]
fn listings_count_neither_as_pages_nor_as_depth() {
    let answer = |pending: &Pending| {
        let url = pending.url.to_string();
        let mut found = page(&[format!("{url}d/"), format!("{url}p.html")]);
        found.is_listing = url.ends_with('/');
        Outcome::Page(Box::new(found))
    };
    let mut campaign = begin(CrawlOptions { depth_max: 0, requests_max: Some(8), ..options("http://a/") });
    let pages = crawl(&mut campaign, answer);
    assert!(pages.len() >= 3 && pages.iter().all(|page| page.ends_with("p.html")));
    assert_eq!(campaign.state().listings + pages.len() as u64, 8);
}

#[test]
fn leaves_a_host_alone_that_fails_in_a_row() {
    let answer = |pending: &Pending| match pending.url.as_str() {
        "http://a/" => {
            Outcome::Page(Box::new(page(&(0..9).map(|i| format!("http://a/{i}")).collect::<Vec<_>>())))
        }
        _ => Outcome::Failed(FailureClass::Timeout),
    };
    let options = CrawlOptions { host_failures_max: 3, round_requests: 1, ..options("http://a/") };
    let mut campaign = begin(options);
    crawl(&mut campaign, answer);
    assert_eq!(campaign.state().failed[&FailureClass::Timeout], 3);
    assert_eq!(skipped(&campaign, SkipReason::HostDown), 6);
}

#[test]
fn pages_that_ask_not_to_be_kept_are_followed_only() {
    let answer = |pending: &Pending| {
        let mut found = page(&["http://a/b".into()]);
        found.links.noindex = pending.url.as_str() == "http://a/";
        Outcome::Page(Box::new(found))
    };
    let mut campaign = begin(options("http://a/"));
    assert_eq!(crawl(&mut campaign, answer), ["http://a/b"]);
    assert_eq!(skipped(&campaign, SkipReason::NoIndex), 1);
}

#[test]
fn sitemap_pages_count_as_linked_by_the_seeds() {
    let site = site(&[("/", &[]), ("/b", &[])]);
    let mut campaign = begin(options("http://a/"));
    campaign.settle_sitemaps(["http://a/b", "http://elsewhere/"].map(|url| PageUrl::parse(url).unwrap()));
    assert_eq!(crawl(&mut campaign, |pending| answer(&site, pending)), ["http://a/", "http://a/b"]);
    assert!(campaign.state().sitemaps_read);
}

proptest! {
    /// Stopping after any round, and going on from the saved state, changes nothing.
    #[test]
    fn resumes_to_the_same_pages(
        links in proptest::collection::vec((0..30_u8, 0..30_u8), 1..120),
        stop_after in 0..6_usize,
        round_requests in 1..9_usize,
        pages_max in 1..35_u64,
    ) {
        let mut site = Site::new();
        for (from, to) in links {
            site.entry(format!("http://a/{from}")).or_default().push(format!("http://a/{to}"));
        }
        let options = CrawlOptions { round_requests, pages_max, ..options("http://a/0") };
        let mut whole = begin(options.clone());
        crawl(&mut whole, |pending| answer(&site, pending));

        let mut first = begin(options.clone());
        for _ in 0..stop_after {
            let round = first.next_round();
            first.settle(round.into_iter().map(|pending| (pending.clone(), answer(&site, &pending))));
        }
        let saved = first.state().encode().unwrap();
        // The round in flight is lost.
        first.next_round();
        let mut second = Campaign::resume(options, CrawlState::decode(&saved).unwrap()).unwrap();
        crawl(&mut second, |pending| answer(&site, pending));
        prop_assert_eq!(second.state().crawl_blake3(), whole.state().crawl_blake3());
        prop_assert_eq!(&second.state().pages, &whole.state().pages);
    }
}
