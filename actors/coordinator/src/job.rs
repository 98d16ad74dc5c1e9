//! What a job is to the coordinator: stages, their edges, and the phases that each stage fans out
//! into. Which roles exist and what their options mean is not known here; `node/` compiles a job
//! file into a [`JobSpec`].
//!
//! A stage's first phase takes the outputs of its input stages, concatenated in their order; each
//! later phase takes the outputs of the phase before it.

use serde::{Deserialize, Serialize};
use sixfold_topology::{JobShape, ParallelPlan, PlanError};

/// Stages of one job.
pub const STAGES_MAX: usize = 64;
/// Phases of one stage.
pub const PHASES_MAX: usize = 8;
/// Tasks of one phase.
pub const TASKS_PER_PHASE_MAX: usize = 16_384;
/// Ranks of a gang, and replicas of a service.
pub const MEMBERS_MAX: u32 = 1024;
const NAME_BYTES_MAX: usize = 64;
const SOURCE_BYTES_MAX: usize = 1 << 20;
const OPTIONS_BYTES_MAX: usize = 256 << 10;
const FREE_OPTIONS_MAX: usize = 256;

/// A job: a directed graph of stages without cycles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its name, for people.
    pub name: String,
    /// The job file that it was compiled from, kept for the record.
    pub source_toml: String,
    /// Its stages, in the order of the job file.
    pub stages: Vec<StageSpec>,
}

/// A stage of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSpec {
    /// Its name, unique in the job.
    pub name: String,
    /// Its kind, for example `crawl`.
    pub kind: String,
    /// The stages whose outputs it takes, as indices into [`JobSpec::stages`].
    pub inputs: Vec<usize>,
    /// Its options, as JSON, handed to each of its tasks.
    pub options_json: String,
    /// Its phases, one after the other.
    pub phases: Vec<PhaseSpec>,
}

/// A phase of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSpec {
    /// The role that does its tasks.
    pub role: String,
    /// How many tasks it has.
    pub fan: Fan,
    /// What one task needs.
    pub resources: Resources,
    /// What may change of it while the job runs; only a gang's phase has such rules.
    #[serde(default)]
    pub rules: Option<GangRules>,
}

impl PhaseSpec {
    /// The plan of a gang.
    pub fn plan(&self) -> Option<ParallelPlan> {
        match self.fan {
            Fan::Gang(plan) => Some(plan),
            Fan::Single | Fan::PerInput | Fan::Replicas(_) => None,
        }
    }
}

/// What may change of a gang while its job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GangRules {
    /// The counts that any plan has to fit.
    pub shape: JobShape,
    /// Options of the stage that leave its result as it is. A plan's degrees are called as in [`ParallelPlan`].
    pub free_options: Vec<String>,
    /// How the gang's plan follows the nodes that there are; none where it waits for those that it wants.
    pub elastic: Option<Elastic>,
}

/// How a gang's plan follows the nodes that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elastic {
    /// How long a node that is lost is waited for before the gang goes on without it.
    pub shrink_after_ms: u64,
    /// Least time between a change by itself and one to more ranks.
    pub widen_after_ms: u64,
}

/// How a phase fans out into tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fan {
    /// One task takes all inputs.
    Single,
    /// One task an input artefact; outputs stay in the order of the inputs.
    PerInput,
    /// One task a rank of the plan; all take all inputs, start together and fail together.
    Gang(ParallelPlan),
    /// That many like services, each with all inputs. They run until the job is cancelled.
    Replicas(u32),
}

impl Fan {
    /// Tasks of a phase that fans out so over `inputs` artefacts.
    pub fn tasks(&self, inputs: usize) -> usize {
        match self {
            Self::Single => 1,
            Self::PerInput => inputs,
            Self::Gang(plan) => plan.world_size(),
            Self::Replicas(count) => *count as usize,
        }
    }
}

/// What a task needs of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Threads that it keeps busy.
    pub threads: u32,
    /// Memory that it may use, in bytes; 0 where it is small.
    pub memory_bytes: u64,
    /// GPUs that it holds.
    pub gpus: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { threads: 1, memory_bytes: 0, gpus: 0 }
    }
}

