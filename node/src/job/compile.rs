//! From a job file as written to the job that the coordinator runs.

use std::collections::HashMap;

use serde_json::Value;
use sixfold_coordinator::job::{JobSpec, StageSpec};

use super::file::{JobFileError, RawJob, RawStage, nearest};
use super::kinds::{OptionError, StageKind};

/// Checks every stage against its kind and joins the stages by their inputs.
///
/// # Errors
/// The first thing that is wrong, with its line and the way out.
pub(crate) fn compile(raw: &RawJob, source: &str, kinds: &[StageKind]) -> Result<JobSpec, JobFileError> {
    let index: HashMap<&str, usize> =
        raw.stages.iter().enumerate().map(|(index, stage)| (stage.name.as_str(), index)).collect();
    let mut stages = Vec::with_capacity(raw.stages.len());
    for stage in &raw.stages {
        let kind = find_kind(raw, stage, kinds)?;
        let inputs = find_inputs(raw, stage, kind, &index)?;
        let given = stage.options.iter().map(|(key, option)| (key.clone(), option.value.clone())).collect();
        let checked = kind.check(Value::Object(given)).map_err(|error| option_error(raw, stage, &error))?;
        stages.push(StageSpec {
            name: stage.name.clone(),
            kind: kind.name.to_owned(),
            inputs,
            options_json: checked.options.to_string(),
            phases: checked.phases,
        });
    }
    let spec = JobSpec { name: raw.name.clone(), source_toml: source.to_owned(), stages };
    spec.validate().map_err(|error| raw.error(&raw.stages[0].place, error))?;
    Ok(spec)
}

fn find_kind<'a>(
    raw: &RawJob,
    stage: &RawStage,
    kinds: &'a [StageKind],
) -> Result<&'a StageKind, JobFileError> {
    let written = stage.kind.value.as_str();
    kinds.iter().find(|kind| kind.name == written).ok_or_else(|| {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
        let hint = nearest(written, names.iter().copied());
        let message =
            format!("no stage kind is called `{written}`{hint}; the kinds are {}", names.join(", "));
        raw.error(&stage.kind.place, message)
    })
}

/// The positions of a stage's inputs; each is of a kind that it takes, and of each that it needs there is one.
fn find_inputs(
    raw: &RawJob,
    stage: &RawStage,
    kind: &StageKind,
    index: &HashMap<&str, usize>,
) -> Result<Vec<usize>, JobFileError> {
    let mut inputs = Vec::with_capacity(stage.inputs.len());
    for input in &stage.inputs {
        let Some(&position) = index.get(input.value.as_str()) else {
            let hint = nearest(&input.value, index.keys().copied());
            return Err(raw.error(&input.place, format!("no stage is called `{}`{hint}", input.value)));
        };
        let given = raw.stages[position].kind.value.as_str();
        if !kind.takes.iter().any(|need| need.contains(&given)) {
            let taken = kind.takes.concat();
            let wanted = if taken.is_empty() { "no inputs".to_owned() } else { taken.join(" or ") };
            let message =
                format!("a `{}` stage takes {wanted}, and `{}` is a `{given}`", kind.name, input.value);
            return Err(raw.error(&input.place, message));
        }
        inputs.push(position);
    }
    let given = |kinds: &[&str]| {
        inputs.iter().any(|&position| kinds.contains(&raw.stages[position].kind.value.as_str()))
    };
    if let Some(need) = kind.takes.iter().find(|need| !given(need)) {
        let kinds = need.join(" or ");
        let message = format!("a `{}` stage needs `inputs` that name a stage of kind {kinds}", kind.name);
        return Err(raw.error(stage.inputs.first().map_or(&stage.place, |input| &input.place), message));
    }
    Ok(inputs)
}

fn option_error(raw: &RawJob, stage: &RawStage, error: &OptionError) -> JobFileError {
    let place = match error {
        // An unknown key inside a nested table has no place of its own: point at its stage.
        OptionError::Unknown(option, _) | OptionError::Value(option, _) => {
            stage.options.get(option).map(|placed| &placed.place)
        }
        OptionError::Missing(_) => None,
        OptionError::Refused(message) => {
            let word = |c: char| !(c.is_alphanumeric() || c == '_');
            let says = |option: &str| message.split(word).any(|said| said == option);
            stage.options.iter().find(|(option, _)| says(option)).map(|(_, placed)| &placed.place)
        }
    };
    raw.error(place.unwrap_or(&stage.place), error.explain(&stage.kind.value))
}
