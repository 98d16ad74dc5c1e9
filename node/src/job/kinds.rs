//! The closed set of stage kinds: their options, what they take, and the phases that they become.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sixfold_coordinator::job::{Fan, PhaseSpec, Resources};

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

type Check = dyn Fn(Value) -> Result<Checked, OptionError> + Send + Sync;

/// One kind of stage.
pub(crate) struct StageKind {
    pub(crate) name: &'static str,
    /// One sentence for people.
    pub(crate) about: &'static str,
    /// The kinds of stages that it can take as inputs; a stage needs one unless this is empty.
    pub(crate) takes: &'static [&'static str],
    /// The options that have no default, with an example.
    pub(crate) required: Value,
    check: Box<Check>,
}

impl StageKind {
    /// Fills in the defaults and checks types and limits.
    pub(crate) fn check(&self, options: Value) -> Result<Checked, OptionError> {
        (self.check)(options)
    }
}

/// Options that know their own limits.
struct Rules<O> {
    validate: fn(&O) -> Result<(), String>,
    phases: fn(&O) -> Result<Vec<PhaseSpec>, String>,
}

fn kind<O>(
    name: &'static str,
    takes: &'static [&'static str],
    about: &'static str,
    required: Value,
    rules: Rules<O>,
) -> StageKind
where
    O: Serialize + DeserializeOwned + 'static,
{
    let check = move |given: Value| {
        let options: O = serde_path_to_error::deserialize(given).map_err(|error| {
            let option = error.path().iter().next().map(ToString::to_string).unwrap_or_default();
            explain(&option, &error.into_inner().to_string())
        })?;
        (rules.validate)(&options).map_err(OptionError::Refused)?;
        let phases = (rules.phases)(&options).map_err(OptionError::Refused)?;
        let options = serde_json::to_value(options).map_err(|error| OptionError::Refused(error.to_string()))?;
        Ok(Checked { options, phases })
    };
    StageKind { name, about, takes, required, check: Box::new(check) }
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
    PhaseSpec { role: role.to_owned(), fan, resources: Resources { threads, ..Resources::default() } }
}
