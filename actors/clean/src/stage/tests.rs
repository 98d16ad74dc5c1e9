//! Tests of `stage`: whole stages over artefacts, through the actor.

use std::sync::Arc;

use ractor::Actor;
use sixfold_artifact::tokens::TokenShards;
use sixfold_cluster::task::{ErrorClass, LocalHost, Metric, TaskResult, TaskSpec};
use sixfold_wire::id::{Epoch, JobId, NodeName, TaskId};

use super::*;
use sixfold_cluster::work::Threaded;

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        Self { folder, store }
    }

    /// Runs one task as the cluster would.
    async fn run(&self, work: Work, options: serde_json::Value, inputs: &[ArtifactId]) -> TaskResult {
        let spec = TaskSpec {
            id: task_id(),
            role: work.role().to_owned(),
            stage: "text".to_owned(),
            count: 1,
            options_json: options.to_string(),
            inputs: inputs.to_vec(),
            resume: Vec::new(),
        };
        let host = Arc::new(LocalHost::new(self.store.clone()));
        let scratch = self.folder.path().to_owned();
        let (context, result) =
            TaskContext::new(spec, Epoch(1), NodeName::from("here"), self.store.clone(), scratch, host);
        let (_actor, ended) = Actor::spawn(None, Threaded::new(work), context).await.unwrap();
        let result = result.await.unwrap();
        ended.await.unwrap();
        result
    }

    fn publish_warc(&self, warc: &[u8]) -> ArtifactId {
        let mut manifest = Manifest::new(WARC, "crawl");
        manifest.files.push(self.store.put("pages-00000.warc", warc).unwrap());
        self.store.publish(&manifest).unwrap()
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn task_id() -> TaskId {
    TaskId { job: JobId(1), phase: 0, index: 0 }
}

const LINES: [&str; 4] = [
    "The archive keeps the packages that people need, and a mirror copies them to every country.",
    "软件包保存在归档中，每台机器都从那里获取所需的内容，并检查签名。",
    "Write to someone@example.org or call the office, which is open from nine to five on weekdays.",
    "這個軟體的發行版由志願者維護，它們會在網路上發佈，任何人都可以下載。",
];

/// Paragraphs that differ in more than a few bits, some repeated.
fn book() -> String {
    let line =
        |n: usize| format!("{} Number {} of {}.\n\n", LINES[n % 4].repeat(1 + n % 3), n * n, n % 7 * 1000);
    (0..60).map(line).collect::<String>() + &line(0) + "tiny\n\n"
}

fn count(output: &TaskOutput, name: &str) -> u64 {
    match &output.metrics[name] {
        Metric::Count(count) => *count,
        other => panic!("{name} is {other:?}"),
    }
}

async fn import(bench: &Bench) -> TaskOutput {
    let path = bench.file("book.txt", book().as_bytes());
    let options = serde_json::json!({"text": path, "document_chars_min": 1, "documents_per_artifact": 20});
    bench.run(Work::Import, options, &[]).await.unwrap()
}

/// Import, map (one task an input, in any order) and reduce.
async fn corpus(bench: &Bench, imported: &[ArtifactId]) -> TaskOutput {
    let options = serde_json::json!({"profile": "none", "chars_min": 20, "simplify": true, "threads": 2});
    let mut mapped = Vec::new();
    for &input in imported.iter().rev() {
        mapped.extend(bench.run(Work::Clean, options.clone(), &[input]).await.unwrap().artifacts);
    }
    mapped.reverse();
    bench.run(Work::CleanReduce, options, &mapped).await.unwrap()
}

#[tokio::test]
async fn a_text_file_becomes_a_corpus_and_token_shards() {
    let bench = Bench::new();
    let imported = import(&bench).await;
    assert_eq!((imported.artifacts.len(), count(&imported, "documents")), (4, 62));
    let made = corpus(&bench, &imported.artifacts).await;
    assert_eq!(count(&made, "documents_in"), 62);
    assert_eq!(count(&made, "documents_kept") + count(&made, "documents_rejected"), 62);
    assert_eq!(count(&made, "rejected_exact_duplicate"), 1);
    assert_eq!(count(&made, "rejected_chars_min"), 1);
    assert!(count(&made, "masked_email") > 0);
    let manifest = bench.store.manifest(made.artifacts[0]).unwrap();
    assert_eq!(manifest.kind, CORPUS);
    let wanted = ["documents.jsonl", "documents.parquet", "rejected.jsonl", "data-card.md", "data-card.html"];
    assert!(wanted.iter().all(|name| manifest.file(name).is_some()));
    let lines = String::from_utf8(bench.store.read(made.artifacts[0], DOCUMENTS_FILE).unwrap()).unwrap();
    let first: crate::document::Document = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first.source_artifact, imported.artifacts[0].to_string());
    assert!(!lines.contains("someone@example.org") && lines.contains("这个软体的发行版"));

    let options = serde_json::json!({"vocabulary": 400, "held_out": 0.2, "shard_tokens_max": 500});
    let tokens = bench.run(Work::Tokenize, options, &made.artifacts).await.unwrap();
    let id = tokens.artifacts[0];
    let tokenizer = crate::tokenizer::load(&bench.store.read(id, "tokenizer.json").unwrap()).unwrap();
    let train = TokenShards::from_artifact(&bench.store, id, "train").unwrap();
    let held_out = TokenShards::from_artifact(&bench.store, id, "held-out").unwrap();
    assert_eq!(train.documents() + held_out.documents(), count(&made, "documents_kept"));
    assert_eq!(train.len(), count(&tokens, "tokens_train"));
    assert!(train.index().shards.len() > 1 && held_out.documents() > 0);
    let texts: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<crate::document::Document>(line).unwrap().text)
        .collect();
    for split in [&train, &held_out] {
        for document in 0..split.documents() {
            let ids = split.get(split.document(document).unwrap()).unwrap();
            assert_eq!(ids.last(), Some(&0));
            let text = tokenizer.decode(&ids[..ids.len() - 1], false).unwrap();
            assert!(texts.contains(&text));
        }
    }
}

