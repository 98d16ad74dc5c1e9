//! The job file as written: names, kinds, inputs and options, each with its place in the text.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// Longer job files are refused.
const FILE_BYTES_MAX: usize = 1 << 20;
/// More stages are refused.
const STAGES_MAX: usize = 64;

/// A value and where it stands in the job file.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    /// The value.
    pub(crate) value: T,
    /// Where its key stands.
    pub(crate) place: Place,
}

/// Where a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At these bytes of the file.
    File(Range<usize>),
    /// In a `--set` argument.
    Set(String),
}

/// A stage as written.
#[derive(Clone, Debug)]
pub(crate) struct RawStage {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) kind: Placed<String>,
    pub(crate) inputs: Vec<Placed<String>>,
    pub(crate) options: BTreeMap<String, Placed<Value>>,
}

/// A job file as written.
#[derive(Clone, Debug)]
pub(crate) struct RawJob {
    pub(crate) name: String,
    pub(crate) stages: Vec<RawStage>,
    source: String,
    path: String,
}

/// What is wrong with a job file, where, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JobFileError(String);

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for JobFileError {}

impl RawJob {
    /// Reads a job file and applies `--set STAGE.KEY=VALUE` arguments to it.
    pub(crate) fn parse(path: &str, source: &str, settings: &[String]) -> Result<Self, JobFileError> {
        if source.len() > FILE_BYTES_MAX {
            return Err(JobFileError(format!("{path}: a job file has at most {FILE_BYTES_MAX} bytes")));
        }
        let table = DeTable::parse(source)
            .map_err(|error| JobFileError(format!("{path}: {}", error.to_string().trim_end())))?;
        let mut job = Self {
            name: String::new(),
            stages: Vec::new(),
            source: source.to_owned(),
            path: path.to_owned(),
        };
        job.read_top(table.get_ref())?;
        for setting in settings {
            job.set(setting)?;
        }
        Ok(job)
    }

    /// An error at a place of this file.
    pub(crate) fn error(&self, place: &Place, message: impl fmt::Display) -> JobFileError {
        JobFileError(match place {
            Place::Set(setting) => format!("--set {setting}: {message}"),
            Place::File(span) => {
                let start = span.start.min(self.source.len());
                let before = &self.source.as_bytes()[..start];
                let line_number = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
                let line = self.source.lines().nth(line_number - 1).unwrap_or_default();
                format!("{}:{line_number}: {message}\n  {line_number} | {line}", self.path)
            }
        })
    }

    fn read_top(&mut self, table: &DeTable<'_>) -> Result<(), JobFileError> {
        for (key, value) in table {
            let place = Place::File(key.span());
            match key.get_ref().as_ref() {
                "name" => self.name = self.string("name", &place, value.get_ref())?,
                "stage" => {
                    let stages = value.get_ref().as_table().ok_or_else(|| {
                        self.error(
                            &place,
                            "`stage` holds the stages: write a section `[stage.NAME]` for each",
                        )
                    })?;
                    for (name, stage) in stages {
                        let place = Place::File(name.span());
                        let stage = self.read_stage(name.get_ref(), place, stage.get_ref())?;
                        self.stages.push(stage);
                    }
                }
                other => {
                    let hint = nearest(other, ["name", "stage"]);
                    return Err(
                        self.error(&place, format!("unknown key `{other}` at the top of a job file{hint}"))
                    );
                }
            }
        }
        // The parser's map is ordered by name; the file's order is the one that people meant.
        self.stages.sort_by_key(|stage| match &stage.place {
            Place::File(span) => span.start,
            Place::Set(_) => usize::MAX,
        });
        let whole = Place::File(0..0);
        if self.name.is_empty() {
            return Err(self.error(&whole, "a job needs a name: add `name = \"...\"` at the top"));
        }
        if self.stages.is_empty() {
            return Err(self.error(&whole, "a job needs at least one stage: add a section `[stage.NAME]`"));
        }
        if self.stages.len() > STAGES_MAX {
            return Err(self.error(&whole, format!("a job has at most {STAGES_MAX} stages")));
        }
        Ok(())
    }

