//! Which addresses belong to a crawl, and which of them look like traps.

use std::collections::BTreeSet;

use url::Url;

use crate::options::CrawlOptions;
use crate::outcome::SkipReason;
use crate::page_url::PageUrl;

/// Names that end in one of these are no pages. After Scrapy's `IGNORED_EXTENSIONS`.
const NO_PAGES: &[&str] = &[
    "7z", "aac", "ai", "apk", "avi", "avif", "bin", "bmp", "bz2", "css", "csv", "deb", "dmg", "doc", "docx",
    "eot", "eps", "epub", "exe", "flac", "flv", "gif", "gz", "ico", "iso", "jar", "jpeg", "jpg", "js",
    "json", "m4a", "m4v", "map", "mid", "mjs", "mkv", "mobi", "mov", "mp3", "mp4", "mpeg", "mpg", "msi",
    "odp", "ods", "odt", "ogg", "otf", "pdf", "png", "ppt", "pptx", "ps", "psd", "rar", "rpm", "rss", "so",
    "svg", "svgz", "swf", "tar", "tgz", "tif", "tiff", "ttf", "wasm", "wav", "webm", "webp", "wmv", "woff",
    "woff2", "xls", "xlsx", "xz", "zip", "zst",
];

/// What decides whether an address is crawled. Pure: depends on the options and on the hosts that
/// seeds redirected to.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    hosts: BTreeSet<String>,
    domains: Vec<String>,
    path_prefixes: Vec<String>,
    url_bytes_max: usize,
    path_segments_max: usize,
    segment_repeats_max: usize,
    query_arguments_max: usize,
}

impl Scope {
    /// The scope of a crawl that begins at `seeds`.
    pub(crate) fn new(options: &CrawlOptions, seeds: &[PageUrl]) -> Self {
        let allowed = || options.allow_hosts.iter().map(|host| host.trim().to_ascii_lowercase());
        let mut scope = Self {
            hosts: allowed().filter(|host| !host.starts_with('.')).collect(),
            domains: allowed().filter(|host| host.starts_with('.')).collect(),
            path_prefixes: options.path_prefixes.clone(),
            url_bytes_max: options.url_bytes_max,
            path_segments_max: options.path_segments_max,
            segment_repeats_max: options.segment_repeats_max,
            query_arguments_max: options.query_arguments_max,
        };
        seeds.iter().for_each(|seed| scope.adopt(seed));
        scope
    }

    /// Makes the host of an address part of the crawl: `http://example.com` often is but a sign
    /// that points to `https://www.example.com`.
    pub(crate) fn adopt(&mut self, url: &PageUrl) {
        if let Ok(url) = url.url() {
            self.hosts.insert(host_and_port(&url));
        }
    }

    /// Whether the address is crawled.
    ///
    /// # Errors
    /// The reason why it is not.
    pub(crate) fn admit(&self, page: &PageUrl, is_seed: bool) -> Result<(), SkipReason> {
        let url = page.url().map_err(|_| SkipReason::OutOfScope)?;
        if !self.has_host(&url) {
            return Err(SkipReason::OutOfScope);
        }
        if page.as_str().len() > self.url_bytes_max {
            return Err(SkipReason::UrlLength);
        }
        let below = |prefix: &String| url.path().starts_with(prefix.as_str());
        if !is_seed && !self.path_prefixes.is_empty() && !self.path_prefixes.iter().any(below) {
            return Err(SkipReason::OutOfScope);
        }
        if has_file_extension(&url) {
            return Err(SkipReason::Extension);
        }
        if self.is_trap(&url) { Err(SkipReason::Trap) } else { Ok(()) }
    }

    fn has_host(&self, url: &Url) -> bool {
        let host = host_and_port(url);
        self.hosts.contains(&host)
            || self.domains.iter().any(|domain| host.ends_with(domain.as_str()) || host == domain[1..])
    }

