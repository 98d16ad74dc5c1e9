//! What a person can choose about a crawl.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::page_url::PageUrl;

/// Options of a `crawl` stage. Only `seeds` must be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrawlOptions {
    /// Where the crawl begins: URLs of pages. Their hosts are crawled, no others, unless `allow_hosts` says so.
    pub seeds: Vec<String>,
    /// Further hosts to crawl: `example.org`, `example.org:8080`, or `.example.org` for a domain with its sub-domains.
    #[serde(default)]
    pub allow_hosts: Vec<String>,
    /// Only pages whose path begins with one of these are crawled; empty for all. Seeds are always crawled.
    #[serde(default)]
    pub path_prefixes: Vec<String>,
    /// Hosts (`host` or `host:port`) that may be crawled although their address is private or local.
    #[serde(default)]
    pub allow_private_hosts: Vec<String>,

    /// Pages to archive at most.
    #[serde(default = "defaults::pages_max")]
    pub pages_max: u64,
    /// Pages to archive of one host at most; none for no limit but `pages_max`.
    #[serde(default)]
    pub host_pages_max: Option<u64>,
    /// Requests at most, those for pages that were not there included; none for ten times `pages_max`.
    #[serde(default)]
    pub requests_max: Option<u64>,
    /// Links between a seed and a page at most.
    #[serde(default = "defaults::depth_max")]
    pub depth_max: u32,
    /// Bytes of one page, unpacked; larger ones are left out.
    #[serde(default = "defaults::page_bytes_max")]
    pub page_bytes_max: usize,
    /// Bytes of all pages, unpacked.
    #[serde(default = "defaults::total_bytes_max")]
    pub total_bytes_max: u64,
    /// How many times its size a packed page may unfold (beyond 256 KiB).
    #[serde(default = "defaults::unpack_ratio_max")]
    pub unpack_ratio_max: usize,
    /// Known and not yet fetched addresses at most; further links are left out.
    #[serde(default = "defaults::frontier_urls_max")]
    pub frontier_urls_max: usize,
    /// Links followed of one page at most.
    #[serde(default = "defaults::page_links_max")]
    pub page_links_max: usize,

    /// Time between the end of a request and the next one to the same host, in milliseconds. 0 only for sites of your own.
    #[serde(default = "defaults::delay_ms")]
    pub delay_ms: u64,
    /// Hosts asked at the same time. One host is never asked twice at the same time.
    #[serde(default = "defaults::concurrency")]
    pub concurrency: usize,
    /// Requests between two commits; after a crash at most these are made again.
    #[serde(default = "defaults::round_requests")]
    pub round_requests: usize,
    /// Time for one request, in milliseconds.
    #[serde(default = "defaults::timeout_ms")]
    pub timeout_ms: u64,
    /// Further tries after an answer or a failure that may pass (408, 429, 500, 502, 503, 504, 522, 524, no answer).
    #[serde(default = "defaults::retries")]
    pub retries: u32,
    /// Wait before the first further try, in milliseconds; it doubles with each. `Retry-After` counts where it is longer.
    #[serde(default = "defaults::retry_wait_ms")]
    pub retry_wait_ms: u64,
    /// The longest `Retry-After` that is waited for, in milliseconds; a page with a longer one is given up.
    #[serde(default = "defaults::retry_after_ms_max")]
    pub retry_after_ms_max: u64,
    /// Failures of a host in a row after which it is left alone.
    #[serde(default = "defaults::host_failures_max")]
    pub host_failures_max: u32,
    /// Redirects followed from one link at most.
    #[serde(default = "defaults::redirects_max")]
    pub redirects_max: u8,

    /// Whether robots.txt is obeyed, `Crawl-delay` included. Turn it off only for sites of your own.
    #[serde(default = "defaults::yes")]
    pub obey_robots: bool,
    /// The longest `Crawl-delay` that is obeyed, in milliseconds.
    #[serde(default = "defaults::crawl_delay_ms_max")]
    pub crawl_delay_ms_max: u64,
    /// Whether `nofollow` and `noindex` in pages, links and headers are heeded.
    #[serde(default = "defaults::yes")]
    pub obey_meta_robots: bool,
    /// Whether the sitemaps of the seeds' hosts are read.
    #[serde(default = "defaults::yes")]
    pub sitemaps: bool,
    /// Name sent to servers and looked for in robots.txt.
    #[serde(default = "defaults::user_agent")]
    pub user_agent: String,
    /// Where site owners can reach you: an e-mail address or a URL, sent along with the name.
    #[serde(default)]
    pub contact: String,
    /// Media types that are archived.
    #[serde(default = "defaults::media_types")]
    pub media_types: Vec<String>,

    /// Bytes of an address at most.
    #[serde(default = "defaults::url_bytes_max")]
    pub url_bytes_max: usize,
    /// Segments of a path at most.
    #[serde(default = "defaults::path_segments_max")]
    pub path_segments_max: usize,
    /// Times that one segment may occur in a path; more is the mark of a loop.
    #[serde(default = "defaults::segment_repeats_max")]
    pub segment_repeats_max: usize,
    /// Arguments of a query at most.
    #[serde(default = "defaults::query_arguments_max")]
    pub query_arguments_max: usize,
    /// Different queries of one path at most: calendars and session ids stop there.
    #[serde(default = "defaults::query_variants_max")]
    pub query_variants_max: u32,
}

