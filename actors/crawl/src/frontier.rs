//! The addresses that are known and not yet asked for.
//!
//! They come out breadth first: by depth, and within a depth host by host in turns, each host's in
//! canonical order. The order depends on what is inside alone, never on when it came in, so that
//! the pages within a budget are the same however fast servers answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::page_url::PageUrl;

/// An address to ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The address.
    pub url: PageUrl,
    /// Links between a seed and it.
    pub depth: u32,
    /// Redirects between the link and it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redirects: u8,
    /// Whether it is a seed, or where a seed redirected to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub seed: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(count: &u8) -> bool {
    *count == 0
}

impl Pending {
    /// The host that it is on, without a port: what politeness counts by.
    pub fn host(&self) -> String {
        host_of(&self.url)
    }
}

/// The host of an address, without a port.
pub(crate) fn host_of(url: &PageUrl) -> String {
    url.url().ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

type Host = BTreeMap<PageUrl, Pending>;

/// Known addresses, in the order in which they will be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Pending>", into = "Vec<Pending>")]
pub struct Frontier {
    depths: BTreeMap<u32, BTreeMap<String, Host>>,
    length: usize,
}

impl Frontier {
    /// How many addresses it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds an address; one that is there already stays as it is.
    pub fn insert(&mut self, pending: Pending) {
        let host = self.depths.entry(pending.depth).or_default().entry(pending.host()).or_default();
        let before = host.len();
        host.entry(pending.url.clone()).or_insert(pending);
        self.length += host.len() - before;
    }

    /// Takes up to `count` addresses of the smallest depth, at most `quota(host)` of each host.
    pub fn take(&mut self, count: usize, quota: impl Fn(&str) -> u64) -> Vec<Pending> {
        let Some(mut hosts) = self.depths.first_entry() else { return Vec::new() };
        let mut turns: Vec<(u64, &mut Host)> =
            hosts.get_mut().iter_mut().map(|(name, host)| (quota(name), host)).collect();
        let mut taken = Vec::new();
        while taken.len() < count && !turns.is_empty() {
            turns.retain_mut(|(left, host)| {
                if *left == 0 || taken.len() == count {
                    return false;
                }
                *left -= 1;
                taken.extend(host.pop_first().map(|(_, pending)| pending));
                !host.is_empty()
            });
        }
        hosts.get_mut().retain(|_, host| !host.is_empty());
        if hosts.get().is_empty() {
            hosts.remove();
        }
        self.length -= taken.len();
        taken
    }

    /// Removes a host's addresses and says how many they were.
    pub fn remove_host(&mut self, name: &str) -> usize {
        let mut removed = 0;
        self.depths.retain(|_, hosts| {
            removed += hosts.remove(name).map_or(0, |host| host.len());
            !hosts.is_empty()
        });
        self.length -= removed;
        removed
    }
}

impl From<Vec<Pending>> for Frontier {
    fn from(list: Vec<Pending>) -> Self {
        let mut frontier = Self::default();
        list.into_iter().for_each(|pending| frontier.insert(pending));
        frontier
    }
}

impl From<Frontier> for Vec<Pending> {
    fn from(frontier: Frontier) -> Self {
        let hosts = frontier.depths.into_values().flat_map(BTreeMap::into_values);
        hosts.flat_map(BTreeMap::into_values).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pending(url: &str, depth: u32) -> Pending {
        Pending { url: PageUrl::parse(url).unwrap(), depth, redirects: 0, seed: false }
    }

    fn urls(taken: &[Pending]) -> Vec<&str> {
        taken.iter().map(|pending| pending.url.as_str()).collect()
    }

    #[test]
    fn comes_out_by_depth_then_in_turns_then_in_order() {
        let mut frontier = Frontier::default();
        for (url, depth) in
            [("http://b/2", 1), ("http://a/3", 1), ("http://a/1", 1), ("http://c/0", 2), ("http://a/2", 1)]
        {
            frontier.insert(pending(url, depth));
        }
        let any = |_: &str| u64::MAX;
        assert_eq!(urls(&frontier.take(3, any)), ["http://a/1", "http://b/2", "http://a/2"]);
        // A depth is emptied before the next one is begun.
        assert_eq!(urls(&frontier.take(3, any)), ["http://a/3"]);
        assert_eq!(urls(&frontier.take(3, any)), ["http://c/0"]);
        assert!(frontier.is_empty() && frontier.take(3, any).is_empty());
    }

    #[test]
    fn keeps_hosts_within_their_quota() {
        let mut frontier = Frontier::default();
        for path in 0..5 {
            frontier.insert(pending(&format!("http://trap/{path}"), 0));
            frontier.insert(pending(&format!("http://good/{path}"), 0));
        }
        let taken = frontier.take(8, |host| if host == "trap" { 2 } else { 9 });
        assert_eq!(taken.iter().filter(|pending| pending.host() == "trap").count(), 2);
        assert_eq!(taken.len(), 7);
        assert_eq!((frontier.remove_host("trap"), frontier.len()), (3, 0));
    }

    proptest! {
        /// The order in which addresses come in does not matter, nor does a round trip through JSON.
        #[test]
        fn order_out_is_independent_of_order_in(
            mut list in proptest::collection::vec(("[a-c]", 0..6_u8, 0..3_u32), 1..40),
            count in 1..9_usize,
        ) {
            list.sort();
            list.dedup_by_key(|(host, path, depth)| (host.clone(), *path, *depth));
            let make = |list: &[(String, u8, u32)]| {
                let pending = |(host, path, depth): &(String, u8, u32)| pending(&format!("http://{host}/{path}"), *depth);
                Frontier::from(list.iter().map(pending).collect::<Vec<_>>())
            };
            let mut forward = make(&list);
            list.reverse();
            let mut backward: Frontier = serde_json::from_str(&serde_json::to_string(&make(&list)).unwrap()).unwrap();
            prop_assert_eq!(forward.len(), list.len());
            while !forward.is_empty() {
                prop_assert_eq!(forward.take(count, |_| 3), backward.take(count, |_| 3));
            }
            prop_assert!(backward.is_empty());
        }
    }
}
