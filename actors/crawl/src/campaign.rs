//! The crawl itself, as a state machine: which addresses come next, and what an outcome leads to.
//!
//! A round takes addresses from the frontier ([`Campaign::next_round`]); whatever order the
//! answers arrive in, their outcomes are settled in the order of the round
//! ([`Campaign::settle`]). So the pages of a crawl are a function of its options and of what the
//! servers answer, never of how fast they do.

use crate::frontier::Pending;
use crate::options::{CrawlOptions, OptionsError};
use crate::outcome::{FailureClass, FetchedPage, Outcome, SkipReason};
use crate::page_url::PageUrl;
use crate::scope::Scope;
use crate::state::{CrawlState, HostRecord};

/// A crawl between its rounds.
#[derive(Clone, Debug)]
pub struct Campaign {
    options: CrawlOptions,
    scope: Scope,
    state: CrawlState,
}

/// A page that goes into the archive.
#[derive(Clone, Debug)]
pub struct ArchivedPage {
    /// Its address.
    pub url: PageUrl,
    /// What was fetched.
    pub page: Box<FetchedPage>,
}

impl Campaign {
    /// A crawl from its beginning.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn begin(options: CrawlOptions) -> Result<Self, OptionsError> {
        let seeds = options.seed_urls()?;
        let mut campaign = Self::resume(options, CrawlState::default())?;
        for url in seeds {
            campaign.discover(Pending { url, depth: 0, redirects: 0, seed: true });
        }
        Ok(campaign)
    }

    /// A crawl that goes on from a saved state.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn resume(options: CrawlOptions, state: CrawlState) -> Result<Self, OptionsError> {
        let mut scope = Scope::new(&options, &options.seed_urls()?);
        state.adopted.iter().for_each(|url| scope.adopt(url));
        Ok(Self { options, scope, state })
    }

    /// The options.
    pub fn options(&self) -> &CrawlOptions {
        &self.options
    }

    /// The state, as it is saved.
    pub fn state(&self) -> &CrawlState {
        &self.state
    }

    /// Remembers the archive segment of a settled round.
    pub fn add_segment(&mut self, segment: sixfold_wire::id::ArtifactId) {
        self.state.segments.push(segment);
    }

    /// What is remembered of a host.
    pub fn host(&self, name: &str) -> HostRecord {
        self.state.hosts.get(name).copied().unwrap_or_default()
    }

    /// Takes the pages that sitemaps name, as if the seeds linked to them.
    pub fn settle_sitemaps(&mut self, pages: impl IntoIterator<Item = PageUrl>) {
        self.state.sitemaps_read = true;
        for url in pages {
            self.discover(Pending { url, depth: 1, redirects: 0, seed: false });
        }
    }

    /// The addresses to ask for next; none when the crawl is over.
    pub fn next_round(&mut self) -> Vec<Pending> {
        let pages_left = self.options.pages_max.saturating_sub(self.state.pages.len() as u64);
        let requests_left = self.options.requests_budget().saturating_sub(self.state.requests);
        let count = (self.options.round_requests as u64).min(pages_left).min(requests_left);
        if count == 0 || self.state.bytes_exhausted {
            return Vec::new();
        }
        self.drop_spent_hosts();
        let Self { options, state, .. } = self;
        let hosts = &state.hosts;
        state.frontier.take(count as usize, |host| pages_left_of(options, hosts.get(host)))
    }

    /// Settles the outcomes of a round, given in its order, and returns the pages to archive.
    pub fn settle(&mut self, round: impl IntoIterator<Item = (Pending, Outcome)>) -> Vec<ArchivedPage> {
        let mut archived = Vec::new();
        for (pending, outcome) in round {
            let failed_host = matches!(outcome, Outcome::Failed(class) if class.is_of_host());
            if !matches!(&outcome, Outcome::Skipped(reason) if reason.is_without_request()) {
                self.state.requests += 1;
                let host = self.state.hosts.entry(pending.host()).or_default();
                host.failures = if failed_host { host.failures.saturating_add(1) } else { 0 };
            }
            match outcome {
                Outcome::Page(page) => archived.extend(self.settle_page(pending, page)),
                Outcome::Redirect(target) => self.settle_redirect(&pending, target),
                Outcome::Skipped(reason) => self.state.skip(reason, 1),
                Outcome::Failed(class) => self.state.fail(class),
            }
        }
        self.state.rounds += 1;
        archived
    }

    fn settle_page(&mut self, pending: Pending, mut page: Box<FetchedPage>) -> Option<ArchivedPage> {
        let links = std::mem::take(&mut page.links);
        // A generated listing stands for the folder that its links lie in: no step, no page.
        let depth = pending.depth + u32::from(!page.is_listing);
        for url in links.links {
            self.discover(Pending { url, depth, redirects: 0, seed: false });
        }
        if page.is_listing {
            self.state.listings += 1;
            return None;
        }
        if links.noindex {
            self.state.skip(SkipReason::NoIndex, 1);
            return None;
        }
        let bytes = self.state.bytes + page.payload.len() as u64;
        if self.state.bytes_exhausted || bytes > self.options.total_bytes_max {
            self.state.bytes_exhausted = true;
            self.state.skip(SkipReason::BytesBudget, 1);
            return None;
        }
        self.state.bytes = bytes;
        self.state.hosts.entry(pending.host()).or_default().pages += 1;
        self.state.pages.insert(pending.url.canonical().to_owned(), page.digest.clone());
        Some(ArchivedPage { url: pending.url, page })
    }

    /// A redirect is a link of the same depth: its target is asked for as any other address, under
    /// its own host's rules.
    fn settle_redirect(&mut self, from: &Pending, target: PageUrl) {
        if from.redirects >= self.options.redirects_max {
            self.state.skip(SkipReason::Redirects, 1);
            return;
        }
        if target == from.url {
            self.state.fail(FailureClass::OtherStatus);
            return;
        }
        self.state.redirects += 1;
        if from.seed {
            self.scope.adopt(&target);
            self.state.adopted.insert(target.clone());
        }
        self.discover(Pending { url: target, redirects: from.redirects + 1, ..*from });
    }

    fn discover(&mut self, pending: Pending) {
        if let Err(reason) = self.admit(&pending) {
            self.state.skip(reason, 1);
        }
    }

    fn admit(&mut self, pending: &Pending) -> Result<(), SkipReason> {
        if self.state.seen.contains(&pending.url) {
            return Ok(());
        }
        self.scope.admit(&pending.url, pending.seed)?;
        if pending.depth > self.options.depth_max {
            return Err(SkipReason::Depth);
        }
        if self.state.frontier.len() >= self.options.frontier_urls_max {
            return Err(SkipReason::FrontierFull);
        }
        self.state.seen.insert(&pending.url);
        if self.state.count_query(&pending.url) > self.options.query_variants_max {
            return Err(SkipReason::QueryVariants);
        }
        self.state.frontier.insert(pending.clone());
        Ok(())
    }

    /// Removes the addresses of hosts that had their share or failed too often.
    fn drop_spent_hosts(&mut self) {
        let Self { options, state, .. } = self;
        let mut dropped = Vec::new();
        for (name, record) in &state.hosts {
            let reason = if record.failures >= options.host_failures_max {
                SkipReason::HostDown
            } else if pages_left_of(options, Some(record)) == 0 {
                SkipReason::HostBudget
            } else {
                continue;
            };
            let count = state.frontier.remove_host(name);
            if count > 0 {
                dropped.push((reason, count as u64));
            }
        }
        dropped.into_iter().for_each(|(reason, count)| state.skip(reason, count));
    }
}

fn pages_left_of(options: &CrawlOptions, record: Option<&HostRecord>) -> u64 {
    let fetched = record.map_or(0, |record| record.pages);
    options.host_pages_max.map_or(u64::MAX, |most| most.saturating_sub(fetched))
}

#[cfg(test)]
mod tests;
