//! Jobs: submitting, listing, following, explaining, cancelling.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sixfold_coordinator::job::{JobSpec, StageSpec};
use sixfold_coordinator::message::{
    ClientReply, ClientRequest, JobState, JobSummary, JobView, LogPage, PlacementView,
};
use sixfold_wire::id::JobId;

use super::{connect, print_json, table, verify};
use crate::cli::{ClientArgs, JobArgs, JobFileArgs, JobIdArgs, LogsArgs, SubmitArgs};
use crate::client::{Client, request_id, unexpected};
use crate::job;
use crate::watch;

/// Pause before a followed log is asked for again where it had nothing new.
const FOLLOW_PAUSE: Duration = Duration::from_millis(300);

/// Reads and checks a job file.
pub(crate) fn compile(args: &JobFileArgs) -> Result<JobSpec> {
    let path = args.file.display().to_string();
    let source =
        std::fs::read_to_string(&args.file).with_context(|| format!("cannot read the job file {path}"))?;
    let mut spec = job::compile(&path, &source, &args.settings)?;
    let names_files = |stage: &&mut StageSpec| ["import", "model", "instruct"].contains(&stage.kind.as_str());
    spec.stages.iter_mut().filter(names_files).try_for_each(make_absolute)?;
    Ok(spec)
}

/// Files are named from the working folder of the person; nodes have others.
fn make_absolute(stage: &mut StageSpec) -> Result<()> {
    let mut options: serde_json::Value = serde_json::from_str(&stage.options_json)?;
    let whole = |path: &str| -> Result<serde_json::Value> {
        let whole = std::path::absolute(path).with_context(|| format!("`{path}` names no file"))?;
        Ok(whole.to_str().with_context(|| format!("{path} is not UTF-8"))?.into())
    };
    for name in ["text", "jsonl", "path"] {
        if let Some(path) = options[name].as_str() {
            options[name] = whole(path)?;
        }
    }
    let files = options.get_mut("files").and_then(serde_json::Value::as_array_mut);
    for path in files.into_iter().flatten() {
        if let Some(name) = path.as_str() {
            *path = whole(name)?;
        }
    }
    stage.options_json = options.to_string();
    Ok(())
}

/// Hands a job to the coordinator.
pub(crate) async fn submit_spec(client: &Client, spec: JobSpec) -> Result<JobId> {
    match client.request(ClientRequest::Submit { request: request_id(), spec }).await? {
        ClientReply::Submitted(job) => Ok(job),
        other => unexpected(&other),
    }
}

/// `sixfold submit`.
pub(crate) async fn submit(args: SubmitArgs) -> Result<()> {
    let spec = compile(&args.job)?;
    if !args.no_verify_plan {
        verify::before_start(&spec, !args.client.json).await?;
    }
    let client = connect(&args.client)?;
    let job = submit_spec(&client, spec).await?;
    if !args.watch {
        let hint = format!("follow it with `sixfold job {job}` or `sixfold logs {job} --follow`");
        if args.client.json {
            print_json(&json!({"job": job.0}))
        } else {
            println!("job {job}\n{hint}")
        }
        client.close().await;
        return Ok(());
    }
    let view = watch::watch(&client, job, !args.client.json).await?;
    show(&view, args.client.json);
    client.close().await;
    check(&view)
}

/// Prints a job's result: text, or one object.
pub(crate) fn show(view: &JobView, json: bool) {
    if json { print_json(&view.to_json()) } else { print!("{}", watch::summary(view)) }
}

/// A job that failed fails the command.
pub(crate) fn check(view: &JobView) -> Result<()> {
    match view.state {
        JobState::Failed => {
            bail!("job {} failed: {}", view.job, view.message.as_deref().unwrap_or("no reason given"))
        }
        JobState::Cancelled => bail!("job {} was cancelled", view.job),
        JobState::Running | JobState::Serving | JobState::Succeeded => Ok(()),
    }
}

