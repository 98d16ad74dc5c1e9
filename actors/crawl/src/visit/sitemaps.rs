//! Reads the sitemaps of the seeds' hosts: those that robots.txt names, else `/sitemap.xml`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use encoding_rs::UTF_8;
use sixfold_warc::DecodeLimits;
use url::Url;

use super::{Job, Visitor};
use crate::host_queue::{HostQueue, Step, after_pause};
use crate::page_url::PageUrl;
use crate::robots;
use crate::sitemap::{self, Sitemap};

/// Files read of one origin; the rest of a larger site is found by its links.
const FILES_MAX: usize = 100;
/// Bytes of one file, unpacked: the protocol's limit.
const FILE_BYTES_MAX: usize = 50 << 20;
/// Addresses kept of one origin.
const PAGES_MAX: usize = 200_000;
/// Redirects followed to one file.
const REDIRECTS_MAX: u32 = 5;

impl Visitor {
    /// The pages that the sitemaps of these addresses' origins name. Each origin's own pages only
    /// are believed, as the protocol has it.
    pub(crate) async fn read_sitemaps(&self, seeds: &[PageUrl]) -> BTreeSet<PageUrl> {
        let seeds = seeds.iter().filter_map(|seed| seed.url().ok());
        let origins: BTreeMap<String, Url> = seeds.map(|seed| (robots::origin(&seed), seed)).collect();
        let mut pages = BTreeSet::new();
        for seed in origins.values() {
            pages.append(&mut self.read_origin(seed).await);
        }
        pages
    }

    async fn read_origin(&self, seed: &Url) -> BTreeSet<PageUrl> {
        let origin = seed.origin();
        let mut waiting = self.first_files(seed).await;
        let mut asked = BTreeSet::new();
        let mut pages = BTreeSet::new();
        while let Some(url) = waiting.pop_front() {
            let fits = asked.len() < FILES_MAX && pages.len() < PAGES_MAX;
            if !fits || url.origin() != origin || self.forbids(&url) || !asked.insert(url.clone()) {
                continue;
            }
            self.pause(seed).await;
            let found = self.read_file(url.clone()).await.unwrap_or_default();
            self.note_request(seed);
            waiting
                .extend(found.sitemaps.iter().filter_map(|address| Url::parse(address).ok()).take(FILES_MAX));
            let named = found.pages.iter().filter_map(|address| PageUrl::join(&url, address, UTF_8).ok());
            pages.extend(named.filter(|page| page.url().is_ok_and(|page| page.origin() == origin)));
        }
        pages
    }

    /// The sitemaps to begin with. Asks for robots.txt where it is not known, obeyed or not: it is
    /// where sitemaps are announced.
    async fn first_files(&self, seed: &Url) -> VecDeque<Url> {
        if self.known_robots(seed).is_none() {
            let mut queue = HostQueue::new([Job::Robots(0)], self.manners(), self.ready(&host(seed)), 0);
            loop {
                match queue.step(self.now_ms()) {
                    Step::Request(_) => drop(self.ask_robots(seed, &mut queue).await),
                    Step::Wait(until_ms) => {
                        tokio::time::sleep_until(self.started + Duration::from_millis(until_ms)).await;
                    }
                    Step::GiveUp | Step::Done => break,
                }
            }
            self.remember_ready(host(seed), queue.ready_ms());
        }
        match self.known_robots(seed) {
            Some(robots) if !robots.sitemaps().is_empty() => robots.sitemaps().iter().cloned().collect(),
            Some(_) => seed.join("/sitemap.xml").into_iter().collect(),
            None => VecDeque::new(),
        }
    }

    async fn read_file(&self, mut url: Url) -> Option<Sitemap> {
        let limits = DecodeLimits { bytes_max: FILE_BYTES_MAX, ratio_max: self.options.unpack_ratio_max };
        for _ in 0..=REDIRECTS_MAX {
            let mut answer = self.fetcher.get(&url).await.ok()?;
            if let Some(location) = answer.location() {
                url = url.join(&location).ok()?;
                answer.discard().await;
                continue;
            }
            if answer.status() != 200 {
                answer.discard().await;
                return None;
            }
            let file = answer.body(limits).await.ok()?;
            return sitemap::parse(&file, limits).ok();
        }
        None
    }

    fn forbids(&self, url: &Url) -> bool {
        self.options.obey_robots && self.known_robots(url).is_none_or(|robots| !robots.is_url_allowed(url))
    }

    async fn pause(&self, seed: &Url) {
        let ready = self.started + Duration::from_millis(self.ready(&host(seed)));
        tokio::time::sleep_until(ready).await;
    }

    fn note_request(&self, seed: &Url) {
        let asked_ms = self.known_robots(seed).map_or(0, |robots| self.crawl_delay_ms(&robots));
        let asked_ms = if self.options.obey_robots { asked_ms } else { 0 };
        let delay_ms = asked_ms.max(self.options.delay_ms);
        self.remember_ready(host(seed), after_pause(self.now_ms(), delay_ms));
    }
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}