    /// Relative links that are resolved against themselves make paths that grow and repeat;
    /// scripts that add an argument to each link make queries that grow.
    fn is_trap(&self, url: &Url) -> bool {
        let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let mut sorted = segments.clone();
        sorted.sort_unstable();
        let repeats = sorted.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or(0);
        let arguments = url.query().map_or(0, |query| query.split('&').count());
        segments.len() > self.path_segments_max
            || repeats > self.segment_repeats_max
            || arguments > self.query_arguments_max
    }
}

/// Host and port as options name them: the port stands there where it is not the scheme's own.
fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn has_file_extension(url: &Url) -> bool {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| NO_PAGES.binary_search(&extension.as_str()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(options: &CrawlOptions, url: &str) -> Result<(), SkipReason> {
        let seeds = options.seed_urls().unwrap();
        Scope::new(options, &seeds).admit(&PageUrl::parse(url).unwrap(), false)
    }

    #[test]
    fn stays_on_the_hosts_of_the_seeds() {
        let options = CrawlOptions {
            allow_hosts: vec![".Example.org".into(), "other.net:8080".into()],
            ..CrawlOptions::new(["http://example.com/start"])
        };
        for (url, inside) in [
            ("http://example.com/a", true),
            ("https://example.com/a", true),
            ("http://example.com:8080/a", false),
            ("http://www.example.com/a", false),
            ("http://example.org/", true),
            ("http://a.b.example.org/", true),
            ("http://badexample.org/", false),
            ("http://other.net:8080/", true),
            ("http://other.net/", false),
        ] {
            let expected = if inside { Ok(()) } else { Err(SkipReason::OutOfScope) };
            assert_eq!(admit(&options, url), expected, "{url}");
        }
    }

    #[test]
    fn stays_below_the_path_prefixes_but_for_seeds() {
        let options =
            CrawlOptions { path_prefixes: vec!["/book/".into()], ..CrawlOptions::new(["http://a/"]) };
        assert_eq!(admit(&options, "http://a/book/1"), Ok(()));
        assert_eq!(admit(&options, "http://a/std/"), Err(SkipReason::OutOfScope));
        let seeds = options.seed_urls().unwrap();
        assert_eq!(Scope::new(&options, &seeds).admit(&seeds[0], true), Ok(()));
    }

    #[test]
    fn adopts_the_host_that_a_seed_points_to() {
        let options = CrawlOptions::new(["http://example.com/"]);
        let www = PageUrl::parse("https://www.example.com/").unwrap();
        let mut scope = Scope::new(&options, &options.seed_urls().unwrap());
        assert!(scope.admit(&www, true).is_err());
        scope.adopt(&www);
        assert_eq!(scope.admit(&www, true), Ok(()));
    }

    #[test]
    fn recognises_traps_and_files() {
        let options = CrawlOptions::new(["http://a/"]);
        let long = format!("http://a/{}", "x".repeat(2083));
        let deep = format!("http://a/{}", "1/2/3/4/".repeat(3)) + "5/6/7/8/9/10/11/12/13/14/15/16/17";
        let arguments: String = (0..13).map(|index| format!("a{index}=1&")).collect();
        for (url, expected) in [
            ("http://a/b/c/b/c/b/c/", Ok(())),
            ("http://a/b/c/b/c/b/c/b/c", Err(SkipReason::Trap)),
            (deep.as_str(), Err(SkipReason::Trap)),
            (&format!("http://a/?{arguments}"), Err(SkipReason::Trap)),
            (&long, Err(SkipReason::UrlLength)),
            ("http://a/photo.JPG", Err(SkipReason::Extension)),
            ("http://a/v1.2/", Ok(())),
            ("http://a/page.html?file=x.zip", Ok(())),
        ] {
            assert_eq!(admit(&options, url), expected, "{url}");
        }
    }

    #[test]
    fn the_list_of_extensions_can_be_searched() {
        assert!(NO_PAGES.is_sorted());
    }
}
