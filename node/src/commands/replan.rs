//! `sixfold replan`: another plan for a training that runs.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sixfold_coordinator::job::{Fan, JobSpec, StageSpec};
use sixfold_coordinator::message::{ClientReply, ClientRequest, JobView, PlanChange, Replan};
use sixfold_wire::id::JobId;

use super::{connect, jobs, print_json, verify};
use crate::cli::{JobIdArgs, ReplanArgs};
use crate::client::{Client, unexpected};
use crate::job::file::Setting;
use crate::job::kinds;
use crate::watch::{self, plan_change};

/// `sixfold replan JOB --set STAGE.KEY=VALUE`.
pub(crate) async fn run(args: ReplanArgs) -> Result<()> {
    let ReplanArgs { job: JobIdArgs { id, client: client_args }, settings, no_verify_plan, no_wait } = args;
    let (id, client) = (JobId(id), connect(&client_args)?);
    let spec = match client.request(ClientRequest::Spec(id)).await? {
        ClientReply::Spec(spec) => *spec,
        other => return unexpected(&other),
    };
    let (from_json, stage) = changed(&spec, &settings)?;
    if !no_verify_plan {
        verify::before_change(&stage, !client_args.json).await?;
    }
    let (number, interrupts) = ask(&client, request(id, from_json, stage)?).await?;
    let (view, change) = if interrupts && !no_wait {
        wait_for(&client, id, number).await?
    } else {
        let view = jobs::job_view(&client, id).await?;
        let change = find(&view, number);
        (view, change)
    };
    show(&view, change.as_ref(), client_args.json);
    client.close().await;
    Ok(())
}

/// The one stage that settings name, with the options that they make, and its options as they were.
fn changed(spec: &JobSpec, settings: &[String]) -> Result<(String, StageSpec)> {
    let mut stage: Option<&StageSpec> = None;
    let mut options = Value::Null;
    for text in settings {
        let setting = Setting::parse(text)?;
        let named = spec.stages.iter().find(|stage| stage.name == setting.stage);
        let Some(named) = named else {
            let names: Vec<&str> = spec.stages.iter().map(|stage| stage.name.as_str()).collect();
            return Err(Setting::no_stage(text, setting.stage, &names).into());
        };
        if let Some(other) = stage.filter(|other| other.name != named.name) {
            bail!("`{}` and `{}`: one stage at a time", other.name, named.name);
        }
        if stage.is_none() {
            options = serde_json::from_str(&named.options_json)?;
        }
        stage = Some(named);
        options[setting.option] = setting.value;
    }
    let Some(stage) = stage else { bail!("nothing is to change") };
    if !stage.phases.iter().any(|phase| matches!(phase.fan, Fan::Gang(_))) {
        bail!("stage `{}` is of kind `{}`, which has no plan", stage.name, stage.kind);
    }
    let all = kinds::all();
    let Some(kind) = all.iter().find(|kind| kind.name == stage.kind) else {
        bail!("this binary does not know stages of kind `{}`", stage.kind);
    };
    let checked = match kind.check(options) {
        Ok(checked) => checked,
        Err(error) => bail!("stage `{}`: {}", stage.name, error.explain(kind.name)),
    };
    let options_json = checked.options.to_string();
    if serde_json::from_str::<Value>(&stage.options_json)? == checked.options {
        bail!("nothing is to change: stage `{}` has these options", stage.name);
    }
    Ok((stage.options_json.clone(), StageSpec { options_json, phases: checked.phases, ..stage.clone() }))
}

fn request(job: JobId, from_json: String, stage: StageSpec) -> Result<Replan> {
    let StageSpec { name: stage, options_json, phases, .. } = stage;
    let gang = phases.into_iter().find(|phase| matches!(phase.fan, Fan::Gang(_)));
    let Some(phase) = gang else { bail!("stage `{stage}` has no plan") };
    Ok(Replan { job, stage, from_json, options_json, phase })
}

