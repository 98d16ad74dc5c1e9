//! What tests of this module share: folders, and a crawl of a chosen site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sixfold_artifact::Store;
use sixfold_cluster::task::{LocalHost, Metric, Record, TaskContext, TaskOutput, TaskSpec};
use sixfold_crawl::{CrawlOptions, CrawlState};
use sixfold_wire::id::{Epoch, JobId, NodeName, TaskId};

use super::Site;

/// A folder with these files; what a path needs of folders is made.
pub(super) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        write(folder.path(), path, text);
    }
    folder
}

pub(super) fn write(folder: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// What a crawl brought.
pub(super) struct Crawled {
    output: TaskOutput,
    /// Payload digest by canonical address.
    pub(super) pages: BTreeMap<String, String>,
}

impl Crawled {
    pub(super) fn count(&self, name: &str) -> u64 {
        match self.output.metrics.get(name) {
            Some(Metric::Count(count)) => *count,
            _ => 0,
        }
    }

    /// The paths of the archived pages, in order.
    pub(super) fn paths(&self) -> Vec<&str> {
        self.pages.keys().map(|url| &url[url.match_indices('/').nth(2).unwrap().0..]).collect()
    }
}

/// The options of a crawl stage for this site, all else by default.
pub(super) fn options(site: &Site) -> CrawlOptions {
    CrawlOptions {
        path_prefixes: site.path_prefixes.clone(),
        allow_private_hosts: site.allow_private_hosts.clone(),
        delay_ms: site.delay_ms,
        ..CrawlOptions::new(site.seeds.clone())
    }
}

/// Crawls on a node of its own.
pub(super) async fn crawl(options: CrawlOptions) -> Crawled {
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let host = Arc::new(LocalHost::new(store.clone()));
    let spec = TaskSpec {
        id: TaskId { job: JobId(1), phase: 0, index: 0 },
        role: "crawl".into(),
        stage: "crawl".into(),
        count: 1,
        options_json: serde_json::to_string(&options).unwrap(),
        inputs: Vec::new(),
        resume: Vec::new(),
    };
    let (context, _finished) = TaskContext::new(
        spec,
        Epoch(1),
        NodeName::from("n1"),
        store.clone(),
        PathBuf::new(),
        Arc::clone(&host) as _,
    );
    let output = sixfold_crawl::run(&context, options, |_| ()).await.unwrap();
    let saved = host.records().into_iter().filter_map(|record| match record {
        Record::State(saved) => Some(saved),
        _ => None,
    });
    let last = saved.max_by_key(|saved| saved.step).unwrap();
    let state = CrawlState::decode(&store.read(last.artifact, "state.json").unwrap()).unwrap();
    Crawled { output, pages: state.pages }
}
