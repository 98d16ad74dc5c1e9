//! Two jobs with all ways to fan out.

use sixfold_coordinator::job::{Elastic, Fan, GangRules, JobSpec, PhaseSpec, Resources, StageSpec};
use sixfold_topology::{JobShape, ParallelPlan};

/// Phases of both jobs that end.
pub(crate) const BATCH_PHASES: usize = 9;

fn stage(name: &str, inputs: &[usize], phases: &[(&str, Fan)]) -> StageSpec {
    let phase = |(role, fan): &(&str, Fan)| PhaseSpec {
        role: (*role).to_owned(),
        fan: fan.clone(),
        resources: Resources::default(),
        rules: None,
    };
    StageSpec {
        name: name.to_owned(),
        kind: name.to_owned(),
        inputs: inputs.to_vec(),
        options_json: "{}".to_owned(),
        phases: phases.iter().map(phase).collect(),
    }
}

/// How a simulation trains.
#[derive(Clone)]
pub(crate) struct Training {
    pub(crate) plan: ParallelPlan,
    pub(crate) threads: u32,
    pub(crate) steps: u64,
    pub(crate) widen_after_ms: u64,
}

impl Default for Training {
    /// Four ranks of five nodes.
    fn default() -> Self {
        let plan = ParallelPlan { data_parallel: 1, tensor_parallel: 2, pipeline_parallel: 2 };
        Self { plan, threads: 1, steps: 6, widen_after_ms: WIDEN_AFTER_MS }
    }
}

impl Training {
    /// A rank on each of five nodes of two cores, so that each node that is lost is one too few.
    pub(crate) fn on_all_nodes() -> Self {
        let plan = ParallelPlan { data_parallel: 1, tensor_parallel: 1, pipeline_parallel: 5 };
        Self { plan, threads: 2, ..Self::default() }
    }

    fn stage(&self) -> StageSpec {
        let mut stage = stage(TRAIN, &[1], &[("train", Fan::Gang(self.plan)), ("collect", Fan::Single)]);
        stage.options_json = options_json(&self.plan, self.steps);
        stage.phases[0].resources.threads = self.threads;
        stage.phases[0].rules = Some(GangRules {
            shape: JobShape { layers: 8, tensor_shards: 4, data_groups: 8 },
            free_options: ["data_parallel", "tensor_parallel", "pipeline_parallel"].map(str::to_owned).into(),
            elastic: Some(Elastic { shrink_after_ms: 500, widen_after_ms: self.widen_after_ms }),
        });
        stage
    }
}

/// Least time between a change by itself and one to more ranks, unless a test says otherwise.
pub(crate) const WIDEN_AFTER_MS: u64 = 2000;
pub(crate) const TRAIN: &str = "train";

/// The options of a training, as its ranks read them.
pub(crate) fn options_json(plan: &ParallelPlan, steps: u64) -> String {
    let mut options = serde_json::to_value(plan).expect("a plan is JSON");
    options["steps"] = steps.into();
    options.to_string()
}

/// Crawl, clean, train, evaluate, serve, drift.
pub(crate) fn whole_way(training: &Training) -> JobSpec {
    let stages = vec![
        stage("crawl", &[], &[("crawl", Fan::Single)]),
        stage("clean", &[0], &[("clean-map", Fan::PerInput), ("clean-reduce", Fan::Single)]),
        training.stage(),
        stage("evaluate", &[2, 1], &[("evaluate", Fan::Single)]),
        stage("serve", &[2], &[("infer", Fan::Replicas(2))]),
        stage("drift", &[4, 1], &[("drift", Fan::Single)]),
    ];
    JobSpec { name: "whole way".to_owned(), source_toml: String::new(), stages }
}

/// A second job beside it.
pub(crate) fn map_reduce() -> JobSpec {
    let stages = vec![
        stage("crawl", &[], &[("crawl", Fan::Single)]),
        stage("clean", &[0], &[("clean-map", Fan::PerInput)]),
    ];
    JobSpec { name: "map".to_owned(), source_toml: String::new(), stages }
}