/// Why a job is refused at its submission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too many of something, or none.
    #[error("{what}: {found} is outside {least} to {most}")]
    Count {
        /// Of what.
        what: String,
        /// How many there are.
        found: usize,
        /// How few there may be.
        least: usize,
        /// How many there may be.
        most: usize,
    },
    /// A name is empty, too long, or has control characters.
    #[error("{0:?} is no name: 1 to {NAME_BYTES_MAX} bytes without control characters")]
    Name(String),
    /// Two stages of one name.
    #[error("two stages are called `{0}`")]
    DuplicateStage(String),
    /// An input names no stage, the stage itself, or one stage twice.
    #[error("stage `{stage}`: input {input} is no other stage, or is named twice")]
    Input {
        /// The stage.
        stage: String,
        /// Its input.
        input: usize,
    },
    /// Stages wait for each other.
    #[error("stage `{0}` waits for its own output")]
    Cycle(String),
    /// A gang's plan does not fit its job.
    #[error("stage `{stage}`: {source}")]
    Plan {
        /// The stage.
        stage: String,
        /// What does not fit.
        source: PlanError,
    },
    /// A service is followed by a phase that would wait for its end.
    #[error("stage `{0}`: replicas must be its last phase")]
    ServiceNotLast(String),
}

fn check_count(what: &str, found: usize, least: usize, most: usize) -> Result<(), SpecError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(SpecError::Count { what: what.to_owned(), found, least, most })
}

/// Each degree first, so that their product cannot overflow.
fn check_plan(plan: &ParallelPlan) -> Result<(), SpecError> {
    let most = MEMBERS_MAX as usize;
    check_count("data_parallel", plan.data_parallel, 1, most)?;
    check_count("tensor_parallel", plan.tensor_parallel, 1, most)?;
    check_count("pipeline_parallel", plan.pipeline_parallel, 1, most)?;
    check_count("ranks of a gang", plan.world_size(), 1, most)
}

fn check_name(name: &str) -> Result<(), SpecError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(SpecError::Name(name.chars().take(NAME_BYTES_MAX).collect())) }
}

impl JobSpec {
    /// Checks everything that the coordinator relies on.
    ///
    /// # Errors
    /// [`SpecError`], the first thing that is wrong.
    pub fn validate(&self) -> Result<(), SpecError> {
        check_name(&self.name)?;
        check_count("bytes of the job file", self.source_toml.len(), 0, SOURCE_BYTES_MAX)?;
        check_count("stages", self.stages.len(), 1, STAGES_MAX)?;
        for (index, stage) in self.stages.iter().enumerate() {
            stage.validate()?;
            self.check_inputs(index)?;
            if self.stages[..index].iter().any(|other| other.name == stage.name) {
                return Err(SpecError::DuplicateStage(stage.name.clone()));
            }
        }
        self.check_cycles()
    }

    fn check_inputs(&self, index: usize) -> Result<(), SpecError> {
        let stage = &self.stages[index];
        check_count("inputs of a stage", stage.inputs.len(), 0, STAGES_MAX)?;
        for (position, &input) in stage.inputs.iter().enumerate() {
            let repeated = stage.inputs[..position].contains(&input);
            if input >= self.stages.len() || input == index || repeated {
                return Err(SpecError::Input { stage: stage.name.clone(), input });
            }
        }
        Ok(())
    }

    /// Removes stages whose inputs have all been removed until none is left (Kahn's algorithm).
    fn check_cycles(&self) -> Result<(), SpecError> {
        let mut removed = vec![false; self.stages.len()];
        while let Some(next) = (0..self.stages.len())
            .find(|&index| !removed[index] && self.stages[index].inputs.iter().all(|&input| removed[input]))
        {
            removed[next] = true;
        }
        match removed.iter().position(|done| !done) {
            Some(index) => Err(SpecError::Cycle(self.stages[index].name.clone())),
            None => Ok(()),
        }
    }

    /// The phases of all stages in their order, each with the index of its stage. A task's `phase`
    /// counts in this list.
    pub fn phases(&self) -> impl Iterator<Item = (usize, &PhaseSpec)> {
        let stages = self.stages.iter().enumerate();
        stages.flat_map(|(index, stage)| stage.phases.iter().map(move |phase| (index, phase)))
    }
}

