//! Which network addresses a crawler may connect to.
//!
//! Pages choose where a crawler goes next, so without this a page could make it ask machines that
//! only the crawler's own network can reach (server-side request forgery). The check is made on
//! the address that is connected to, not on the name: a name may resolve to another address a
//! moment later.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Whether the address belongs to the public Internet, by the special-purpose registries of IANA
/// (RFC 6890 and its successors). IPv6 forms that carry an IPv4 address are judged by that one.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, ..) // this network, private, loopback
            | (100, 64..=127, _) // carrier-grade NAT; clouds keep metadata services here
            | (169, 254, _) // link-local and metadata services
            | (172, 16..=31, _) | (192, 168, _) // private
            | (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) // protocols, documentation
            | (198, 18..=19, _) // benchmarks
            | (224.., ..) // multicast, reserved, broadcast
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let words = address.segments();
    let tail = || Ipv4Addr::from((u32::from(words[6]) << 16) | u32::from(words[7]));
    match words {
        // IPv4-mapped and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(tail()),
        // 6to4: the IPv4 address stands after the prefix.
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        // Protocol assignments with Teredo, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that is public lies in 2000::/3; the rest is local, multicast or not assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The hosts that may be crawled although their address is not public.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrivateHosts(BTreeSet<String>);

impl PrivateHosts {
    /// Takes entries of the form `host:port`, or `host` for the default port of either scheme.
    pub(crate) fn new(entries: &[String]) -> Self {
        Self(entries.iter().map(|entry| entry.trim().to_ascii_lowercase()).collect())
    }

    /// Whether the URL's host and port are named.
    pub(crate) fn name(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        match url.port() {
            Some(port) => self.0.contains(&format!("{host}:{port}")),
            None => {
                let port = url.port_or_known_default().unwrap_or_default();
                self.0.contains(host) || self.0.contains(&format!("{host}:{port}"))
            }
        }
    }
}

/// The address that a URL names literally. Such a URL never reaches a resolver.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_public_addresses_from_others() {
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.100.100.200",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn sees_through_spellings_of_literal_addresses() {
        for text in ["http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://017700000001/"] {
            assert_eq!(literal(&Url::parse(text).unwrap()), Some(Ipv4Addr::LOCALHOST.into()), "{text}");
        }
        let mapped = literal(&Url::parse("http://[::ffff:7f00:1]/").unwrap()).unwrap();
        assert!(!is_public(mapped));
        assert_eq!(literal(&Url::parse("http://localhost/").unwrap()), None);
    }

    #[test]
    fn an_exception_is_for_its_port_only() {
        let hosts = PrivateHosts::new(&["127.0.0.1:8080".to_owned(), "Intranet".to_owned()]);
        for (text, named) in [
            ("http://127.0.0.1:8080/a", true),
            ("http://127.0.0.1/", false),
            ("http://127.0.0.1:22/", false),
            ("https://intranet/", true),
            ("http://intranet:81/", false),
        ] {
            assert_eq!(hosts.name(&Url::parse(text).unwrap()), named, "{text}");
        }
    }
}
