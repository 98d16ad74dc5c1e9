//! A site that is named by its URL.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use reqwest::Url;
use sixfold_crawl::{CrawlOptions, PageUrl, UrlRefused, is_public};

use super::Site;

/// Where a site's host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// On the Internet, or not known.
    Public,
    /// In a network of its owner's.
    Private,
    /// On this machine.
    Loopback,
}

/// The site at a URL, crawled by the crawler's defaults. That a person names a host which is not public
/// makes it an exception, that host and port alone; a host on this machine needs no pause.
///
/// # Errors
/// Where it is not the URL of a page.
pub(super) async fn site(text: &str) -> Result<Site> {
    let url = read(text)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let reach = reach(&addresses(&host, port).await);
    let defaults = CrawlOptions::new([text]);
    let delay_ms = if reach == Reach::Loopback { 0 } else { defaults.delay_ms };
    let about = match reach {
        Reach::Public => format!("{url}, crawled with a pause of {delay_ms} ms between requests"),
        Reach::Private => format!(
            "{url} (not a public address, allowed since you named it), crawled with a pause of {delay_ms} ms \
             between requests"
        ),
        Reach::Loopback => format!("{url} on this machine, crawled without a pause"),
    };
    let exception = (reach != Reach::Public).then(|| format!("{host}:{port}"));
    Ok(Site {
        about,
        seeds: defaults.seeds,
        path_prefixes: Vec::new(),
        allow_private_hosts: exception.into_iter().collect(),
        delay_ms,
        server: None,
    })
}

fn read(text: &str) -> Result<Url> {
    match PageUrl::parse(text) {
        Ok(page) => Url::parse(page.as_str()).with_context(|| format!("cannot crawl `{text}`")),
        Err(UrlRefused::Scheme) => match text.strip_prefix("file://") {
            Some(path) => bail!("cannot crawl `{text}`: name the folder itself, `{path}`"),
            None => {
                bail!("cannot crawl `{text}`: only http and https are crawled, and folders of this machine")
            }
        },
        Err(error) => Err(error).with_context(|| format!("cannot crawl `{text}`")),
    }
}

/// The addresses of a host. None where it cannot be resolved: the crawl will say so better.
async fn addresses(host: &str, port: u16) -> Vec<IpAddr> {
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
    if let Ok(address) = literal {
        return vec![address];
    }
    let found = tokio::net::lookup_host((host, port)).await;
    found.map(|found| found.map(|address: SocketAddr| address.ip()).collect()).unwrap_or_default()
}

fn reach(addresses: &[IpAddr]) -> Reach {
    if addresses.iter().all(|&address| is_public(address)) {
        Reach::Public
    } else if addresses.iter().all(IpAddr::is_loopback) {
        Reach::Loopback
    } else {
        Reach::Private
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_where_a_host_is() {
        let reach =
            |texts: &[&str]| reach(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>());
        assert_eq!(reach(&[]), Reach::Public);
        assert_eq!(reach(&["93.184.216.34", "2606:4700::1111"]), Reach::Public);
        assert_eq!(reach(&["127.0.0.1", "::1"]), Reach::Loopback);
        assert_eq!(reach(&["127.0.0.1", "93.184.216.34"]), Reach::Private);
        assert_eq!(reach(&["10.0.0.7"]), Reach::Private);
    }

    #[tokio::test]
    async fn an_address_on_this_machine_is_an_exception_for_its_port_and_needs_no_pause() {
        for (text, exception) in [
            ("http://127.0.0.1:8080/a/", "127.0.0.1:8080"),
            ("http://[::1]/", "[::1]:80"),
            ("http://localhost/", "localhost:80"),
        ] {
            let site = site(text).await.unwrap();
            assert_eq!((site.seeds, site.delay_ms), (vec![text.to_owned()], 0));
            assert_eq!(site.allow_private_hosts, [exception]);
            assert!(site.about.contains("without a pause"), "{}", site.about);
        }
    }

    #[tokio::test]
    async fn other_addresses_keep_the_pause() {
        let private = site("http://192.168.1.7/").await.unwrap();
        assert_eq!(
            (private.delay_ms, private.allow_private_hosts),
            (1000, vec!["192.168.1.7:80".to_owned()])
        );
        assert!(private.about.contains("since you named it") && private.about.contains("1000 ms"));
        let public = site("https://93.184.216.34/").await.unwrap();
        assert_eq!((public.delay_ms, public.allow_private_hosts), (1000, Vec::<String>::new()));
    }

    #[tokio::test]
    async fn says_why_a_url_cannot_be_crawled() {
        for (text, part) in [
            ("ftp://example.com/", "only http and https"),
            ("file:///usr/share/doc", "name the folder itself, `/usr/share/doc`"),
            ("http://user:secret@example.com/", "password"),
            ("http://", "not a URL"),
        ] {
            let error = site(text).await.err().unwrap();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