async fn ask(client: &Client, replan: Replan) -> Result<(u64, bool)> {
    match client.request(ClientRequest::Replan(Box::new(replan))).await? {
        ClientReply::Replanned { number, interrupts } => Ok((number, interrupts)),
        other => unexpected(&other),
    }
}

fn find(view: &JobView, number: u64) -> Option<PlanChange> {
    view.plan_changes.iter().find(|change| change.number == number).cloned()
}

/// Waits until the gang works again, the job has ended, or another change has taken the place of this one.
async fn wait_for(client: &Client, job: JobId, number: u64) -> Result<(JobView, Option<PlanChange>)> {
    let mut since = 0;
    loop {
        let (version, view) = watch::changed(client, job, since).await?;
        since = version;
        let change = find(&view, number);
        let newer = view.plan_changes.iter().any(|other| {
            other.number > number && change.as_ref().is_some_and(|change| change.stage == other.stage)
        });
        let works = change.as_ref().is_some_and(|change| change.step.is_some());
        let (training, ended) = (is_stepping(&view, change.as_ref()), view.state.has_ended());
        if works || training || newer || ended || change.is_none() {
            return Ok((view, change));
        }
    }
}

/// Whether the gang has done a step since the change. One that had done none before does not say where it goes on.
fn is_stepping(view: &JobView, change: Option<&PlanChange>) -> bool {
    let resumed = change.is_some_and(|change| change.resumed_ms.is_some());
    let training = view.training.as_ref();
    resumed && training.is_some_and(|training| training.metrics.contains_key("step"))
}

fn show(view: &JobView, change: Option<&PlanChange>, json: bool) {
    if json {
        let mut object = change.map_or_else(|| json!({}), PlanChange::to_json);
        object["job"] = json!(view.job.0);
        object["state"] = json!(view.state.to_string());
        print_json(&object);
    } else if let Some(change) = change {
        println!("job {}, {}", view.job, plan_change(change));
    } else {
        println!("job {} {}", view.job, view.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        let source = "name = \"x\"\n[stage.data]\nkind = \"import\"\ntext = \"/x\"\n[stage.tokens]\n\
                      kind = \"tokenize\"\ninputs = [\"data\"]\n[stage.train]\nkind = \"train\"\n\
                      inputs = [\"tokens\"]\ndata_parallel = 2\n";
        crate::job::compile("job.toml", source, &[]).unwrap()
    }

    fn change(settings: &[&str]) -> Result<(String, StageSpec)> {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        changed(&spec(), &settings)
    }

    #[test]
    fn settings_make_the_options_and_the_gang_of_the_new_plan() {
        let (from, stage) =
            change(&["train.data_parallel=1", "train.tensor_parallel=4", "train.threads=2"]).unwrap();
        assert_eq!(from, spec().stages[2].options_json);
        let replan = request(JobId(1), from, stage).unwrap();
        assert_eq!(replan.phase.plan().unwrap().to_string(), "dp1·tp4·pp1");
        assert_eq!(replan.phase.resources.threads, 2);
        let options: Value = serde_json::from_str(&replan.options_json).unwrap();
        assert_eq!((&options["tensor_parallel"], &options["threads"]), (&json!(4), &json!(2)));
    }

    #[test]
    fn what_cannot_be_a_plan_is_refused_before_the_cluster_is_asked() {
        for (settings, word) in [
            (&["train.tensor_parallel=8"][..], "only 4 logical tensor shards"),
            (&["train.tensor_paralel=2"], "did you mean `tensor_parallel`?"),
            (&["trian.tensor_parallel=2"], "did you mean `train`?"),
            (&["tensor_parallel=2"], "expected STAGE.KEY=VALUE"),
            (&["train.data_parallel=2"], "nothing is to change"),
            (&["data.text=/y"], "which has no plan"),
            (&["train.data_parallel=1", "tokens.threads=2"], "one stage at a time"),
        ] {
            let error = change(settings).unwrap_err().to_string();
            assert!(error.contains(word), "{settings:?}: {error}");
        }
    }
}
