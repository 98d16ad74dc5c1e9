//! The closed set of stage kinds: their options, what they take, and the phases that they become.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sixfold_clean::options::{CleanOptions, ImportOptions, InstructOptions, TokenizeOptions};
use sixfold_clean::stage::Work;
use sixfold_coordinator::job::{Elastic, Fan, GangRules, PhaseSpec, Resources};
use sixfold_crawl::CrawlOptions;
use sixfold_drift::DriftOptions;
use sixfold_evaluate::EvaluateOptions;
use sixfold_infer::message::ROLE as INFER;
use sixfold_infer::options::Options as ServeOptions;
use sixfold_train::{ModelOptions, TrainOptions};

use super::file::nearest;
use crate::roles::{CRAWL, MODEL, TRAIN};

/// All kinds, in the order of a model's life.
pub(crate) fn all() -> Vec<StageKind> {
    vec![crawl(), import(), model(), clean(), tokenize(), instruct(), train(), evaluate(), serve(), drift()]
}

fn crawl() -> StageKind {
    kind::<CrawlOptions>(Kind {
        name: "crawl",
        about: "fetch the pages of web sites, politely, into WARC files",
        takes: &[],
        required: json!({"seeds": ["https://example.org/"]}),
        validate: |options| options.seed_urls().map(drop).map_err(|error| error.to_string()),
        phases: |_| vec![phase(CRAWL, Fan::Single, 1)],
    })
}

fn import() -> StageKind {
    kind::<ImportOptions>(Kind {
        name: "import",
        about: "read a text or JSONL file that lies on the node",
        takes: &[],
        required: json!({}),
        validate: |options| match (&options.text, &options.jsonl) {
            (None, None) | (Some(_), Some(_)) => Err("give one of `text` and `jsonl`".to_owned()),
            _ => Ok(()),
        },
        phases: |_| vec![phase(Work::Import.role(), Fan::Single, 1)],
    })
}

fn model() -> StageKind {
    kind::<ModelOptions>(Kind {
        name: "model",
        about: "take a model's folder that lies on the node, for stages that train from it, evaluate or serve it",
        takes: &[],
        required: json!({"path": "SmolLM2-135M-Instruct"}),
        validate: |_| Ok(()),
        phases: |_| vec![phase(MODEL, Fan::Single, 1)],
    })
}

fn clean() -> StageKind {
    kind::<CleanOptions>(Kind {
        name: "clean",
        about: "pages or texts to clean documents: extraction, normal form, quality rules, duplicates, masks",
        takes: &[&["crawl", "import"]],
        required: json!({}),
        validate: |options| {
            sixfold_clean::clean::Cleaner::new(options).map(drop).map_err(|error| error.to_string())
        },
        phases: |options| {
            let threads = options.threads.max(1) as u32;
            vec![
                phase(Work::Clean.role(), Fan::PerInput, threads),
                phase(Work::CleanReduce.role(), Fan::Single, 1),
            ]
        },
    })
}

fn tokenize() -> StageKind {
    kind::<TokenizeOptions>(Kind {
        name: "tokenize",
        about: "train a byte-level BPE tokenizer and write token shards",
        takes: &[&["clean", "import"]],
        required: json!({}),
        validate: |_| Ok(()),
        phases: |options| vec![phase(Work::Tokenize.role(), Fan::Single, options.threads.max(1) as u32)],
    })
    .with_base()
}

fn instruct() -> StageKind {
    kind::<InstructOptions>(Kind {
        name: "instruct",
        about: "read dialogues that lie on the node, for a model to learn their answers, by its chat template",
        takes: &[BASES],
        required: json!({"files": ["dialogues.jsonl"]}),
        validate: InstructOptions::validate,
        phases: |options| vec![phase(Work::Instruct.role(), Fan::Single, options.threads.max(1) as u32)],
    })
}

fn train() -> StageKind {
    kind::<TrainOptions>(Kind {
        name: "train",
        about: "train a decoder under data, tensor and pipeline parallelism; the same bits on any plan",
        takes: &[&["tokenize", "instruct"]],
        required: json!({}),
        validate: |options| options.validate().map_err(|error| error.to_string()),
        phases: |options| {
            let rules = Some(gang_rules(options));
            vec![PhaseSpec { rules, ..phase(TRAIN, Fan::Gang(options.plan()), options.threads as u32) }]
        },
    })
    .with_base()
}

/// What may change of a training while it runs.
fn gang_rules(options: &TrainOptions) -> GangRules {
    let elastic = Elastic {
        shrink_after_ms: options.shrink_after_seconds.saturating_mul(1000),
        widen_after_ms: options.widen_after_seconds.saturating_mul(1000),
    };
    GangRules {
        shape: options.shape(),
        free_options: TrainOptions::FREE.map(str::to_owned).to_vec(),
        elastic: options.elastic.then_some(elastic),
    }
}

fn evaluate() -> StageKind {
    kind::<EvaluateOptions>(Kind {
        name: "evaluate",
        about: "held-out perplexity, Distinct-n, samples and a report; needs a model and held-out text",
        takes: &[BASES, &["tokenize", "instruct"]],
        required: json!({}),
        validate: EvaluateOptions::validate,
        phases: |options| vec![phase(sixfold_evaluate::ROLE, Fan::Single, options.threads.max(1) as u32)],
    })
}

