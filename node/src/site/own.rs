//! The small site in this binary: pages about what sixfold does, half in English, half in Chinese.
//! They lie in `node/site`, where they can be read with a browser too.

use std::fmt::Write;
use std::net::SocketAddr;

use axum::body::Bytes;

use super::server::Answer;

/// The files of `node/site`, by their paths below it.
macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../../site/", $path)))),+]
    };
}

const FILES: &[(&str, &str)] = files![
    "robots.txt",
    "index.html",
    "en/actors.html",
    "en/back-pressure.html",
    "en/batching.html",
    "en/byte-pairs.html",
    "en/checkpoints.html",
    "en/cleaning.html",
    "en/crawling.html",
    "en/decoder.html",
    "en/failure-detection.html",
    "en/floating-point.html",
    "en/kv-cache.html",
    "en/leases.html",
    "en/life-cycle.html",
    "en/loss.html",
    "en/near-duplicates.html",
    "en/optimizer.html",
    "en/parallel-plans.html",
    "en/pipelines.html",
    "en/rollout.html",
    "zh/attention.html",
    "zh/backpropagation.html",
    "zh/certificates.html",
    "zh/clocks.html",
    "zh/collectives.html",
    "zh/consensus.html",
    "zh/data.html",
    "zh/drift.html",
    "zh/encoding.html",
    "zh/latency.html",
    "zh/learning-rate.html",
    "zh/monitoring.html",
    "zh/overfitting.html",
    "zh/privacy.html",
    "zh/quantization.html",
    "zh/recovery.html",
    "zh/sampling.html",
    "zh/scheduling.html",
    "zh/words.html",
];

/// How many pages the site has.
pub(super) fn pages() -> usize {
    page_paths().count()
}

/// What is at the path of a URL, for a server at `address`.
pub(super) fn answer(url_path: &str, address: SocketAddr) -> Answer {
    let path = if url_path == "/" { "index.html" } else { url_path.trim_start_matches('/') };
    if path == "sitemap.xml" {
        return Answer::File("application/xml; charset=utf-8".to_owned(), sitemap(address).into());
    }
    match FILES.iter().find(|(name, _)| *name == path) {
        Some((name, text)) => {
            let kind = if name.ends_with(".html") { "html" } else { "plain" };
            Answer::File(format!("text/{kind}; charset=utf-8"), Bytes::from_static(text.as_bytes()))
        }
        None => Answer::Nothing,
    }
}

fn page_paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name).filter(|name| name.ends_with(".html"))
}

/// Names whole addresses, as the protocol wants it; so it cannot be a file.
fn sitemap(address: SocketAddr) -> String {
    let mut map = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<urlset xmlns=\"http://www.sitemaps.org/schemas/sitemap/0.9\">\n",
    );
    for path in page_paths() {
        let path = if path == "index.html" { "" } else { path };
        let _ = writeln!(map, "<url><loc>http://{address}/{path}</loc></url>");
    }
    map.push_str("</urlset>\n");
    map
}

#[cfg(test)]
mod tests;
