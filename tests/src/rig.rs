//! Jobs to break: one through all stages on a site of its own, and one that trains on a text; and what
//! must not depend on what died under them.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::{Running, Site, root, stage};

/// Pages of the site that is crawled.
const PAGES: usize = 60;
/// Paragraphs a page: with these, cleaning the pages takes far longer than a look at it.
const PARAGRAPHS: usize = 400;
/// How long the site takes to answer a request.
const SITE_DELAY: Duration = Duration::from_millis(20);

/// A job and what it needs.
pub struct Rig {
    _folder: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Rig {
    /// A job through all stages, slow enough that each can be interrupted. All of a process crawl the same site.
    pub fn whole_way() -> Self {
        static SITE: OnceLock<Site> = OnceLock::new();
        let site = SITE.get_or_init(|| Site::start(PAGES, PARAGRAPHS, SITE_DELAY));
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path().join("faults.toml");
        std::fs::write(&job, whole_way(site)).unwrap();
        Self { _folder: folder, arguments: vec![path(job)] }
    }

    /// A training with tensor parallel 2 and pipeline parallel 2, on a text that every checkout has.
    pub fn training(steps: u64) -> Self {
        Self::training_under((1, 2, 2), steps)
    }

    /// A training under a plan: its degrees of data, tensor and pipeline parallelism.
    pub fn training_under((data, tensor, pipeline): (usize, usize, usize), steps: u64) -> Self {
        let mut arguments = vec![path(root().join("config/jobs/pretrain-tiny.toml"))];
        for setting in [
            format!("data.text={}", root().join("LICENSE-APACHE").display()),
            format!("train.steps={steps}"),
            format!("train.data_parallel={data}"),
            format!("train.tensor_parallel={tensor}"),
            format!("train.pipeline_parallel={pipeline}"),
        ] {
            arguments.extend(["--set".to_owned(), setting]);
        }
        Self { _folder: tempfile::tempdir().unwrap(), arguments }
    }

    /// Runs it on a local cluster.
    pub fn start(&self, nodes: usize, more: &[&str]) -> Running {
        self.start_in_folder(tempfile::tempdir().unwrap(), nodes, more)
    }

    /// As [`Self::start`], in a folder that was prepared.
    pub fn start_in_folder(&self, folder: tempfile::TempDir, nodes: usize, more: &[&str]) -> Running {
        let nodes = nodes.to_string();
        let own = self.arguments.iter().map(String::as_str);
        let arguments: Vec<&str> = ["run"].into_iter().chain(own).chain(["--local", &nodes]).collect();
        Running::start_in_folder(folder, &[&arguments, more].concat())
    }
}

fn path(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn whole_way(site: &Site) -> String {
    let (seed, host) = (site.seed(), site.host());
    format!(
        r#"name = "faults"
[stage.crawl]
kind = "crawl"
seeds = ["{seed}"]
allow_private_hosts = ["{host}"]
delay_ms = 0
round_requests = 6
sitemaps = false
retry_wait_ms = 50

[stage.clean]
kind = "clean"
inputs = ["crawl"]
extractor = "main_text"
profile = "none"
threads = 1

[stage.tokens]
kind = "tokenize"
inputs = ["clean"]
tokenizer = "bytes"

[stage.train]
kind = "train"
inputs = ["tokens"]
layers = 4
hidden_size = 64
heads = 8
kv_heads = 4
context_length = 64
batch_sequences = 8
steps = 60
tensor_parallel = 2
pipeline_parallel = 2
dropout = 0.1

[stage.serve]
kind = "serve"
inputs = ["train"]
replicas = 2
kv_cache_mib = 8
"#
    )
}

/// What stages are waited for in the middle: a stage, a figure that it reports, and how much of it.
pub const MIDDLES: [(&str, &str, u64); 3] =
    [("crawl", "pages_fetched", 12), ("clean", "documents", 1), ("train", "step", 10)];

/// Whether a stage has reported at least `least` of a figure and still runs.
pub fn is_amid(job: &Value, (name, figure, least): (&str, &str, u64)) -> bool {
    let stage = stage(job, name);
    stage["state"] == "running" && stage["metrics"][figure].as_u64().is_some_and(|count| count >= least)
}

/// What must not depend on what died.
pub fn outcome(job: &Value) -> Vec<(&'static str, String)> {
    let figures = [
        ("crawl", "crawl_blake3"),
        ("clean", "documents_kept"),
        ("clean", "documents_rejected"),
        ("tokens", "tokens_train"),
    ];
    let stages = job["stages"].as_array().unwrap();
    let figures = figures
        .into_iter()
        .filter(|(name, _)| stages.iter().any(|stage| stage["name"] == *name))
        .map(|(name, figure)| (figure, stage(job, name)["metrics"][figure].to_string()));
    let hashes = ["loss_bits_blake3", "weights_blake3"].map(|name| (name, job[name].to_string()));
    let outcome: Vec<_> = figures.chain(hashes).collect();
    assert!(outcome.iter().all(|(_, value)| value != "null"), "{outcome:?} of {job}");
    outcome
}