#[tokio::test]
async fn running_again_publishes_the_same_artefacts() {
    let run = || async {
        let bench = Bench::new();
        let imported = import(&bench).await.artifacts;
        let made = corpus(&bench, &imported).await.artifacts;
        let tokens = bench.run(Work::Tokenize, serde_json::json!({"vocabulary": 300}), &made).await.unwrap();
        [imported, made, tokens.artifacts].concat()
    };
    assert_eq!(run().await, run().await);
}

#[tokio::test]
async fn a_bytes_tokenizer_needs_no_training() {
    let bench = Bench::new();
    let imported = import(&bench).await;
    let options = serde_json::json!({"tokenizer": "bytes", "held_out": 0.0});
    let tokens = bench.run(Work::Tokenize, options, &imported.artifacts).await.unwrap();
    assert_eq!(count(&tokens, "vocabulary"), 260);
    assert_eq!(count(&tokens, "tokens_train"), count(&imported, "text_bytes") + 62);
    assert_eq!(count(&tokens, "tokens_held_out"), 0);
    let held_out = TokenShards::from_artifact(&bench.store, tokens.artifacts[0], "held-out").unwrap();
    assert!(held_out.is_empty());
}

/// A WARC file of records: their types, addresses and blocks.
fn warc(records: &[(&str, &str, Vec<u8>)]) -> Vec<u8> {
    let mut warc = Vec::new();
    for (kind, url, block) in records {
        let length = block.len();
        let head = format!("WARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {length}\r\n\r\n");
        warc.extend([b"WARC/1.1\r\n".as_slice(), head.as_bytes(), block, b"\r\n\r\n"].concat());
    }
    warc
}

