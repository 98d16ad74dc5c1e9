//! Writes the pages of a round as one WARC file into the node's store.

use std::io::{self, Write};

use sixfold_artifact::{FileEntry, Store};
use sixfold_warc::{Exchange, Writer};
use time::OffsetDateTime;

use crate::campaign::ArchivedPage;
use crate::error::CrawlError;

/// What a segment's `warcinfo` record says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentInfo<'a> {
    /// The segment's place among the crawl's, from 0 on.
    pub(crate) index: usize,
    /// When it was begun.
    pub(crate) date: OffsetDateTime,
    /// The crawler's `User-Agent`.
    pub(crate) user_agent: &'a str,
    /// Whether robots.txt was obeyed.
    pub(crate) obey_robots: bool,
}

/// Writes `pages` in their order.
pub(crate) fn write(
    store: &Store,
    info: SegmentInfo<'_>,
    pages: &[ArchivedPage],
) -> Result<FileEntry, CrawlError> {
    let name = format!("pages-{:05}.warc.gz", info.index);
    let mut blob = store.writer()?;
    write_records(&mut blob, &name, info, pages).map_err(CrawlError::Segment)?;
    Ok(blob.finish(&name)?)
}

fn write_records(
    blob: &mut impl Write,
    name: &str,
    info: SegmentInfo<'_>,
    pages: &[ArchivedPage],
) -> io::Result<()> {
    let about = [
        ("software", concat!("sixfold/", env!("CARGO_PKG_VERSION"))),
        ("format", "WARC File Format 1.1"),
        ("http-header-user-agent", info.user_agent),
        ("robots", if info.obey_robots { "obey" } else { "ignore" }),
    ];
    let mut writer = Writer::begin(blob, name, info.date, &about)?;
    for ArchivedPage { url, page } in pages {
        writer.exchange(&Exchange {
            uri: url.as_str(),
            date: page.date,
            address: page.address,
            request_head: &page.request_head,
            response_head: &page.response_head,
            payload: &page.payload,
        })?;
    }
    writer.finish();
    Ok(())
}
