//! How a visit to a page can end, in the classes that a crawl counts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::links::PageLinks;
use crate::page_url::PageUrl;

macro_rules! classes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The class as it stands in metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

classes! {
    /// Why an address was not asked for, or an answer not kept.
    SkipReason {
        /// The host is none of the seeds' and not allowed.
        OutOfScope = "out_of_scope",
        /// Longer than any sensible address.
        UrlLength = "url_length",
        /// The path or the query looks like a trap.
        Trap = "trap",
        /// One path had enough different queries.
        QueryVariants = "query_variants",
        /// A file that is no page, by its name.
        Extension = "extension",
        /// Too many links away from the seeds.
        Depth = "depth",
        /// Too many addresses are known already.
        FrontierFull = "frontier_full",
        /// robots.txt forbids it.
        Robots = "robots",
        /// robots.txt cannot be had, which forbids all.
        RobotsUnreachable = "robots_unreachable",
        /// The page asks not to be kept.
        NoIndex = "noindex",
        /// Not a media type that is archived.
        MediaType = "media_type",
        /// Its host had its share of pages.
        HostBudget = "host_budget",
        /// Its host failed too often in a row.
        HostDown = "host_down",
        /// The budget of bytes was used up.
        BytesBudget = "bytes_budget",
        /// Too many redirects in a row.
        Redirects = "redirects",
    }
}

impl SkipReason {
    /// Whether the address was not even asked for.
    pub fn is_without_request(self) -> bool {
        matches!(self, Self::Robots | Self::RobotsUnreachable | Self::HostDown)
    }
}

classes! {
    /// How a request failed.
    FailureClass {
        /// The name does not resolve.
        Dns = "dns",
        /// The address is not public, and no exception names the host.
        PrivateAddress = "private_address",
        /// No connection, or one that broke.
        Connect = "connect",
        /// The answer took too long.
        Timeout = "timeout",
        /// The answer is not HTTP.
        Protocol = "protocol",
        /// The page is larger than allowed.
        TooLarge = "too_large",
        /// The page unfolds like a bomb.
        Bomb = "bomb",
        /// The page's coding is unknown or broken.
        Coding = "coding",
        /// A status of 4xx.
        ClientStatus = "status_4xx",
        /// A status of 5xx.
        ServerStatus = "status_5xx",
        /// Any other status without a page, or a redirect that leads nowhere.
        OtherStatus = "status_other",
    }
}

impl FailureClass {
    /// The class of a status that brings no page.
    pub fn of_status(status: u16) -> Self {
        match status {
            400..=499 => Self::ClientStatus,
            500..=599 => Self::ServerStatus,
            _ => Self::OtherStatus,
        }
    }

    /// Whether it says that the host is in trouble, not only this page.
    pub fn is_of_host(self) -> bool {
        matches!(self, Self::Dns | Self::PrivateAddress | Self::Connect | Self::Timeout | Self::ServerStatus)
    }
}

/// A page as it was fetched.
#[derive(Clone, Debug)]
pub struct FetchedPage {
    /// Request line and header.
    pub request_head: Vec<u8>,
    /// Status line and header that describe `payload`.
    pub response_head: Vec<u8>,
    /// The body, with codings undone.
    pub payload: Vec<u8>,
    /// The payload's digest, as in WARC files.
    pub digest: String,
    /// When the answer arrived.
    pub date: OffsetDateTime,
    /// The address that answered.
    pub address: Option<IpAddr>,
    /// What it links to.
    pub links: PageLinks,
    /// A generated listing of a folder: its links count as found on the page before it.
    pub is_listing: bool,
}

/// How a visit ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With a page.
    Page(Box<FetchedPage>),
    /// With another address to ask.
    Redirect(PageUrl),
    /// Without a request, or with an answer that is not kept.
    Skipped(SkipReason),
    /// With a failure that further tries did not mend.
    Failed(FailureClass),
}
