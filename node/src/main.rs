//! The sixfold binary: node daemon, coordinator, command line, HTTP gateway.
//!
//! Read [`cli`] for what people type, [`coordinator`] and [`daemon`] for the two long-running
//! processes, and [`local`] for how a whole cluster runs on one machine.

mod cli;
mod client;
mod commands;
mod coordinator;
mod daemon;
mod gateway;
mod home;
mod job;
mod local;
mod process;
mod quickstart;
mod report;
mod roles;
mod run;
mod site;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use sixfold_cluster::task::TaskSpec;
use sixfold_telemetry::{Metrics, MetricsHandle, Process, TelemetryOptions};
use sixfold_wire::id::NodeName;

use cli::{Cli, Command};

/// How long blocking threads (a read of standard input, say) may hold up the end of the process.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(200);
/// Async threads of a process: what they do is light, and a local cluster has many processes.
const ASYNC_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().map_err(|_| anyhow::anyhow!("TLS was set up twice"))?;
    let metrics = Metrics::install(&gateway::BUCKETS)?;
    if let Some(telemetry) = telemetry(&command) {
        sixfold_telemetry::init(&telemetry)?;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(ASYNC_THREADS).enable_all().build().context("no runtime")?;
    let result = runtime.block_on(dispatch(command, metrics));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

/// Long-running processes tell what they do; a command only what goes wrong. A worker does not know
/// yet what it is.
fn telemetry(command: &Command) -> Option<TelemetryOptions> {
    let process = |role: &str, node| Process { role: role.to_owned(), node, ..Process::default() };
    let (process, filter) = match command {
        Command::Coordinator(_) => (process("coordinator", None), None),
        Command::Node(args) => (process("node", args.name.clone()), None),
        Command::Worker(_) => return None,
        _ => (Process::default(), std::env::var_os("SIXFOLD_LOG").is_none().then(|| "warn".to_owned())),
    };
    Some(TelemetryOptions { process, filter, ..TelemetryOptions::default() })
}

/// A worker logs as the rank of the job that its daemon gave it.
fn worker_telemetry(spec: &TaskSpec, node: &NodeName) {
    let process = Process {
        role: spec.role.clone(),
        node: Some(node.to_string()),
        job: Some(spec.id.job.to_string()),
        rank: Some(spec.id.index),
    };
    if let Err(error) = sixfold_telemetry::init(&TelemetryOptions { process, ..TelemetryOptions::default() })
    {
        eprintln!("this worker does not log: {error}");
    }
}

async fn dispatch(command: Command, metrics: MetricsHandle) -> Result<()> {
    match command {
        Command::Quickstart(args) => Box::pin(quickstart::run(args)).await,
        Command::Run(args) => Box::pin(run::run(args)).await,
        Command::Coordinator(args) => coordinator::run(args).await,
        Command::Node(args) => Box::pin(daemon::run(args, metrics)).await,
        Command::Worker(args) => {
            if args.pin_threads {
                sixfold_tensor::pin_threads();
            }
            Ok(sixfold_cluster::worker::run_worker(&roles::all(), worker_telemetry).await?)
        }
        Command::Token(command) => commands::access::token(command).await,
        Command::Key(command) => commands::access::key(command).await,
        Command::Login(args) => commands::access::login(args).await,
        Command::Submit(args) => commands::jobs::submit(args).await,
        Command::VerifyPlan(args) => commands::verify::run(args).await,
        Command::Replan(args) => commands::replan::run(args).await,
        Command::Report(args) => Box::pin(commands::report::run(args)).await,
        Command::Jobs(args) => commands::jobs::list(args).await,
        Command::Job(args) => commands::jobs::job(args).await,
        Command::Logs(args) => commands::jobs::logs(args).await,
        Command::Cancel(args) => commands::jobs::cancel(args).await,
        Command::Nodes(args) => commands::nodes::list(args).await,
        Command::Artifacts(args) => commands::artifacts::run(args).await,
        Command::Chat(args) => commands::chat::run(args).await,
        Command::Query(args) => commands::query::run(args).await,
        Command::Model(command) => commands::model::run(command),
        Command::Bench(command) => commands::bench::run(command),
        Command::Stages { kind, json } => commands::stages::explain(kind.as_deref(), json),
    }
}
