//! Visits the pages of a round: several hosts at a time, one request a host at a time, under each
//! host's robots.txt and at its pace.

mod sitemaps;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use encoding_rs::UTF_8;
use futures::stream::{self, StreamExt};
use robotxt::Robots;
use sixfold_warc::{DecodeLimits, sha1_base32};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;
use url::Url;

use crate::fetch::{Answer, Fetcher, FetcherError};
use crate::frontier::Pending;
use crate::host_queue::{self, HostManners, HostQueue, Step, Verdict};
use crate::links::{LinkRules, PageHeader, extract};
use crate::options::CrawlOptions;
use crate::outcome::{FailureClass, FetchedPage, Outcome, SkipReason};
use crate::page_url::PageUrl;
use crate::robots::{self, RobotsAnswer, RobotsCache};

/// The field by which our own file server marks a generated listing of a folder.
const LISTING_FIELD: &str = "x-sixfold-listing";
/// Hosts whose last request is remembered, for the pause before the next one.
const HOSTS_REMEMBERED: usize = 4096;

/// Visits pages. Remembers robots.txt and paces between rounds.
pub(crate) struct Visitor {
    fetcher: Fetcher,
    options: CrawlOptions,
    started: Instant,
    robots: Mutex<RobotsCache>,
    ready_ms: Mutex<HashMap<String, u64>>,
}

#[derive(Clone, Copy)]
enum Job {
    /// Asks for the robots.txt of an origin, by its index.
    Robots(usize),
    /// Asks for a page, by its index in the round.
    Page(usize),
}

/// An answer, its outcome, and whether it may be another one a little later.
struct Visited {
    outcome: Outcome,
    answer: host_queue::Answer,
}

impl Visited {
    fn settled(outcome: Outcome) -> Self {
        Self { outcome, answer: host_queue::Answer::Final }
    }

    fn failed(class: FailureClass) -> Self {
        let answer = if may_pass(class) { TRANSIENT } else { host_queue::Answer::Final };
        Self { outcome: Outcome::Failed(class), answer }
    }
}

/// How the request for a robots.txt ended.
enum RobotsFetch {
    Answered(u16, Vec<u8>),
    RedirectedAway,
    Failed(FailureClass),
}

const TRANSIENT: host_queue::Answer = host_queue::Answer::Transient { retry_after_ms: None };

/// Whether a request that failed so may succeed a little later.
fn may_pass(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Dns | FailureClass::Connect | FailureClass::Timeout | FailureClass::Protocol
    )
}

impl Visitor {
    /// A visitor that behaves as the options say.
    ///
    /// # Errors
    /// [`FetcherError`].
    pub(crate) fn new(options: CrawlOptions) -> Result<Self, FetcherError> {
        Ok(Self {
            fetcher: Fetcher::new(&options)?,
            options,
            started: Instant::now(),
            robots: Mutex::default(),
            ready_ms: Mutex::default(),
        })
    }

    /// Visits every page of a round and returns the outcomes in its order. `failures` tells how
    /// often a host has failed in a row so far.
    pub(crate) async fn visit_round(
        &self,
        round: &[Pending],
        failures: impl Fn(&str) -> u32,
    ) -> Vec<Outcome> {
        let mut hosts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, pending) in round.iter().enumerate() {
            hosts.entry(pending.host()).or_default().push(index);
        }
        let visits = hosts.into_iter().map(|(host, pages)| {
            let failures = failures(&host);
            self.visit_host(host, pages, round, failures)
        });
        let mut outcomes: Vec<(usize, Outcome)> = stream::iter(visits)
            .buffer_unordered(self.options.concurrency)
            .flat_map(stream::iter)
            .collect()
            .await;
        outcomes.sort_unstable_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn visit_host(
        &self,
        host: String,
        pages: Vec<usize>,
        round: &[Pending],
        failures: u32,
    ) -> Vec<(usize, Outcome)> {
        let (unknown, crawl_delay_ms) = self.origins(pages.iter().map(|&page| &round[page].url));
        let jobs = (0..unknown.len()).map(Job::Robots).chain(pages.into_iter().map(Job::Page));
        let mut queue = HostQueue::new(jobs, self.manners(), self.ready(&host), failures);
        queue.slow_down(crawl_delay_ms);
        let mut unreachable = HashMap::new();
        let mut outcomes = Vec::new();
        loop {
            while let Some((page, outcome)) = self.next_forbidden(&queue, round, &unreachable) {
                outcomes.push((page, outcome));
                queue.pass();
            }
            match queue.step(self.now_ms()) {
                Step::Done => break,
                Step::Wait(until_ms) => {
                    tokio::time::sleep_until(self.started + Duration::from_millis(until_ms)).await;
                }
                Step::GiveUp => {
                    let left = queue.drain().filter_map(|job| match job {
                        Job::Page(page) => Some((page, Outcome::Skipped(SkipReason::HostDown))),
                        Job::Robots(_) => None,
                    });
                    outcomes.extend(left);
                }
                Step::Request(Job::Robots(index)) => {
                    if let Some(class) = self.ask_robots(&unknown[index], &mut queue).await {
                        unreachable.insert(robots::origin(&unknown[index]), class);
                    }
                }
                Step::Request(Job::Page(page)) => {
                    let visited = self.visit_page(&round[page].url).await;
                    if queue.answered(self.now_ms(), visited.answer) == Verdict::Settled {
                        let failed = matches!(visited.outcome, Outcome::Failed(class) if class.is_of_host());
                        queue.judge(failed);
                        outcomes.push((page, visited.outcome));
                    }
                }
            }
        }
        self.remember_ready(host, queue.ready_ms());
        outcomes
    }