mod defaults {
    pub(super) fn pages_max() -> u64 {
        1000
    }
    pub(super) fn depth_max() -> u32 {
        20
    }
    pub(super) fn page_bytes_max() -> usize {
        4 << 20
    }
    pub(super) fn total_bytes_max() -> u64 {
        4 << 30
    }
    pub(super) fn unpack_ratio_max() -> usize {
        100
    }
    pub(super) fn frontier_urls_max() -> usize {
        200_000
    }
    pub(super) fn page_links_max() -> usize {
        5000
    }
    pub(super) fn delay_ms() -> u64 {
        1000
    }
    pub(super) fn concurrency() -> usize {
        16
    }
    pub(super) fn round_requests() -> usize {
        64
    }
    pub(super) fn timeout_ms() -> u64 {
        30_000
    }
    pub(super) fn retries() -> u32 {
        2
    }
    pub(super) fn retry_wait_ms() -> u64 {
        1000
    }
    pub(super) fn retry_after_ms_max() -> u64 {
        60_000
    }
    pub(super) fn host_failures_max() -> u32 {
        8
    }
    pub(super) fn redirects_max() -> u8 {
        20
    }
    pub(super) fn crawl_delay_ms_max() -> u64 {
        30_000
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn user_agent() -> String {
        "sixfold".to_owned()
    }
    pub(super) fn media_types() -> Vec<String> {
        ["text/html", "application/xhtml+xml", "text/plain"].map(str::to_owned).to_vec()
    }
    pub(super) fn url_bytes_max() -> usize {
        2083
    }
    pub(super) fn path_segments_max() -> usize {
        24
    }
    pub(super) fn segment_repeats_max() -> usize {
        3
    }
    pub(super) fn query_arguments_max() -> usize {
        12
    }
    pub(super) fn query_variants_max() -> u32 {
        200
    }
}

/// Why options cannot be crawled by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// There is nothing to begin with.
    #[error("`seeds` names no URL")]
    NoSeeds,
    /// A seed is not the URL of a page.
    #[error("the seed `{seed}` cannot be crawled: {reason}")]
    Seed {
        /// What was given.
        seed: String,
        /// What is wrong with it.
        reason: crate::page_url::UrlRefused,
    },
    /// A number that must not be zero, or a name that cannot be sent.
    #[error("`{option}` must not be {value}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value, in words.
        value: &'static str,
    },
}

