//! A tiny random model, a few held-out documents, and a process without a cluster that evaluates them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use ractor::Actor;
use serde_json::{Value, json};
use sixfold_artifact::model::{ADAPTER_CONFIG, ADAPTERS, WEIGHTS};
use sixfold_artifact::tokens::{
    MaskBits, ShardEntry, TokenIndex, TokenWriter, encode_boundaries, index_file, mask_file, shard_file,
};
use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::task::{
    Gang, HostError, LocalHost, Metrics, TaskContext, TaskError, TaskHost, TaskOutput, TaskResult, TaskSpec,
};
use sixfold_cluster::work::Threaded;
use sixfold_evaluate::{Evaluator, ROLE};
use sixfold_model::{
    Geometry, Lora, ModelConfig, ModelSlice, Projection, UnitBuffer, initialize, merge_adapters,
    write_parameters,
};
use sixfold_wire::id::{ArtifactId, Epoch, JobId, TaskId};
use tokio::sync::oneshot;

const VOCABULARY: u32 = 257;
const SHARDS: usize = 4;
pub(crate) const LOSSES: [f32; 5] = [5.55, 5.1, 4.0, 3.25, 3.3];
pub(crate) const DOCUMENTS: [&str; 4] = [
    "<script>alert('a document may say anything')</script> and `code`",
    "the cat sat on the mat",
    "a document that is a good deal longer than the window of twenty-four tokens, so that it is cut in many",
    "``` fences and 今天天气很好 are text",
];

pub(crate) fn end_of_text() -> u32 {
    VOCABULARY - 1
}

/// A byte a token, and the end of the text.
pub(crate) fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).chain([end_of_text()]).collect()
}

pub(crate) fn geometry() -> Geometry {
    let config = ModelConfig {
        family: sixfold_model::Family::Llama,
        vocab_size: VOCABULARY as usize,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: true,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: Some(end_of_text()),
    };
    Geometry::new(config, SHARDS).unwrap()
}

/// Random weights, large enough that what comes next depends on what came before.
pub(crate) fn parameters() -> UnitBuffer {
    let geometry = geometry();
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 5);
    parameters.values_mut().iter_mut().for_each(|value| *value *= 8.0);
    parameters
}

