//! From a job file as written to the job that the coordinator runs.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sixfold_coordinator::job::{JobSpec, StageSpec};

use super::base;
use super::file::{JobFileError, RawJob, RawStage, nearest};
use super::kinds::{OptionError, StageKind};
use crate::roles::TRAIN;

/// Checks every stage against its kind and joins the stages by their inputs.
///
/// # Errors
/// The first thing that is wrong, with its line and the way out.
pub(crate) fn compile(raw: &RawJob, source: &str, kinds: &[StageKind]) -> Result<JobSpec, JobFileError> {
    let index: HashMap<&str, usize> =
        raw.stages.iter().enumerate().map(|(index, stage)| (stage.name.as_str(), index)).collect();
    let mut found = Vec::with_capacity(raw.stages.len());
    for stage in &raw.stages {
        let kind = find_kind(raw, stage, kinds)?;
        found.push((kind, find_inputs(raw, stage, kind, &index)?));
    }
    let inputs: Vec<&[usize]> = found.iter().map(|(_, inputs)| inputs.as_slice()).collect();
    let mut stages: Vec<Option<StageSpec>> = vec![None; raw.stages.len()];
    for at in inputs_first(&inputs) {
        let (kind, inputs) = &found[at];
        let base = inputs.iter().filter_map(|&input| stages[input].as_ref());
        let base = base.clone().find(|input| kind.may_take.contains(&input.kind.as_str()));
        stages[at] = Some(check(raw, &raw.stages[at], kind, inputs, base)?);
    }
    let stages = stages.into_iter().flatten().collect();
    let spec = JobSpec { name: raw.name.clone(), source_toml: source.to_owned(), stages };
    spec.validate().map_err(|error| raw.error(&raw.stages[0].place, error))?;
    Ok(spec)
}

/// Checks a stage's options, with those that it takes over from the stage whose model it starts from.
fn check(
    raw: &RawJob,
    stage: &RawStage,
    kind: &StageKind,
    inputs: &[usize],
    base: Option<&StageSpec>,
) -> Result<StageSpec, JobFileError> {
    let mut given: Map<String, Value> =
        stage.options.iter().map(|(key, option)| (key.clone(), option.value.clone())).collect();
    let wrong = |message| option_error(raw, stage, &OptionError::Refused(message));
    let fixed = match base.filter(|_| kind.name == TRAIN) {
        Some(base) => base::options_of(base).map_err(wrong)?,
        None => Map::new(),
    };
    for (option, value) in &fixed {
        given.entry(option).or_insert_with(|| value.clone());
    }
    let checked = kind.check(Value::Object(given)).map_err(|error| option_error(raw, stage, &error))?;
    base::refuse_other_shape(&fixed, &checked.options).map_err(wrong)?;
    Ok(StageSpec {
        name: stage.name.clone(),
        kind: kind.name.to_owned(),
        inputs: inputs.to_vec(),
        options_json: checked.options.to_string(),
        phases: checked.phases,
    })
}

/// The stages in an order in which each comes after its inputs. Those that go around in a circle come last.
fn inputs_first(inputs: &[&[usize]]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(inputs.len());
    let mut waiting: Vec<usize> = (0..inputs.len()).collect();
    while !waiting.is_empty() {
        let (ready, later): (Vec<usize>, Vec<usize>) =
            waiting.iter().partition(|&&stage| inputs[stage].iter().all(|input| order.contains(input)));
        if ready.is_empty() {
            order.extend(later);
            break;
        }
        order.extend(ready);
        waiting = later;
    }
    order
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
        if !kind.takes.iter().any(|need| need.contains(&given)) && !kind.may_take.contains(&given) {
            let taken: Vec<&str> =
                kind.takes.iter().copied().flatten().chain(kind.may_take).copied().collect();
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