impl CrawlOptions {
    /// Options for these seeds, all else by default.
    pub fn new(seeds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let seeds: Vec<String> = seeds.into_iter().map(Into::into).collect();
        Self {
            seeds,
            allow_hosts: Vec::new(),
            path_prefixes: Vec::new(),
            allow_private_hosts: Vec::new(),
            pages_max: defaults::pages_max(),
            host_pages_max: None,
            requests_max: None,
            depth_max: defaults::depth_max(),
            page_bytes_max: defaults::page_bytes_max(),
            total_bytes_max: defaults::total_bytes_max(),
            unpack_ratio_max: defaults::unpack_ratio_max(),
            frontier_urls_max: defaults::frontier_urls_max(),
            page_links_max: defaults::page_links_max(),
            delay_ms: defaults::delay_ms(),
            concurrency: defaults::concurrency(),
            round_requests: defaults::round_requests(),
            timeout_ms: defaults::timeout_ms(),
            retries: defaults::retries(),
            retry_wait_ms: defaults::retry_wait_ms(),
            retry_after_ms_max: defaults::retry_after_ms_max(),
            host_failures_max: defaults::host_failures_max(),
            redirects_max: defaults::redirects_max(),
            obey_robots: true,
            crawl_delay_ms_max: defaults::crawl_delay_ms_max(),
            obey_meta_robots: true,
            sitemaps: true,
            user_agent: defaults::user_agent(),
            contact: String::new(),
            media_types: defaults::media_types(),
            url_bytes_max: defaults::url_bytes_max(),
            path_segments_max: defaults::path_segments_max(),
            segment_repeats_max: defaults::segment_repeats_max(),
            query_arguments_max: defaults::query_arguments_max(),
            query_variants_max: defaults::query_variants_max(),
        }
    }

    /// Checks the values and reads the seeds.
    ///
    /// # Errors
    /// [`OptionsError`] for the first value that makes no sense.
    pub fn seed_urls(&self) -> Result<Vec<PageUrl>, OptionsError> {
        let refuse = |option, value| Err(OptionsError::Value { option, value });
        if self.seeds.is_empty() {
            return Err(OptionsError::NoSeeds);
        }
        if self.concurrency == 0 {
            return refuse("concurrency", "zero");
        }
        if self.round_requests == 0 || self.round_requests > 10_000 {
            return refuse("round_requests", "zero or more than 10000");
        }
        if self.user_agent.is_empty() || !self.user_agent.bytes().all(is_product_byte) {
            return refuse("user_agent", "other than letters, digits, `-`, `_` and `.`");
        }
        if !self.contact.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"()".contains(&byte)) {
            return refuse("contact", "other than plain ASCII without parentheses");
        }
        let read = |seed: &String| {
            PageUrl::parse(seed)
                .map_err(|reason| OptionsError::Seed { seed: seed.chars().take(200).collect(), reason })
        };
        self.seeds.iter().map(read).collect()
    }

    /// The `User-Agent` field: name, version and where to complain.
    pub fn user_agent_field(&self) -> String {
        let product = format!("{}/{}", self.user_agent, env!("CARGO_PKG_VERSION"));
        if self.contact.is_empty() { product } else { format!("{product} (+{})", self.contact) }
    }

    /// Requests that the whole crawl may make.
    pub fn requests_budget(&self) -> u64 {
        self.requests_max.unwrap_or_else(|| self.pages_max.saturating_mul(10))
    }
}

fn is_product_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_same_from_json_and_from_code() {
        let read: CrawlOptions = serde_json::from_str(r#"{"seeds":["http://example.com/"]}"#).unwrap();
        assert_eq!(read, CrawlOptions::new(["http://example.com/"]));
        assert_eq!(read.delay_ms, 1000);
        assert!(read.obey_robots);
    }

    #[test]
    fn refuses_unknown_keys_and_senseless_values() {
        assert!(serde_json::from_str::<CrawlOptions>(r#"{"seeds":[],"page_max":1}"#).is_err());
        let valid = CrawlOptions::new(["http://example.com/"]);
        assert!(valid.seed_urls().is_ok());
        for options in [
            CrawlOptions { seeds: vec![], ..valid.clone() },
            CrawlOptions { seeds: vec!["ftp://a/".into()], ..valid.clone() },
            CrawlOptions { concurrency: 0, ..valid.clone() },
            CrawlOptions { round_requests: 0, ..valid.clone() },
            CrawlOptions { user_agent: "a b".into(), ..valid.clone() },
            CrawlOptions { contact: "a\r\nb".into(), ..valid.clone() },
        ] {
            assert!(options.seed_urls().is_err(), "{options:?}");
        }
    }

    #[test]
    fn says_where_to_complain() {
        let options =
            CrawlOptions { contact: "mailto:me@example.com".into(), ..CrawlOptions::new(["http://a/"]) };
        assert!(options.user_agent_field().starts_with("sixfold/"));
        assert!(options.user_agent_field().ends_with(" (+mailto:me@example.com)"));
    }
}