/// All jobs that the cluster knows.
pub(crate) async fn all(client: &Client) -> Result<Vec<JobSummary>> {
    match client.request(ClientRequest::Jobs).await? {
        ClientReply::Jobs(jobs) => Ok(jobs),
        other => unexpected(&other),
    }
}

/// `sixfold jobs`.
pub(crate) async fn list(args: ClientArgs) -> Result<()> {
    let client = connect(&args)?;
    let jobs = all(&client).await?;
    if args.json {
        let objects = jobs.iter().map(|job| {
            json!({"job": job.job.0, "name": job.name, "state": job.state.to_string(), "seconds": job.seconds, "message": job.message})
        });
        print_json(&objects.collect());
    } else {
        let rows: Vec<_> = jobs
            .iter()
            .map(|job| {
                let seconds = format!("{:.1} s", job.seconds);
                vec![job.job.to_string(), job.name.clone(), job.state.to_string(), seconds]
            })
            .collect();
        table::print(&["job", "name", "state", "time"], &rows);
    }
    client.close().await;
    Ok(())
}

/// `sixfold job ID`.
pub(crate) async fn job(args: JobArgs) -> Result<()> {
    let JobIdArgs { id, client: client_args } = args.job;
    let client = connect(&client_args)?;
    if args.why {
        let placements = match client.request(ClientRequest::Why(JobId(id))).await? {
            ClientReply::Why(placements) => placements,
            other => return unexpected(&other),
        };
        if client_args.json {
            print_json(&placements.iter().map(placement_json).collect());
        } else {
            placements.iter().for_each(print_placement);
        }
    } else {
        show(&job_view(&client, JobId(id)).await?, client_args.json);
    }
    client.close().await;
    Ok(())
}

/// A job as it stands.
pub(crate) async fn job_view(client: &Client, id: JobId) -> Result<JobView> {
    match client.request(ClientRequest::Job(id)).await? {
        ClientReply::Job(view) => Ok(*view),
        other => unexpected(&other),
    }
}

fn placement_json(placement: &PlacementView) -> serde_json::Value {
    let placed = placement.placed.as_ref();
    json!({
        "stage": placement.stage,
        "role": placement.role,
        "task": placement.task.to_string(),
        "attempt": placed.map(|(epoch, _)| epoch.0),
        "nodes": placed.map(|(_, nodes)| nodes),
        "why": placement.why,
    })
}

fn print_placement(placement: &PlacementView) {
    let PlacementView { stage, role, task, placed, why } = placement;
    let attempt = placed.as_ref().map_or_else(String::new, |(epoch, _)| format!(", attempt {epoch}"));
    println!("{stage}: {role} {task}{attempt}");
    why.lines().for_each(|line| println!("  {line}"));
}

/// `sixfold logs ID`.
pub(crate) async fn logs(args: LogsArgs) -> Result<()> {
    let (id, client) = (JobId(args.job.id), connect(&args.job.client)?);
    let mut from = 0;
    loop {
        let LogPage { from: first, lines, next } =
            match client.request(ClientRequest::Logs { job: id, from }).await? {
                ClientReply::Logs(page) => page,
                other => return unexpected(&other),
            };
        for (number, line) in (first..).zip(&lines) {
            if args.job.client.json {
                print_json(&json!({"line": number, "text": line}));
            } else {
                println!("{line}");
            }
        }
        let (at_end, ended) = (lines.is_empty(), job_view(&client, id).await?.state.has_ended());
        from = next;
        if at_end && (ended || !args.follow) {
            break;
        }
        if at_end {
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }
    client.close().await;
    Ok(())
}

/// `sixfold cancel ID`.
pub(crate) async fn cancel(args: JobIdArgs) -> Result<()> {
    let client = connect(&args.client)?;
    client.request(ClientRequest::Cancel(JobId(args.id))).await?;
    let view = job_view(&client, JobId(args.id)).await?;
    show(&view, args.client.json);
    client.close().await;
    Ok(())
}