fn serve() -> StageKind {
    kind::<ServeOptions>(Kind {
        name: "serve",
        about: "replicas of a model that answer over the OpenAI API and `sixfold query`",
        takes: &[BASES],
        required: json!({}),
        validate: |_| Ok(()),
        phases: |options| vec![phase(INFER, Fan::Replicas(options.replicas), options.threads.max(1))],
    })
}

fn drift() -> StageKind {
    kind::<DriftOptions>(Kind {
        name: "drift",
        about: "watch what is asked of a served model against what it was trained on",
        takes: &[&["tokenize", "instruct"]],
        required: json!({}),
        validate: DriftOptions::validate,
        phases: |_| vec![phase(sixfold_drift::ROLE, Fan::Replicas(1), 1)],
    })
}

/// What checking a stage's options yields.
pub(crate) struct Checked {
    /// The options with every default filled in.
    pub(crate) options: Value,
    /// The phases that the stage becomes.
    pub(crate) phases: Vec<PhaseSpec>,
}

/// What is wrong with an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OptionError {
    /// No option is called so; the known ones.
    Unknown(String, Vec<String>),
    /// An option that must be given is not.
    Missing(String),
    /// The option of that name has a value of a wrong type.
    Value(String, String),
    /// The options contradict each other or the stage's limits.
    Refused(String),
}

impl OptionError {
    /// What is wrong with a stage of that kind, and the way out.
    pub(crate) fn explain(&self, kind: &str) -> String {
        match self {
            Self::Unknown(option, known) => {
                let hint = nearest(option, known.iter().map(String::as_str));
                format!("`{kind}` has no option `{option}`{hint} (`sixfold stages {kind}` lists them)")
            }
            Self::Missing(option) => {
                format!("`{kind}` needs the option `{option}`; `sixfold stages {kind}` explains it")
            }
            Self::Value(option, message) => format!("option `{option}`: {message}"),
            Self::Refused(message) => message.clone(),
        }
    }
}

/// One kind of stage.
pub(crate) struct StageKind {
    pub(crate) name: &'static str,
    /// One sentence for people.
    pub(crate) about: &'static str,
    /// What it needs as inputs: of each entry at least one stage of one of these kinds. It takes no others.
    pub(crate) takes: &'static [&'static [&'static str]],
    /// Kinds of stages of which one may be among the inputs besides.
    pub(crate) may_take: &'static [&'static str],
    /// The options that have no default, with an example.
    pub(crate) required: Value,
    /// Each option and what it means, in the order in which its type states them.
    pub(crate) options: Vec<(String, String)>,
    check: Box<dyn Fn(Value) -> Result<Checked, OptionError> + Send + Sync>,
}

/// Stages that make a model.
const BASES: &[&str] = &["model", "train"];

impl StageKind {
    /// May take a stage whose model it starts from.
    fn with_base(self) -> Self {
        Self { may_take: BASES, ..self }
    }

    /// Fills in the defaults and checks types and limits.
    pub(crate) fn check(&self, options: Value) -> Result<Checked, OptionError> {
        (self.check)(options)
    }

    /// The options as they are where nothing but what is required is given; empty for a kind that
    /// needs one of several.
    pub(crate) fn defaults(&self) -> Value {
        self.check(self.required.clone()).map(|checked| checked.options).unwrap_or_default()
    }
}

/// What is particular to a kind with options of type `O`.
struct Kind<O> {
    name: &'static str,
    about: &'static str,
    takes: &'static [&'static [&'static str]],
    required: Value,
    validate: fn(&O) -> Result<(), String>,
    phases: fn(&O) -> Vec<PhaseSpec>,
}

fn kind<O>(kind: Kind<O>) -> StageKind
where
    O: Serialize + DeserializeOwned + JsonSchema + 'static,
{
    let Kind { name, about, takes, required, validate, phases } = kind;
    let check = move |given: Value| {
        let options: O = serde_path_to_error::deserialize(given).map_err(|error| {
            let option = error.path().iter().next().map(ToString::to_string).unwrap_or_default();
            explain(&option, &error.into_inner().to_string())
        })?;
        validate(&options).map_err(OptionError::Refused)?;
        let phases = phases(&options);
        let options =
            serde_json::to_value(options).map_err(|error| OptionError::Refused(error.to_string()))?;
        Ok(Checked { options, phases })
    };
    StageKind {
        name,
        about,
        takes,
        may_take: &[],
        required,
        options: described::<O>(),
        check: Box::new(check),
    }
}

/// Names and doc comments of the fields of `O`.
fn described<O: JsonSchema>() -> Vec<(String, String)> {
    let schema = schemars::schema_for!(O);
    let fields = schema.get("properties").and_then(Value::as_object);
    let about = |field: &Value| {
        let text = field.get("description").and_then(Value::as_str).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    fields.into_iter().flatten().map(|(name, field)| (name.clone(), about(field))).collect()
}

/// serde says which field it did not know, or lacked, in its message only.
fn explain(option: &str, message: &str) -> OptionError {
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let first = quoted.next().unwrap_or_default();
    if message.starts_with("unknown field") {
        OptionError::Unknown(first, quoted.collect())
    } else if message.starts_with("missing field") {
        OptionError::Missing(first)
    } else {
        OptionError::Value(option.to_owned(), message.to_owned())
    }
}

fn phase(role: &str, fan: Fan, threads: u32) -> PhaseSpec {
    PhaseSpec {
        role: role.to_owned(),
        fan,
        resources: Resources { threads: threads.max(1), ..Resources::default() },
        rules: None,
    }
}