    fn read_stage(&self, name: &str, place: Place, value: &DeValue<'_>) -> Result<RawStage, JobFileError> {
        let table = value.as_table().ok_or_else(|| {
            self.error(&place, format!("stage `{name}` must be a section `[stage.{name}]`"))
        })?;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            return Err(self.error(&place, format!("stage name `{name}`: use letters, digits, `-` and `_`")));
        }
        let (mut kind, mut inputs, mut options) = (None, Vec::new(), BTreeMap::new());
        for (key, value) in table {
            let place = Place::File(key.span());
            match key.get_ref().as_ref() {
                "kind" => {
                    let value = self.string("kind", &place, value.get_ref())?;
                    kind = Some(Placed { value, place });
                }
                "inputs" => inputs = self.read_inputs(&place, value.get_ref())?,
                option => {
                    let value = self.json(&place, value.get_ref())?;
                    options.insert(option.to_owned(), Placed { value, place });
                }
            }
        }
        let kind = kind.ok_or_else(|| {
            self.error(&place, format!("stage `{name}` needs a kind; `sixfold stages` lists the kinds"))
        })?;
        Ok(RawStage { name: name.to_owned(), place, kind, inputs, options })
    }

    fn read_inputs(&self, place: &Place, value: &DeValue<'_>) -> Result<Vec<Placed<String>>, JobFileError> {
        let refuse =
            || self.error(place, "`inputs` is a list of stage names, such as `inputs = [\"crawl\"]`");
        let array = value.as_array().ok_or_else(refuse)?;
        array
            .iter()
            .map(|item| {
                let name = item.get_ref().as_str().ok_or_else(refuse)?;
                Ok(Placed { value: name.to_owned(), place: Place::File(item.span()) })
            })
            .collect()
    }

    fn string(&self, key: &str, place: &Place, value: &DeValue<'_>) -> Result<String, JobFileError> {
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.error(place, format!("`{key}` is a text, found {}", value.type_str()))),
        }
    }

    fn json(&self, place: &Place, value: &DeValue<'_>) -> Result<Value, JobFileError> {
        Ok(match value {
            DeValue::String(text) => Value::from(text.as_ref()),
            DeValue::Boolean(flag) => Value::from(*flag),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                Value::from(
                    parsed.map_err(|_| self.error(place, format!("{} is too large", number.as_str())))?,
                )
            }
            DeValue::Float(number) => {
                let parsed: f64 = number
                    .as_str()
                    .parse()
                    .map_err(|_| self.error(place, format!("{} is not a number", number.as_str())))?;
                // JSON has no infinities; an option that takes one says so with a text.
                Value::from(parsed)
            }
            DeValue::Array(items) => Value::Array(
                items.iter().map(|item| self.json(place, item.get_ref())).collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => Value::Object(
                table
                    .iter()
                    .map(|(key, value)| Ok((key.get_ref().to_string(), self.json(place, value.get_ref())?)))
                    .collect::<Result<_, JobFileError>>()?,
            ),
            DeValue::Datetime(_) => return Err(self.error(place, "no option takes a date")),
        })
    }

    /// Applies one `STAGE.KEY=VALUE`, or `name=VALUE`.
    fn set(&mut self, setting: &str) -> Result<(), JobFileError> {
        if let Some(name) = setting.strip_prefix("name=") {
            name.clone_into(&mut self.name);
            return Ok(());
        }
        let Setting { stage: name, option, value } = Setting::parse(setting)?;
        let names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
        let Some(index) = names.iter().position(|other| *other == name) else {
            return Err(Setting::no_stage(setting, name, &names));
        };
        let place = Place::Set(setting.to_owned());
        self.stages[index].options.insert(option.to_owned(), Placed { value, place });
        Ok(())
    }
}

/// A `--set STAGE.KEY=VALUE` argument.
pub(crate) struct Setting<'a> {
    pub(crate) stage: &'a str,
    pub(crate) option: &'a str,
    pub(crate) value: Value,
}

impl<'a> Setting<'a> {
    /// Reads one. A value that is not TOML is taken as text.
    pub(crate) fn parse(setting: &'a str) -> Result<Self, JobFileError> {
        let (key, text) = setting
            .split_once('=')
            .ok_or_else(|| Self::error(setting, "expected KEY=VALUE, such as train.steps=100"))?;
        let (stage, option) = key
            .split_once('.')
            .ok_or_else(|| Self::error(setting, "expected STAGE.KEY=VALUE, such as train.steps=100"))?;
        let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
            Ok(mut table) => serde_json::to_value(table.remove("value")).unwrap_or_default(),
            Err(_) => Value::from(text),
        };
        Ok(Self { stage, option, value })
    }

    /// What is wrong with a setting.
    pub(crate) fn error(setting: &str, message: impl fmt::Display) -> JobFileError {
        JobFileError(format!("--set {setting}: {message}"))
    }

    /// It names a stage that the job does not have.
    pub(crate) fn no_stage(setting: &str, stage: &str, names: &[&str]) -> JobFileError {
        let hint = nearest(stage, names.iter().copied());
        let message = format!("the job has no stage `{stage}`{hint}; it has {}", names.join(", "));
        Self::error(setting, message)
    }
}

/// `; did you mean ...?` for the candidate nearest to what was written, else nothing.
pub(crate) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(written.len()) / 2)
        .min()
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean `{candidate}`?"))
}
