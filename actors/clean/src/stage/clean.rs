//! The two tasks of a `clean` stage: map and reduce.

use std::fs::File;
use std::io::BufReader;

use sixfold_artifact::Manifest;
use sixfold_cluster::task::{TaskContext, TaskOutput};
use sixfold_wire::id::ArtifactId;

use super::{CORPUS, DOCUMENTS, DOCUMENTS_FILE, WARC, documents_of, options};
use crate::card::data_card;
use crate::clean::{Cleaner, Input, Page};
use crate::corpus::{CorpusFiles, CorpusWriter};
use crate::document::RawDocument;
use crate::error::CleanError;
use crate::merge::{Segment, merge};
use crate::options::CleanOptions;
use crate::progress::Progress;
use crate::segment;

/// The key in a candidates' manifest that names the artefact they were made from.
const SOURCE: &str = "source_artifact";

type Inputs = Box<dyn Iterator<Item = Result<Input, CleanError>>>;

/// Cleans each input artefact by itself.
pub(super) async fn map(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: CleanOptions = options(context)?;
    let cleaner = Cleaner::new(&options)?;
    let pool = segment::pool(options.threads)?;
    let progress = Progress::of(context);
    let mut output = TaskOutput::default();
    let mut candidates = 0;
    for (id, manifest) in context.fetch_inputs().await? {
        let mut writer = context.store.writer()?;
        let inputs = inputs_of(context, id, &manifest, options.page_bytes_max)?;
        let count = segment::clean_all(&cleaner, &pool, inputs, &mut writer, &progress)?;
        let mut made = context.manifest(DOCUMENTS).with(SOURCE, id.to_string()).with("candidates", count);
        made.files.push(writer.finish(DOCUMENTS_FILE)?);
        output.artifacts.push(context.host.publish(made).await?);
        candidates += count;
    }
    output.metrics.insert("candidates".to_owned(), candidates.into());
    Ok(output)
}

/// What a clean stage makes of an artefact: pages of its WARC files, or its documents.
fn inputs_of(
    context: &TaskContext,
    id: ArtifactId,
    manifest: &Manifest,
    page_bytes_max: usize,
) -> Result<Inputs, CleanError> {
    let damaged = move |reason: String| CleanError::Input { artifact: id.to_string(), reason };
    let open = |path: std::path::PathBuf| {
        File::open(&path)
            .map(|file| BufReader::with_capacity(1 << 18, file))
            .map_err(|error| damaged(error.to_string()))
    };
    let mut all: Inputs = Box::new(std::iter::empty());
    match manifest.kind.as_str() {
        WARC => {
            for file in manifest.files.iter().filter(|file| is_warc(&file.name)) {
                let reader = open(context.store.entry_path(file)?)?;
                all = Box::new(all.chain(segment::pages(reader, page_bytes_max, damaged)?));
            }
        }
        DOCUMENTS | CORPUS => {
            let reader = open(documents_of(&context.store, id, manifest)?)?;
            all = Box::new(segment::raw_documents(reader, damaged));
        }
        other => return Err(damaged(format!("a clean stage reads `warc` and `documents`, not `{other}`"))),
    }
    Ok(Box::new(all.zip(0..).map(|(input, position)| input.map(|input| at(input, position)))))
}

fn is_warc(name: &str) -> bool {
    name.ends_with(".warc.gz") || name.ends_with(".warc")
}

/// Positions count through all files of an artefact.
fn at(input: Input, position: u64) -> Input {
    match input {
        Input::Page(page) => Input::Page(Page { position, ..page }),
        Input::Raw(raw) => Input::Raw(RawDocument { position, ..raw }),
    }
}

/// Joins the candidates of all segments, in the order of the inputs, to a corpus.
pub(super) async fn reduce(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: CleanOptions = options(context)?;
    let progress = Progress::of(context);
    let mut segments = Vec::new();
    for (id, manifest) in context.fetch_inputs().await? {
        let source = manifest.metadata.get(SOURCE).and_then(|source| source.as_str());
        segments.push(Segment {
            path: documents_of(&context.store, id, &manifest)?,
            source_artifact: source.map_or_else(|| id.to_string(), str::to_owned),
        });
    }
    let store = &context.store;
    let files =
        CorpusFiles { documents: store.writer()?, parquet: store.writer()?, rejected: store.writer()? };
    let mut writer = CorpusWriter::new(files)?;
    let figures = merge(&segments, &options, &mut writer, &progress)?;
    let written = writer.finish()?;
    let mut manifest = context
        .manifest(CORPUS)
        .with("documents", figures.documents_kept)
        .with("chars", figures.chars)
        .with("words", figures.words)
        .with("languages", serde_json::json!(figures.languages));
    manifest.files = vec![
        written.documents.finish(DOCUMENTS_FILE)?,
        written.parquet.finish("documents.parquet")?,
        written.rejected.finish("rejected.jsonl")?,
    ];
    let sources: Vec<String> = segments.iter().map(|segment| segment.source_artifact.clone()).collect();
    for (name, content) in data_card(&context.spec.stage, &figures, &options, &sources)? {
        manifest.files.push(store.put(name, content.as_bytes())?);
    }
    if figures.documents_kept == 0 {
        return Err(CleanError::Empty("no document is left: see the rules of `profile` and the languages"));
    }
    let artifacts = vec![context.host.publish(manifest).await?];
    Ok(TaskOutput { artifacts, metrics: figures.metrics() })
}
