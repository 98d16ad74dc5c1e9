//! `sixfold run`: a job on a temporary local cluster.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use sixfold_coordinator::job::JobSpec;
use sixfold_coordinator::message::{ClientRequest, JobView};

use crate::cli::{LocalArgs, RunArgs, TokenRole};
use crate::client::Client;
use crate::commands::access::create_token;
use crate::commands::{jobs, verify};
use crate::home::Home;
use crate::local::{LocalCluster, LocalOptions};
use crate::report::TrainingReport;
use crate::{process, watch};

/// How long the nodes' token holds: they join at once.
const TOKEN_LIFETIME: Duration = Duration::from_mins(10);

/// `sixfold run JOB.toml --local N`.
pub(crate) async fn run(args: RunArgs) -> Result<()> {
    let spec = jobs::compile(&args.job)?;
    if !args.no_verify_plan {
        verify::before_start(&spec, !args.options.json).await?;
    }
    let (dir, temporary) = folder(&args.options, "sixfold-run-")?;
    let started = Started::start(&args.options, dir, args.local).await?;
    let outcome = tokio::select! {
        outcome = follow(&started.client, spec, &args) => outcome,
        () = process::end(false) => Err(anyhow::anyhow!("interrupted")),
    };
    if let Ok(view) = &outcome {
        jobs::show(view, args.options.json);
    }
    let result = outcome.and_then(|view| jobs::check(&view));
    if args.options.keep && result.is_ok() {
        started.explain();
        process::end(false).await;
    }
    started.end().await;
    if let Some(temporary) = temporary.filter(|_| result.is_err()) {
        eprintln!("logs and data are kept in {}", temporary.keep().display());
    }
    result
}

/// Submits a job and follows it until it has ended or serves.
async fn follow(client: &Client, spec: JobSpec, args: &RunArgs) -> Result<JobView> {
    let job = jobs::submit_spec(client, spec).await?;
    let view = watch::watch(client, job, !args.options.json).await?;
    if let Some(folder) = &args.report {
        let path = TrainingReport::gather(client, job).await?.write(folder)?;
        eprintln!("report of the training: {}", path.display());
    }
    Ok(view)
}

/// A local cluster and a client of it.
pub(crate) struct Started {
    cluster: LocalCluster,
    pub(crate) client: Client,
    pub(crate) dir: PathBuf,
}

impl Started {
    /// Starts a coordinator and `nodes` node daemons in `dir`, and waits until all have joined.
    pub(crate) async fn start(options: &LocalArgs, dir: PathBuf, nodes: u32) -> Result<Self> {
        let LocalArgs { cores, links, namespaces, .. } = *options;
        let options = LocalOptions { dir: dir.clone(), nodes, cores, links, namespaces };
        let mut cluster = LocalCluster::start(&options).await?;
        let client = Client::open(Home::open(Some(&cluster.home()))?)?;
        end_earlier_jobs(&client).await?;
        let token = create_token(&client, TokenRole::Node, nodes, TOKEN_LIFETIME).await?;
        cluster.start_nodes(&token, nodes).await?;
        Ok(Self { cluster, client, dir })
    }

    /// Where everything lies and how to reach the cluster, for people.
    pub(crate) fn explain(&self) {
        let home = self.cluster.home();
        eprintln!("\nthe cluster is up; everything lies in {}", self.dir.display());
        eprintln!("  export SIXFOLD_HOME={}", home.display());
        eprintln!(
            "  sixfold nodes      sixfold jobs      sixfold query \"text\"      Ctrl-C ends the cluster"
        );
    }

    /// Ends every process.
    pub(crate) async fn end(self) {
        self.client.close().await;
        self.cluster.end().await;
    }
}

/// A temporary cluster runs one job. What an earlier one left unfinished or serving in the same folder is
/// cancelled before there are nodes that would go on with it.
async fn end_earlier_jobs(client: &Client) -> Result<()> {
    for job in jobs::all(client).await?.into_iter().filter(|job| !job.state.has_ended()) {
        eprintln!(
            "cancelling job {} `{}` of an earlier run in this folder ({})",
            job.job, job.name, job.state
        );
        client.request(ClientRequest::Cancel(job.job)).await?;
    }
    Ok(())
}

/// The folder that was asked for, or one that is removed when the second value is dropped.
pub(crate) fn folder(options: &LocalArgs, prefix: &str) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(dir) = &options.dir else {
        let temporary = tempfile::Builder::new().prefix(prefix).tempdir().context("no temporary folder")?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    let dir = std::path::absolute(dir).with_context(|| format!("no such folder: {}", dir.display()))?;
    Ok((dir, None))
}
