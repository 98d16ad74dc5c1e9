//! Two jobs with all ways to fan out.

use sixfold_coordinator::job::{Fan, JobSpec, PhaseSpec, Resources, StageSpec};
use sixfold_topology::ParallelPlan;

/// Phases of both jobs that end.
pub(crate) const BATCH_PHASES: usize = 9;

fn stage(name: &str, inputs: &[usize], phases: &[(&str, Fan)]) -> StageSpec {
    let phase = |(role, fan): &(&str, Fan)| PhaseSpec {
        role: (*role).to_owned(),
        fan: fan.clone(),
        resources: Resources::default(),
    };
    StageSpec {
        name: name.to_owned(),
        kind: name.to_owned(),
        inputs: inputs.to_vec(),
        options_json: "{}".to_owned(),
        phases: phases.iter().map(phase).collect(),
    }
}

/// Crawl, clean, train, evaluate, serve, drift.
pub(crate) fn whole_way() -> JobSpec {
    let plan = ParallelPlan { data_parallel: 1, tensor_parallel: 2, pipeline_parallel: 2 };
    let stages = vec![
        stage("crawl", &[], &[("crawl", Fan::Single)]),
        stage("clean", &[0], &[("clean-map", Fan::PerInput), ("clean-reduce", Fan::Single)]),
        stage("train", &[1], &[("train", Fan::Gang(plan)), ("collect", Fan::Single)]),
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