fn tokenizer() -> Vec<u8> {
    let mut stand_in = 256;
    let vocabulary: HashMap<String, u32> = (0..=255_u32)
        .map(|byte| {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let code = if printable { byte } else { stand_in };
            stand_in += u32::from(!printable);
            (char::from_u32(code).unwrap().to_string(), byte)
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let end = json!({"id": end_of_text(), "content": "<|endoftext|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false});
    let json = json!({
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    json.to_string().into_bytes()
}

fn model_files(parameters: &UnitBuffer) -> Vec<(String, Vec<u8>)> {
    let geometry = geometry();
    let config = geometry.config.to_hugging_face(SHARDS).to_string().into_bytes();
    let training = json!({"steps": LOSSES.len(), "losses": LOSSES}).to_string().into_bytes();
    let weights = write_parameters(&geometry, parameters).unwrap();
    [
        ("config.json", config),
        ("model.safetensors", weights),
        ("tokenizer.json", tokenizer()),
        ("training.json", training),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

/// Tokens of a document before its answer, where documents are dialogues.
pub(crate) const QUESTION: usize = 10;

/// The documents as dialogues of a question and an answer.
fn dialogue_files() -> Vec<(String, Vec<u8>)> {
    let split = "held-out";
    let documents: Vec<Vec<u32>> = DOCUMENTS.iter().map(|text| tokens(text)).collect();
    let mut files = token_files(split, &documents, tokenizer());
    let mut mask = MaskBits::default();
    documents.iter().for_each(|document| (0..document.len()).for_each(|at| mask.push(at >= QUESTION)));
    let index = files.iter_mut().find(|(name, _)| *name == index_file(split)).unwrap();
    index.1 = TokenIndex::decode(&index.1).unwrap().with_mask(split).encode().unwrap();
    files.push((mask_file(split), mask.bytes().to_vec()));
    files
}

fn token_files(split: &str, documents: &[Vec<u32>], tokenizer: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut writer = TokenWriter::new(Vec::new(), VOCABULARY);
    let mut boundaries = vec![0];
    for document in documents {
        writer.push(document).unwrap();
        boundaries.push(writer.tokens());
    }
    let (bytes, count) = writer.finish().unwrap();
    let shard = ShardEntry { file: shard_file(split, 0), tokens: count };
    let index = TokenIndex::new(split, VOCABULARY, documents.len() as u64, vec![shard.clone()]);
    vec![
        ("tokenizer.json".to_owned(), tokenizer),
        (index_file(split), index.encode().unwrap()),
        (index.boundaries, encode_boundaries(&boundaries)),
        (shard.file, bytes),
    ]
}

/// A published report.
pub(crate) struct Published {
    store: Store,
    id: ArtifactId,
    pub(crate) manifest: Manifest,
}

impl Published {
    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.store.read(self.id, name).unwrap()).unwrap()
    }

    pub(crate) fn samples(&self) -> Vec<Value> {
        self.text("samples.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A store with a model and held-out text.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) host: Arc<LocalHost>,
    pub(crate) inputs: Vec<ArtifactId>,
    folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let host = Arc::new(LocalHost::new(store.clone()));
        let mut fixture = Self { store, host, inputs: Vec::new(), folder };
        let model = fixture.publish("model", model_files(&parameters()));
        let documents: Vec<Vec<u32>> = DOCUMENTS.iter().map(|text| tokens(text)).collect();
        let tokens = fixture.publish("tokens", token_files("held-out", &documents, tokenizer()));
        fixture.inputs = vec![model, tokens];
        fixture
    }

    /// The same, with dialogues for held-out text.
    pub(crate) fn of_dialogues() -> Self {
        let mut fixture = Self::new();
        fixture.inputs[1] = fixture.publish("tokens", dialogue_files());
        fixture
    }

    fn publish(&self, kind: &str, files: Vec<(String, Vec<u8>)>) -> ArtifactId {
        let mut manifest = Manifest::new(kind, "test");
        manifest.files.extend(files.iter().map(|(name, content)| self.store.put(name, content).unwrap()));
        self.store.publish(&manifest).unwrap()
    }

    /// The model with other weights, without some of its files.
    pub(crate) fn other_model(&self, without: &[&str]) -> ArtifactId {
        let mut parameters = parameters();
        parameters.values_mut()[0] += 1.0;
        let files =
            model_files(&parameters).into_iter().filter(|(name, _)| !without.contains(&name.as_str()));
        self.publish("model", files.collect())
    }

    /// The model with one file replaced.
    pub(crate) fn damaged_model(&self, file: &str, content: &[u8]) -> ArtifactId {
        let mut files = model_files(&parameters());
        let damaged = files.iter_mut().find(|(name, _)| name == file).unwrap();
        damaged.1 = content.to_vec();
        self.publish("model", files)
    }

    /// A model of adapters alone beside the fixture's, and one of the weights that both come to.
    pub(crate) fn adapted_models(&self) -> [ArtifactId; 2] {
        let lora = Lora { rank: 2, alpha: 4.0, projections: [Projection::Key, Projection::Up].into() };
        let adapted = geometry().with_lora(lora.clone()).unwrap();
        let mut adapters = initialize(&adapted, &ModelSlice::whole(&adapted), 1);
        adapters.values_mut().iter_mut().for_each(|value| *value += 0.25);
        let merged = model_files(&merge_adapters(&adapted, &parameters(), &adapters));
        let mut files = model_files(&parameters());
        files.retain(|(name, _)| name != WEIGHTS);
        files.push((
            ADAPTER_CONFIG.to_owned(),
            lora.to_peft(&geometry().config, "base", 0.0).to_string().into_bytes(),
        ));
        files.push((ADAPTERS.to_owned(), write_parameters(&adapted, &adapters).unwrap()));
        let mut manifest = Manifest { needs: vec![self.inputs[0]], ..Manifest::new("model", "test") };
        manifest.files.extend(files.iter().map(|(name, content)| self.store.put(name, content).unwrap()));
        [self.store.publish(&manifest).unwrap(), self.publish("model", merged)]
    }

    /// A model whose weights are not numbers.
    pub(crate) fn diverged_model(&self) -> ArtifactId {
        let mut parameters = parameters();
        parameters.values_mut().fill(f32::NAN);
        self.publish("model", model_files(&parameters))
    }

    pub(crate) fn other_tokens(&self, split: &str) -> ArtifactId {
        self.publish("tokens", token_files(split, &[tokens("a text")], tokenizer()))
    }

    pub(crate) fn other_tokenizer(&self) -> ArtifactId {
        self.publish("tokens", token_files("held-out", &[tokens("a text")], b"{}".to_vec()))
    }

    pub(crate) fn empty_tokens(&self) -> ArtifactId {
        self.publish("tokens", token_files("held-out", &[vec![end_of_text()], Vec::new()], tokenizer()))
    }

    /// Evaluates the fixture's model on its text.
    pub(crate) async fn evaluate(&self, options: &str) -> Result<(TaskOutput, Published), TaskError> {
        let output = self.evaluate_from(&self.inputs, options).await?;
        let [id] = output.artifacts[..] else { panic!("one report") };
        let manifest = self.store.verify(id).unwrap();
        Ok((output, Published { store: self.store.clone(), id, manifest }))
    }

    pub(crate) async fn evaluate_from(&self, inputs: &[ArtifactId], options: &str) -> TaskResult {
        let (context, result) = self.task(inputs, options, self.host.clone());
        Self::run(context, result).await
    }

    /// Evaluates with a host that cancels the task at its first report of progress.
    pub(crate) async fn evaluate_and_cancel(&self, options: &str) -> TaskResult {
        let host = Arc::new(CancellingHost { inner: self.host.clone(), cancel: OnceLock::new() });
        let (context, result) = self.task(&self.inputs, options, host.clone());
        let token = context.cancel.clone();
        let cancel: Box<Cancel> = Box::new(move || token.cancel());
        assert!(host.cancel.set(cancel).is_ok());
        Self::run(context, result).await
    }

    fn task(
        &self,
        inputs: &[ArtifactId],
        options: &str,
        host: Arc<dyn TaskHost>,
    ) -> (TaskContext, oneshot::Receiver<TaskResult>) {
        let spec = TaskSpec {
            id: TaskId { job: JobId(1), phase: 0, index: 0 },
            role: ROLE.into(),
            stage: "evaluate".into(),
            count: 1,
            options_json: options.to_owned(),
            inputs: inputs.to_vec(),
            resume: Vec::new(),
        };
        let scratch = self.folder.path().join("scratch");
        TaskContext::new(spec, Epoch(1), "here".into(), self.store.clone(), scratch, host)
    }

    async fn run(context: TaskContext, result: oneshot::Receiver<TaskResult>) -> TaskResult {
        let (_actor, stopped) = Actor::spawn(None, Threaded::new(Evaluator), context).await.unwrap();
        let result = result.await.unwrap();
        stopped.await.unwrap();
        result
    }
}

type Cancel = dyn Fn() + Send + Sync;

/// A local host that cancels its task when it hears of progress.
struct CancellingHost {
    inner: Arc<LocalHost>,
    cancel: OnceLock<Box<Cancel>>,
}

#[async_trait]
impl TaskHost for CancellingHost {
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        self.inner.fetch(id).await
    }

    async fn publish(&self, manifest: Manifest) -> Result<ArtifactId, HostError> {
        self.inner.publish(manifest).await
    }

    async fn save_state(&self, state: ArtifactId, step: u64) -> Result<(), HostError> {
        self.inner.save_state(state, step).await
    }

    async fn rendezvous(&self, address: SocketAddr) -> Result<Gang, HostError> {
        self.inner.rendezvous(address).await
    }

    async fn serve(&self, address: SocketAddr, about: Metrics) -> Result<(), HostError> {
        self.inner.serve(address, about).await
    }

    fn progress(&self, figures: Metrics) {
        self.inner.progress(figures);
        self.cancel.get().unwrap()();
    }

    fn log(&self, line: String) {
        self.inner.log(line);
    }
}