impl StageSpec {
    fn check_gang(&self, plan: &ParallelPlan, rules: Option<&GangRules>) -> Result<(), SpecError> {
        check_plan(plan)?;
        let Some(rules) = rules else { return Ok(()) };
        check_count("options that may change", rules.free_options.len(), 0, FREE_OPTIONS_MAX)?;
        let of_stage = |source| SpecError::Plan { stage: self.name.clone(), source };
        plan.validate(&rules.shape).map_err(of_stage)
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        check_name(&self.name)?;
        check_name(&self.kind)?;
        check_count("bytes of options", self.options_json.len(), 0, OPTIONS_BYTES_MAX)?;
        check_count("phases of a stage", self.phases.len(), 1, PHASES_MAX)?;
        for (index, phase) in self.phases.iter().enumerate() {
            check_name(&phase.role)?;
            check_count("threads of a task", phase.resources.threads as usize, 1, 4096)?;
            match &phase.fan {
                Fan::Gang(plan) => self.check_gang(plan, phase.rules.as_ref())?,
                Fan::Replicas(count) => {
                    check_count("replicas", *count as usize, 1, MEMBERS_MAX as usize)?;
                    if index + 1 < self.phases.len() {
                        return Err(SpecError::ServiceNotLast(self.name.clone()));
                    }
                }
                Fan::Single | Fan::PerInput => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, inputs: &[usize], fans: &[Fan]) -> StageSpec {
        let phases = fans.iter().map(|fan| PhaseSpec {
            role: "role".into(),
            fan: fan.clone(),
            resources: Resources::default(),
            rules: None,
        });
        StageSpec {
            name: name.into(),
            kind: "clean".into(),
            inputs: inputs.to_vec(),
            options_json: "{}".into(),
            phases: phases.collect(),
        }
    }

    fn job(stages: Vec<StageSpec>) -> JobSpec {
        JobSpec { name: "job".into(), source_toml: String::new(), stages }
    }

    #[test]
    fn accepts_a_graph_in_any_order() {
        let spec = job(vec![
            stage("train", &[1], &[Fan::Single]),
            stage("clean", &[], &[Fan::PerInput, Fan::Single]),
            stage("serve", &[0], &[Fan::Replicas(2)]),
        ]);
        assert_eq!(spec.validate(), Ok(()));
        let stages: Vec<usize> = spec.phases().map(|(stage, _)| stage).collect();
        assert_eq!(stages, [0, 1, 1, 2]);
    }

    #[test]
    fn refuses_cycles_and_inputs_that_are_no_other_stage() {
        let cycle = job(vec![stage("a", &[1], &[Fan::Single]), stage("b", &[0], &[Fan::Single])]);
        assert_eq!(cycle.validate(), Err(SpecError::Cycle("a".into())));
        for inputs in [&[0][..], &[7], &[1, 1]] {
            let spec = job(vec![stage("a", inputs, &[Fan::Single]), stage("b", &[], &[Fan::Single])]);
            assert!(matches!(spec.validate(), Err(SpecError::Input { .. })), "{inputs:?}");
        }
    }

    #[test]
    fn refuses_duplicates_bad_names_and_services_that_something_waits_for() {
        let twice = job(vec![stage("a", &[], &[Fan::Single]), stage("a", &[], &[Fan::Single])]);
        assert_eq!(twice.validate(), Err(SpecError::DuplicateStage("a".into())));
        for name in ["", "a\nb", &"x".repeat(65)] {
            let spec = job(vec![stage(name, &[], &[Fan::Single])]);
            assert!(matches!(spec.validate(), Err(SpecError::Name(_))), "{name:?}");
        }
        let waits = job(vec![stage("a", &[], &[Fan::Replicas(1), Fan::Single])]);
        assert_eq!(waits.validate(), Err(SpecError::ServiceNotLast("a".into())));
    }

    #[test]
    fn refuses_sizes_without_bound() {
        let none = job(vec![stage("a", &[], &[Fan::Replicas(0)])]);
        assert!(matches!(none.validate(), Err(SpecError::Count { .. })));
        let many = job(vec![stage("a", &[], &[Fan::Replicas(MEMBERS_MAX + 1)])]);
        assert!(matches!(many.validate(), Err(SpecError::Count { .. })));
        for degrees in [(usize::MAX, 2, 1), (0, 1, 1), (64, 64, 64)] {
            let (data_parallel, tensor_parallel, pipeline_parallel) = degrees;
            let plan = ParallelPlan { data_parallel, tensor_parallel, pipeline_parallel };
            let gang = job(vec![stage("a", &[], &[Fan::Gang(plan)])]);
            assert!(matches!(gang.validate(), Err(SpecError::Count { .. })), "{degrees:?}");
        }
        assert!(matches!(job(vec![]).validate(), Err(SpecError::Count { .. })));
        let mut large = job(vec![stage("a", &[], &[Fan::Single])]);
        large.source_toml = " ".repeat(SOURCE_BYTES_MAX + 1);
        assert!(matches!(large.validate(), Err(SpecError::Count { .. })));
    }
}