/// An answer with a page.
fn page(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn code_keeps_its_indentation_from_page_to_corpus() {
    let bench = Bench::new();
    let prose: String = LINES.iter().step_by(2).map(|line| format!("<p>{line}\n  It is so.</p>")).collect();
    let html = format!(
        "<title>Loops</title><main><article><h1>Loops</h1>{prose}<pre><code class=python><span>def</span> f(x):\n    \
         <b>if</b> x &lt; 1 :\n\treturn  x   # done \n\n\n    return f(\n        x - 1)\n</code></pre>\n  \
         <p>The  end of\n   the page, after which nothing else comes for a reader.</p></article></main>"
    );
    let id = bench.publish_warc(&warc(&[("response", "http://example.org/loops", page(&html))]));
    for extractor in ["documentation", "main_text", "body"] {
        let options = serde_json::json!({"profile": "none", "extractor": extractor});
        let mapped = bench.run(Work::Clean, options.clone(), &[id]).await.unwrap();
        let made = bench.run(Work::CleanReduce, options, &mapped.artifacts).await.unwrap();
        let file = bench.store.read(made.artifacts[0], DOCUMENTS_FILE).unwrap();
        let document: crate::document::Document = serde_json::from_slice(&file).unwrap();
        let code = "def f(x):\n    if x < 1 :\n\treturn  x   # done\n\n    return f(\n        x - 1)\n";
        assert!(document.text.contains(code), "{extractor}: {}", document.text);
        for line in ["It is so.", "\nThe end of the page, after"] {
            assert!(document.text.contains(line), "{extractor}: {}", document.text);
        }
        assert!(!document.text.contains("  It is so."), "{extractor}: {}", document.text);
    }
}

#[tokio::test]
async fn pages_of_a_crawl_are_cleaned_and_the_rest_is_passed_over() {
    let bench = Bench::new();
    let page = |body: &str| page(&format!("<p>{body}</p>"));
    let records = [
        (
            "response",
            "http://example.org/robots.txt",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nDisallow:".to_vec(),
        ),
        ("request", "http://example.org/a", b"GET /a HTTP/1.1\r\n\r\n".to_vec()),
        ("response", "http://example.org/a", page(LINES[0])),
        ("response", "http://example.org/gone", b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()),
        (
            "response",
            "http://example.org/pdf",
            b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n%PDF".to_vec(),
        ),
        ("response", "http://example.org/b", page(LINES[1])),
    ];
    let warc = warc(&records);
    let id = bench.publish_warc(&warc);
    let options = serde_json::json!({"profile": "none", "chars_min": 20});
    let mapped = bench.run(Work::Clean, options.clone(), &[id]).await.unwrap();
    let made = bench.run(Work::CleanReduce, options.clone(), &mapped.artifacts).await.unwrap();
    assert_eq!((count(&made, "documents_in"), count(&made, "documents_kept")), (3, 2));
    assert_eq!(count(&made, "rejected_media_type"), 1);
    let lines = String::from_utf8(bench.store.read(made.artifacts[0], DOCUMENTS_FILE).unwrap()).unwrap();
    let last: crate::document::Document = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((last.url.as_str(), last.source_position), ("http://example.org/b", 2));
    assert_eq!(last.source_artifact, id.to_string());

    let cut = bench.publish_warc(&warc[..warc.len() - 30]);
    let error = bench.run(Work::Clean, options, &[cut]).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Fatal);
    assert!(error.message.contains("damaged or cut"), "{error}");
}

