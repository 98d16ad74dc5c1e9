//! All that a crawl must remember to go on after a crash: a JSON document, saved after each round.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use sixfold_wire::id::ArtifactId;

use crate::frontier::Frontier;
use crate::outcome::{FailureClass, SkipReason};
use crate::page_url::PageUrl;

/// Larger documents are refused.
const BYTES_MAX: usize = 512 << 20;
/// Grows when an older crawler could not read the document.
const VERSION: u32 = 1;

/// Why bytes are not the state of a crawl.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// More bytes than any state has.
    #[error("a crawl state of {bytes} bytes is larger than the limit of {BYTES_MAX}")]
    TooLarge {
        /// Length of what was given.
        bytes: usize,
    },
    /// Not JSON, or not of a state's form.
    #[error("not a crawl state: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version.
    #[error("a crawl state of version {found}; this crawler reads version {VERSION}")]
    Version {
        /// The version that was found.
        found: u32,
    },
}

/// What is remembered of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Pages archived.
    pub pages: u64,
    /// Failures in a row.
    pub failures: u32,
}

/// The state of a crawl between two rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrawlState {
    version: u32,
    /// Rounds done.
    pub rounds: u64,
    /// Whether the sitemaps have been read.
    pub sitemaps_read: bool,
    /// Addresses to ask for.
    pub frontier: Frontier,
    /// Addresses that were ever in the frontier.
    pub seen: SeenSet,
    /// Different queries seen, by a hash of host and path.
    pub query_variants: BTreeMap<u64, u32>,
    /// What is remembered of each host, by its name without a port.
    pub hosts: BTreeMap<String, HostRecord>,
    /// Addresses that seeds redirected to, whose hosts belong to the crawl.
    pub adopted: BTreeSet<PageUrl>,
    /// Archive segments, in order.
    pub segments: Vec<ArtifactId>,
    /// Archived pages: payload digest by canonical address.
    pub pages: BTreeMap<String, String>,
    /// Bytes of the archived pages, unpacked.
    pub bytes: u64,
    /// Whether a page was left out because the budget of bytes was used up.
    pub bytes_exhausted: bool,
    /// Requests for pages, further tries not counted.
    pub requests: u64,
    /// Generated listings that were followed.
    pub listings: u64,
    /// Redirects that were followed.
    pub redirects: u64,
    /// Failed requests.
    pub failed: BTreeMap<FailureClass, u64>,
    /// Links and answers left out.
    pub skipped: BTreeMap<SkipReason, u64>,
}

impl Default for CrawlState {
    fn default() -> Self {
        Self {
            version: VERSION,
            rounds: 0,
            sitemaps_read: false,
            frontier: Frontier::default(),
            seen: SeenSet::default(),
            query_variants: BTreeMap::new(),
            hosts: BTreeMap::new(),
            adopted: BTreeSet::new(),
            segments: Vec::new(),
            pages: BTreeMap::new(),
            bytes: 0,
            bytes_exhausted: false,
            requests: 0,
            listings: 0,
            redirects: 0,
            failed: BTreeMap::new(),
            skipped: BTreeMap::new(),
        }
    }
}

impl CrawlState {
    /// The document.
    ///
    /// # Errors
    /// [`StateError::TooLarge`] where nobody could read it back.
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > BYTES_MAX { Err(StateError::TooLarge { bytes: bytes.len() }) } else { Ok(bytes) }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > BYTES_MAX {
            return Err(StateError::TooLarge { bytes: bytes.len() });
        }
        let state: Self = serde_json::from_slice(bytes)?;
        if state.version == VERSION { Ok(state) } else { Err(StateError::Version { found: state.version }) }
    }

    /// BLAKE3 over the lines `canonical address, tab, payload digest` in the order of the
    /// addresses, in hexadecimal: equal for crawls that archived the same pages.
    pub fn crawl_blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (address, digest) in &self.pages {
            hasher.update(format!("{address}\t{digest}\n").as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    pub(crate) fn skip(&mut self, reason: SkipReason, count: u64) {
        *self.skipped.entry(reason).or_default() += count;
    }

    pub(crate) fn fail(&mut self, class: FailureClass) {
        *self.failed.entry(class).or_default() += 1;
    }

    /// Counts a query of the address's path and says which one it is, from 1 on.
    pub(crate) fn count_query(&mut self, url: &PageUrl) -> u32 {
        let Some((path, _)) = url.canonical().split_once('?') else { return 0 };
        let count = self.query_variants.entry(short_hash(path) as u64).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

/// Addresses, as 128 bits of the hash of their canonical form: two of 2^40 different ones are equal
/// with a probability below 2^-48.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeenSet(BTreeSet<u128>);

impl SeenSet {
    /// Adds an address; false where it is there already.
    pub fn insert(&mut self, url: &PageUrl) -> bool {
        self.0.insert(short_hash(url.canonical()))
    }

    /// Whether the address is there.
    pub fn contains(&self, url: &PageUrl) -> bool {
        self.0.contains(&short_hash(url.canonical()))
    }
}

fn short_hash(text: &str) -> u128 {
    let mut bytes = [0; 16];
    blake3::Hasher::new().update(text.as_bytes()).finalize_xof().fill(&mut bytes);
    u128::from_be_bytes(bytes)
}

impl From<SeenSet> for String {
    fn from(set: SeenSet) -> Self {
        let bytes: Vec<u8> = set.0.iter().flat_map(|hash| hash.to_be_bytes()).collect();
        BASE64.encode(&bytes)
    }
}

impl TryFrom<String> for SeenSet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|error| error.to_string())?;
        let (hashes, rest) = bytes.as_chunks::<16>();
        if !rest.is_empty() {
            return Err("a list of hashes that ends within one".to_owned());
        }
        Ok(Self(hashes.iter().map(|hash| u128::from_be_bytes(*hash)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Pending;

    fn sample() -> CrawlState {
        let mut state = CrawlState { rounds: 3, ..CrawlState::default() };
        for path in ["a", "b?x=1", "c"] {
            let url = PageUrl::parse(&format!("http://example.com/{path}")).unwrap();
            state.seen.insert(&url);
            state.count_query(&url);
            state.pages.insert(url.canonical().to_owned(), format!("sha1:{path}"));
            state.frontier.insert(Pending { url, depth: 1, redirects: 0, seed: false });
        }
        state.skip(SkipReason::Robots, 2);
        state.fail(FailureClass::Timeout);
        state
    }

    #[test]
    fn survives_json() {
        let state = sample();
        assert_eq!(CrawlState::decode(&state.encode().unwrap()).unwrap(), state);
        assert_eq!(state.encode().unwrap(), sample().encode().unwrap());
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        assert!(matches!(CrawlState::decode(b"{}"), Err(StateError::Malformed(_))));
        let newer = CrawlState { version: 2, ..sample() };
        assert!(matches!(
            CrawlState::decode(&newer.encode().unwrap()),
            Err(StateError::Version { found: 2 })
        ));
        assert!(SeenSet::try_from("AAAA".to_owned()).is_err());
    }

    #[test]
    fn the_hash_depends_on_addresses_and_digests_only() {
        let mut other = CrawlState { rounds: 9, ..sample() };
        assert_eq!(other.crawl_blake3(), sample().crawl_blake3());
        other.pages.insert("http://example.com/c".to_owned(), "sha1:other".to_owned());
        assert_ne!(other.crawl_blake3(), sample().crawl_blake3());
    }
}
