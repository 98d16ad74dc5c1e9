//! robots.txt by RFC 9309: what an answer to it means, and for how long.
//!
//! Syntax and matching are the `robotxt` crate's; this module decides by status, and remembers.

use std::collections::HashMap;
use std::sync::Arc;

use robotxt::{AccessResult, Robots};
use url::Url;

/// Bytes of a robots.txt that are read (RFC 9309, section 2.5, asks for at least as many).
pub(crate) const BYTES_MAX: usize = robotxt::BYTE_LIMIT;
/// Redirects followed to a robots.txt (section 2.3.1.2).
pub(crate) const REDIRECTS_MAX: u32 = 5;
/// How long an answer counts (section 2.4).
const LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;
/// Hosts remembered at once; beyond it the oldest answers are forgotten and asked for again.
const HOSTS_MAX: usize = 4096;

/// How the request for a robots.txt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RobotsAnswer<'a> {
    /// An answer with this status and body.
    Answered(u16, &'a [u8]),
    /// More redirects than are followed.
    RedirectedAway,
    /// No answer, or not a usable one.
    Unreachable,
}

impl RobotsAnswer<'_> {
    /// Whether the server is in trouble: then nothing is allowed, and the answer is not remembered.
    pub(crate) fn is_unreachable(self) -> bool {
        match self {
            Self::Answered(status, _) => status == 429 || !(200..500).contains(&status),
            Self::RedirectedAway => false,
            Self::Unreachable => true,
        }
    }
}

/// The rules that an answer means for the crawler named `product`. A missing file allows
/// everything; a server that fails, and one that asks to slow down (429), allows nothing.
pub(crate) fn rules(answer: RobotsAnswer<'_>, product: &str) -> Robots {
    let access = match answer {
        answer if answer.is_unreachable() => AccessResult::Unreachable,
        RobotsAnswer::Answered(200..=299, body) => AccessResult::Successful(body),
        RobotsAnswer::RedirectedAway => AccessResult::TooManyRedirects,
        RobotsAnswer::Answered(..) | RobotsAnswer::Unreachable => AccessResult::Unavailable,
    };
    Robots::from_access(access, product)
}

/// The scheme, host and port that a robots.txt speaks for.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The rules of each origin, as long as they count.
#[derive(Default)]
pub(crate) struct RobotsCache {
    origins: HashMap<String, (u64, Arc<Robots>)>,
}

impl RobotsCache {
    /// The rules of an origin, or `None` where they must be asked for.
    pub(crate) fn get(&self, origin: &str, now_ms: u64) -> Option<Arc<Robots>> {
        let (learned_ms, robots) = self.origins.get(origin)?;
        (now_ms < learned_ms + LIFETIME_MS).then(|| Arc::clone(robots))
    }

    /// Remembers the rules of an origin.
    pub(crate) fn learn(&mut self, origin: String, robots: Robots, now_ms: u64) -> Arc<Robots> {
        if self.origins.len() >= HOSTS_MAX {
            let mut ages: Vec<u64> = self.origins.values().map(|(learned_ms, _)| *learned_ms).collect();
            let (_, median, _) = ages.select_nth_unstable(HOSTS_MAX / 2);
            let median = *median;
            self.origins.retain(|_, (learned_ms, _)| *learned_ms > median);
        }
        let robots = Arc::new(robots);
        self.origins.insert(origin, (now_ms, Arc::clone(&robots)));
        robots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Robots {
        rules(RobotsAnswer::Answered(200, body.as_bytes()), "sixfold")
    }

    #[test]
    fn the_longest_rule_wins_and_wildcards_count() {
        let robots = of("User-agent: *\nDisallow:/a\nAllow:/a/b\nDisallow:/*.pdf$\n");
        for (path, allowed) in
            [("/a/c", false), ("/a/b", true), ("/z.pdf", false), ("/z.pdf?q", true), ("/", true)]
        {
            assert_eq!(robots.is_allowed(path), allowed, "{path}");
        }
    }

    /// RFC 9309, section 5.1 and 5.2.
    #[test]
    fn follows_the_examples_of_the_rfc() {
        let body = "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\n\
                    User-Agent: foobot\nDisallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\n\
                    User-Agent: barbot\nUser-Agent: bazbot\nDisallow: /example/page.html\n\nUser-Agent: quxbot\n";
        let answer = RobotsAnswer::Answered(200, body.as_bytes());
        for (product, path, allowed) in [
            ("sixfold", "/a.gif", false),
            ("sixfold", "/publications/x", true),
            ("FooBot", "/other", false),
            ("foobot", "/example/allowed.gif", true),
            ("bazbot", "/example/page.html", false),
            ("bazbot", "/a.gif", true),
            ("quxbot", "/example/page.html", true),
        ] {
            assert_eq!(rules(answer, product).is_allowed(path), allowed, "{product} {path}");
        }
        let longest = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
        let robots = rules(RobotsAnswer::Answered(200, longest.as_bytes()), "foobot");
        assert!(!robots.is_allowed("/example/page/disallowed.gif"));
    }

    #[test]
    fn decides_by_status() {
        for (answer, allowed) in [
            (RobotsAnswer::Answered(404, b"User-agent: *\nDisallow: /"), true),
            (RobotsAnswer::Answered(403, b""), true),
            (RobotsAnswer::Answered(429, b""), false),
            (RobotsAnswer::Answered(500, b""), false),
            (RobotsAnswer::Answered(503, b""), false),
            (RobotsAnswer::Unreachable, false),
            (RobotsAnswer::RedirectedAway, true),
        ] {
            assert_eq!(rules(answer, "sixfold").is_allowed("/page"), allowed, "{answer:?}");
        }
    }

    #[test]
    fn reads_rules_up_to_500_kib() {
        let filler = "# filler\n".repeat(BYTES_MAX / 9 - 4);
        assert!(!of(&format!("{filler}User-agent: *\nDisallow: /a\n")).is_allowed("/a"));
        let beyond = format!("User-agent: *\n{filler}{filler}Disallow: /a\n");
        assert!(of(&beyond).is_allowed("/a"));
    }

    #[test]
    fn forgets_after_a_day_and_stays_small() {
        let mut cache = RobotsCache::default();
        cache.learn("http://a".to_owned(), Robots::allow_all(), 5);
        assert!(cache.get("http://a", 5 + LIFETIME_MS - 1).is_some());
        assert!(cache.get("http://a", 5 + LIFETIME_MS).is_none());
        for index in 0..2 * HOSTS_MAX as u64 {
            cache.learn(format!("http://h{index}"), Robots::allow_all(), index);
        }
        assert!(cache.origins.len() <= HOSTS_MAX);
        assert!(cache.get("http://h8191", 8191).is_some());
    }
}
