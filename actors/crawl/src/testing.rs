//! What tests of this crate share: a site to crawl and a node to crawl it from.

mod site;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sixfold_artifact::Store;
use sixfold_cluster::task::{LocalHost, Record, TaskContext, TaskHost, TaskOutput, TaskResult, TaskSpec};
use sixfold_warc::{DecodeLimits, Reader, RecordKind, sha1_base32};
use sixfold_wire::id::{Epoch, JobId, NodeName, TaskId};
use tokio::sync::oneshot;

pub(crate) use self::site::{Site, html, links, redirect, status, text};
use crate::error::CrawlError;
use crate::options::CrawlOptions;
use crate::run::run;

/// A node of its own: a store that outlives an attempt, as a daemon's does.
pub(crate) struct Node {
    _folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) host: Arc<LocalHost>,
}

impl Node {
    pub(crate) fn new() -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let host = Arc::new(LocalHost::new(store.clone()));
        Self { _folder: folder, store, host }
    }

    /// A task of this node, going on from what an earlier attempt saved.
    pub(crate) fn context(&self, options: &CrawlOptions) -> TaskContext {
        let host = Arc::clone(&self.host);
        self.task(serde_json::to_string(options).unwrap(), host).0
    }

    pub(crate) fn task(
        &self,
        options_json: String,
        host: Arc<dyn TaskHost>,
    ) -> (TaskContext, oneshot::Receiver<TaskResult>) {
        let states = self.host.records().into_iter().filter_map(|record| match record {
            Record::State(saved) => Some(saved),
            _ => None,
        });
        let spec = TaskSpec {
            id: TaskId { job: JobId(1), phase: 0, index: 0 },
            role: "crawl".into(),
            stage: "crawl".into(),
            count: 1,
            options_json,
            inputs: Vec::new(),
            resume: states.max_by_key(|saved| saved.step).into_iter().collect(),
        };
        TaskContext::new(spec, Epoch(1), NodeName::from("n1"), self.store.clone(), PathBuf::new(), host)
    }

    pub(crate) async fn crawl(&self, options: &CrawlOptions) -> Result<TaskOutput, CrawlError> {
        run(&self.context(options), options.clone(), |_| ()).await
    }

    /// Bodies of the archived pages by address; a page that was archived twice is an error.
    pub(crate) fn archived(&self, output: &TaskOutput) -> BTreeMap<String, Vec<u8>> {
        let limits = DecodeLimits { bytes_max: 1 << 20, ratio_max: 1 };
        let mut pages = BTreeMap::new();
        for (index, &segment) in output.artifacts.iter().enumerate() {
            let file = self.store.read(segment, &format!("pages-{index:05}.warc.gz")).unwrap();
            let mut reader = Reader::new(&file[..]).unwrap();
            while let Some(record) = reader.next_record().unwrap() {
                if record.kind() == RecordKind::Response {
                    let body = record.http().unwrap().body(limits).unwrap();
                    assert_eq!(record.headers.get("WARC-Payload-Digest"), Some(&*sha1_base32(&body)));
                    let uri = record.target_uri().unwrap().to_owned();
                    assert!(pages.insert(uri, body).is_none(), "archived twice");
                }
            }
        }
        pages
    }
}

/// Options for sites of a test: at once, and allowed to be on loopback.
pub(crate) fn options(sites: &[&Site], seed: &str) -> CrawlOptions {
    CrawlOptions {
        allow_private_hosts: sites.iter().map(|site| site.address.to_string()).collect(),
        allow_hosts: sites.iter().map(|site| site.address.to_string()).collect(),
        delay_ms: 0,
        retry_wait_ms: 0,
        sitemaps: false,
        ..CrawlOptions::new([sites[0].url(seed)])
    }
}