    /// The origins whose robots.txt must be asked for, and the pause that the known ones ask for.
    fn origins<'a>(&self, pages: impl Iterator<Item = &'a PageUrl>) -> (Vec<Url>, u64) {
        let mut unknown: BTreeMap<String, Url> = BTreeMap::new();
        let mut delay_ms = 0;
        for url in pages.filter_map(|page| page.url().ok()).filter(|_| self.options.obey_robots) {
            match self.known_robots(&url) {
                Some(robots) => delay_ms = delay_ms.max(self.crawl_delay_ms(&robots)),
                None => drop(unknown.insert(robots::origin(&url), url)),
            }
        }
        (unknown.into_values().collect(), delay_ms)
    }

    /// The next page in the queue, where it needs no turn: robots.txt forbids it, or could not be
    /// asked for, for a reason that holds for the page as well (`unreachable`, by origin).
    fn next_forbidden(
        &self,
        queue: &HostQueue<Job>,
        round: &[Pending],
        unreachable: &HashMap<String, FailureClass>,
    ) -> Option<(usize, Outcome)> {
        let Some(Job::Page(page)) = queue.front() else { return None };
        if !self.options.obey_robots {
            return None;
        }
        let url = round[page].url.url().ok()?;
        let outcome = match self.known_robots(&url) {
            Some(robots) if robots.is_url_allowed(&url) => return None,
            Some(_) => Outcome::Skipped(SkipReason::Robots),
            None => match unreachable.get(&robots::origin(&url)) {
                Some(&class) => Outcome::Failed(class),
                None => Outcome::Skipped(SkipReason::RobotsUnreachable),
            },
        };
        Some((page, outcome))
    }

    /// Asks for the robots.txt that speaks for a page, and remembers it. Returns how the request
    /// failed, where the host is to blame.
    async fn ask_robots(&self, page: &Url, queue: &mut HostQueue<Job>) -> Option<FailureClass> {
        let fetched = self.fetch_robots(page).await;
        let passing = match &fetched {
            RobotsFetch::Answered(status, _) => host_queue::is_transient(*status),
            RobotsFetch::RedirectedAway => false,
            RobotsFetch::Failed(class) => may_pass(*class),
        };
        let answer = if passing { TRANSIENT } else { host_queue::Answer::Final };
        if queue.answered(self.now_ms(), answer) == Verdict::Again {
            return None;
        }
        let answer = match &fetched {
            RobotsFetch::Answered(status, body) => RobotsAnswer::Answered(*status, body),
            RobotsFetch::RedirectedAway => RobotsAnswer::RedirectedAway,
            RobotsFetch::Failed(_) => RobotsAnswer::Unreachable,
        };
        queue.judge(answer.is_unreachable());
        if !answer.is_unreachable() {
            let rules = robots::rules(answer, &self.options.user_agent);
            let robots = lock(&self.robots).learn(robots::origin(page), rules, self.now_ms());
            queue.slow_down(self.crawl_delay_ms(&robots));
        }
        match fetched {
            RobotsFetch::Failed(class) if class.is_of_host() => Some(class),
            _ => None,
        }
    }

    async fn fetch_robots(&self, page: &Url) -> RobotsFetch {
        self.follow_robots(page).await.unwrap_or_else(RobotsFetch::Failed)
    }

    async fn follow_robots(&self, page: &Url) -> Result<RobotsFetch, FailureClass> {
        let limits =
            DecodeLimits { bytes_max: 4 * robots::BYTES_MAX, ratio_max: self.options.unpack_ratio_max };
        let mut url = robotxt::robots_url(page).map_err(|_| FailureClass::OtherStatus)?;
        for _ in 0..=robots::REDIRECTS_MAX {
            let answer = self.fetcher.get(&url).await?;
            let status = answer.status();
            if let Some(location) = answer.location() {
                url = url.join(&location).map_err(|_| FailureClass::OtherStatus)?;
                answer.discard().await;
            } else if status == 200 {
                return Ok(RobotsFetch::Answered(status, answer.beginning(limits).await?));
            } else {
                answer.discard().await;
                return Ok(RobotsFetch::Answered(status, Vec::new()));
            }
        }
        Ok(RobotsFetch::RedirectedAway)
    }

    async fn visit_page(&self, page: &PageUrl) -> Visited {
        let Ok(url) = page.url() else { return Visited::failed(FailureClass::OtherStatus) };
        let answer = match self.fetcher.get(&url).await {
            Ok(answer) => answer,
            Err(class) => return Visited::failed(class),
        };
        let status = answer.status();
        if let Some(location) = answer.location() {
            answer.discard().await;
            let target = PageUrl::join(&url, &location, UTF_8);
            return Visited::settled(
                target.map_or(Outcome::Failed(FailureClass::OtherStatus), Outcome::Redirect),
            );
        }
        if !matches!(status, 200 | 203) {
            let mut visited = Visited::settled(Outcome::Failed(FailureClass::of_status(status)));
            if host_queue::is_transient(status) {
                let retry_after_ms = answer.retry_after().and_then(|text| parse_retry_after(&text));
                visited.answer = host_queue::Answer::Transient { retry_after_ms };
            }
            answer.discard().await;
            return visited;
        }
        self.read_page(&url, answer).await
    }

    async fn read_page(&self, url: &Url, mut answer: Answer) -> Visited {
        let mut content_type = answer.content_type();
        if content_type.is_empty() {
            // Servers without a type send pages; a receiver may guess (RFC 9110, section 8.3).
            "text/html".clone_into(&mut content_type);
        }
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !self.options.media_types.contains(&media_type) {
            return Visited::settled(Outcome::Skipped(SkipReason::MediaType));
        }
        let limits =
            DecodeLimits { bytes_max: self.options.page_bytes_max, ratio_max: self.options.unpack_ratio_max };
        let payload = match answer.body(limits).await {
            Ok(payload) => payload,
            Err(class) => return Visited::failed(class),
        };
        let rules = LinkRules {
            obey_meta_robots: self.options.obey_meta_robots,
            links_max: self.options.page_links_max,
        };
        let robots_tag = answer.field("x-robots-tag");
        let header = PageHeader { content_type: &content_type, robots_tag: &robots_tag };
        Visited::settled(Outcome::Page(Box::new(FetchedPage {
            links: extract(&payload, url, header, rules),
            digest: sha1_base32(&payload),
            response_head: answer.archived_head(payload.len()),
            date: OffsetDateTime::now_utc(),
            address: answer.address(),
            is_listing: answer.field(LISTING_FIELD) == "1",
            request_head: std::mem::take(&mut answer.request_head),
            payload,
        })))
    }

    fn manners(&self) -> HostManners {
        HostManners {
            delay_ms: self.options.delay_ms,
            retries: self.options.retries,
            retry_wait_ms: self.options.retry_wait_ms,
            retry_after_ms_max: self.options.retry_after_ms_max,
            failures_max: self.options.host_failures_max,
        }
    }

    fn known_robots(&self, url: &Url) -> Option<Arc<Robots>> {
        lock(&self.robots).get(&robots::origin(url), self.now_ms())
    }

    fn crawl_delay_ms(&self, robots: &Robots) -> u64 {
        let asked = robots.crawl_delay().map_or(0, |delay| delay.as_millis().try_into().unwrap_or(u64::MAX));
        asked.min(self.options.crawl_delay_ms_max)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }

    fn ready(&self, host: &str) -> u64 {
        lock(&self.ready_ms).get(host).copied().unwrap_or(0)
    }

    fn remember_ready(&self, host: String, ready_ms: u64) {
        let now_ms = self.now_ms();
        let mut remembered = lock(&self.ready_ms);
        if remembered.len() >= HOSTS_REMEMBERED {
            remembered.retain(|_, ready_ms| *ready_ms > now_ms);
        }
        remembered.insert(host, ready_ms);
    }
}

/// The wait in a `Retry-After` field: seconds, or a date.
fn parse_retry_after(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Some((date - OffsetDateTime::now_utc()).whole_milliseconds().max(0).try_into().unwrap_or(u64::MAX))
}

/// A panic while one of these was held left it usable: each holder makes a single change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_retry_after() {
        assert_eq!(parse_retry_after(" 120 "), Some(120_000));
        assert_eq!(parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let wait = parse_retry_after("Fri, 31 Dec 2999 23:59:59 GMT").unwrap();
        assert!(wait > 365 * 24 * 3_600_000);
        assert_eq!(parse_retry_after("soon"), None);
    }
}