#[tokio::test]
async fn bad_input_is_fatal_and_says_what_to_do() {
    let bench = Bench::new();
    let cases = [
        (Work::Import, r#"{}"#, "one of `text` and `jsonl`"),
        (Work::Import, r#"{"text":"/no/such/file"}"#, "/no/such/file"),
        (Work::Import, r#"{"txt":"a"}"#, "unknown field `txt`"),
        (Work::Clean, r#"{"near_duplicate_bits":9}"#, "near_duplicate_bits is 9"),
        (Work::CleanReduce, r#"{}"#, "no document is left"),
        (Work::Tokenize, r#"{"held_out":0.9}"#, "held_out is 0.9"),
        (Work::Tokenize, r#"{}"#, "no document to tokenize"),
    ];
    for (work, options, words) in cases {
        let error = bench.run(work, serde_json::from_str(options).unwrap(), &[]).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let imported = import(&bench).await;
    let small = serde_json::json!({"vocabulary": 100});
    let error = bench.run(Work::Tokenize, small, &imported.artifacts).await.unwrap_err();
    assert!(error.message.contains("too small"), "{error}");
}

#[tokio::test]
async fn a_cancelled_task_publishes_nothing() {
    let bench = Bench::new();
    let imported = import(&bench).await;
    let before = bench.store.list().unwrap();
    let spec = TaskSpec {
        id: task_id(),
        role: "clean".to_owned(),
        stage: "text".to_owned(),
        count: 1,
        options_json: "{}".to_owned(),
        inputs: imported.artifacts,
        resume: Vec::new(),
    };
    let host = Arc::new(LocalHost::new(bench.store.clone()));
    let scratch = bench.folder.path().to_owned();
    let (context, result) =
        TaskContext::new(spec, Epoch(1), NodeName::from("here"), bench.store.clone(), scratch, host);
    context.cancel.cancel();
    let (_actor, ended) = Actor::spawn(None, Threaded::new(Work::Clean), context).await.unwrap();
    assert_eq!(result.await.unwrap().unwrap_err().class, ErrorClass::Restart);
    ended.await.unwrap();
    assert_eq!(bench.store.list().unwrap(), before);
}

/// A model of which a tokenizer stage needs no weights.
fn model(bench: &Bench, template: Option<&str>) -> ArtifactId {
    let texts = LINES.iter().map(|line| (*line).to_owned()).collect();
    let tokenizer = crate::tokenizer::train(texts, 400, 2).unwrap();
    let json = crate::tokenizer::to_json(&tokenizer).unwrap();
    let config = serde_json::json!({"eos_token_id": [2, 0], "max_position_embeddings": 99});
    let mut manifest = Manifest::new("model", "base");
    let mut put = |name: &str, content: &[u8]| manifest.files.push(bench.store.put(name, content).unwrap());
    put("tokenizer.json", json.as_bytes());
    put("config.json", config.to_string().as_bytes());
    if let Some(template) = template {
        put("tokenizer_config.json", serde_json::json!({"chat_template": template}).to_string().as_bytes());
    }
    bench.store.publish(&manifest).unwrap()
}

const DIALOGUES: &str = r#"{"instruction": "What keeps packages?", "input": "", "output": "The archive."}
{"conversations": [{"from": "human", "value": "软件包在哪里？"}, {"from": "gpt", "value": "在归档中。"}, {"from": "human", "value": "谁维护？"}, {"from": "gpt", "value": "志愿者。"}]}
{"messages": [{"role": "user", "content": "Say <|user|> twice"}, {"role": "assistant", "content": "No."}]}
{"messages": [{"role": "user", "content": "Only a question"}]}
not JSON
{"instruction": "Too long", "output": "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z, A, B, C, D, E, F, G, H, I, J, K, L, M"}
{"instruction": "Three", "output": "机器"}
"#;

#[tokio::test]
async fn dialogues_become_tokens_of_which_the_answers_are_learned() {
    let bench = Bench::new();
    let files = vec![bench.file("dialogues.jsonl", DIALOGUES.as_bytes())];
    let base = model(&bench, None);
    let options = serde_json::json!({"files": files, "template": "turns", "held_out": 0.3});
    let output = bench.run(Work::Instruct, options.clone(), &[base]).await.unwrap();
    let count = |name: &str| output.metrics[name].clone();
    for (name, expected) in [
        ("rows", 7_u64),
        ("documents", 3),
        ("rows_left_out", 4),
        ("left_out_special_token_in_text", 1),
        ("left_out_no_answer", 1),
        ("left_out_not_an_object", 1),
        ("left_out_too_long", 1),
    ] {
        assert_eq!(count(name), Metric::Count(expected), "{name}");
    }
    let id = output.artifacts[0];
    let manifest = bench.store.manifest(id).unwrap();
    assert_eq!(manifest.file("tokenizer.json"), bench.store.manifest(base).unwrap().file("tokenizer.json"));
    let template = bench.store.read(id, "chat_template.jinja").unwrap();
    assert_eq!(template, sixfold_chat::Builtin::Turns.source().as_bytes());
    let tokenizer = crate::tokenizer::load(&bench.store.read(id, "tokenizer.json").unwrap()).unwrap();
    let mut learned = Vec::new();
    for split in SPLITS {
        let shards = TokenShards::from_artifact(&bench.store, id, split).unwrap();
        assert!(shards.is_masked());
        let split: Vec<u32> = (0..shards.len())
            .filter(|&token| shards.is_learned(token))
            .flat_map(|token| shards.get(token..token + 1).unwrap())
            .collect();
        learned.extend(tokenizer.decode(&split, false).unwrap().lines().map(str::to_owned));
    }
    learned.sort();
    assert_eq!(learned, ["The archive.", "在归档中。", "志愿者。", "机器"]);
    assert_eq!(bench.run(Work::Instruct, options, &[base]).await.unwrap().artifacts, [id], "again the same");

    let cut = serde_json::json!({"files": files, "template": "turns", "too_long": "cut"});
    let cut = bench.run(Work::Instruct, cut, &[base]).await.unwrap();
    assert_eq!(cut.metrics["dialogues_cut"], Metric::Count(1));
    assert_eq!(cut.metrics["documents"], Metric::Count(4));
}

#[tokio::test]
async fn dialogues_that_a_model_cannot_be_told_are_refused() {
    let bench = Bench::new();
    let files = vec![bench.file("dialogues.jsonl", DIALOGUES.as_bytes())];
    let refused = async |template: Option<&str>, options: serde_json::Value| {
        let error = bench.run(Work::Instruct, options, &[model(&bench, template)]).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        error.message
    };
    let plain = serde_json::json!({"files": files});
    assert!(refused(None, plain.clone()).await.contains("no chat template; give `template` one of chatml"));
    let marks = serde_json::json!({"files": files, "template": "chatml"});
    assert!(refused(None, marks).await.contains("<|im_end|>, <|im_start|>, which the model's tokenizer"));
    let backwards = "{% for m in messages | reverse %}{{ m.content }}.{% endfor %}";
    assert!(refused(Some(backwards), plain.clone()).await.contains("in another way once there is more"));
    let empty = serde_json::json!({"files": [bench.file("empty.json", b"[]")], "template": "turns"});
    assert!(refused(None, empty).await.contains("no rows"));
    let error = bench.run(Work::Instruct, plain, &[]).await.unwrap_err();
    assert!(error.message.contains("needs a model"), "{error}");
}

#[tokio::test]
async fn text_is_tokenized_as_a_model_does_it() {
    let bench = Bench::new();
    let text = bench.file("book.txt", LINES.join("\n\n").as_bytes());
    let import = serde_json::json!({"text": text, "document_chars_min": 1});
    let documents = bench.run(Work::Import, import, &[]).await.unwrap().artifacts[0];
    let base = model(&bench, Some("t"));
    let inputs = [documents, base];
    let output = bench.run(Work::Tokenize, serde_json::json!({}), &inputs).await.unwrap();
    let id = output.artifacts[0];
    let (tokens, of_base) = (bench.store.manifest(id).unwrap(), bench.store.manifest(base).unwrap());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(tokens.file(file), of_base.file(file), "{file}");
    }
    let shards = TokenShards::from_artifact(&bench.store, id, "train").unwrap();
    let first = shards.document(0).unwrap();
    assert_eq!(
        shards.get(first.end - 1..first.end).unwrap(),
        [2],
        "what the model's configuration says ends a text"
    );
    let bytes =
        bench.run(Work::Tokenize, serde_json::json!({"tokenizer": "bytes"}), &inputs).await.unwrap_err();
    assert!(bytes.message.contains("`tokenizer` is `bytes`"), "{bytes}");
}
