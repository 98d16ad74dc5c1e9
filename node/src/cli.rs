//! The command line: what people type, before it is resolved.

pub(crate) mod bench;
pub(crate) mod model;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sixfold_cluster::task::LinkChoice;

/// Sixfold: one binary for the whole life of a language model, on one cluster of machines.
///
/// Start with `sixfold quickstart`: it crawls a site, cleans it, trains a small model under tensor and
/// pipeline parallelism, evaluates it, serves it and asks it a question, on this machine alone.
#[derive(Parser)]
#[command(name = "sixfold", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The whole way once, on a temporary local cluster: crawl, clean, train, evaluate, serve, ask, check drift.
    Quickstart(QuickstartArgs),
    /// Run a job on a temporary local cluster, print its result and end the cluster.
    Run(RunArgs),
    /// Run the coordinator: it keeps the job log, signs certificates and assigns roles.
    Coordinator(CoordinatorArgs),
    /// Run a node daemon on this machine and join a cluster.
    Node(NodeArgs),
    /// Run one task in this process; started by a node daemon, never by hand.
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Make a token that lets a node or a person join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Keys for the HTTP API.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Get a certificate for a person or program on this machine, with a token of role `user`.
    Login(LoginArgs),
    /// Submit a job file.
    Submit(SubmitArgs),
    /// Check that a job's plans train to the bits of one rank, here, before machines are spent on them.
    ///
    /// For every stage of kind `train`, a model of some thousand parameters that makes the same choices (plan,
    /// logical shards, data groups, how unevenly heads and layers fall on the ranks, copies of key-value heads,
    /// tied head, dropout, clipping, packed documents) is trained for three steps: by all ranks of the plan, as
    /// threads of this process with the code that workers run, and by one rank alone. Every gradient after the
    /// sums, every weight and moment, and the loss must have the same bits on every rank.
    ///
    /// If they have, a table says what was compared, and what each rank sent beside what it would have sent if
    /// every sum had gone around a ring. If not, the command ends with code 1 and names the first number that
    /// differs: step, tensor (by its Hugging Face name), logical shard, rank, row and column, both values.
    ///
    /// `sixfold run` and `sixfold submit` do this by themselves before they start a job, unless they are told
    /// `--no-verify-plan` or the stage says `verify_plan = false`. A plan of one rank has nothing to compare.
    ///
    /// Example: sixfold verify-plan config/jobs/quickstart.toml --set train.data_parallel=2
    VerifyPlan(VerifyPlanArgs),
    /// Let a training that runs go on under another plan, or with other options that change no bit.
    ///
    /// Can be changed: the degrees of the plan (data_parallel, tensor_parallel, pipeline_parallel), how its pipeline is
    /// cut (virtual_stages, stage_layers), what ranks share (zero_stage, sequence_parallel), threads, recompute, pass_tokens,
    /// checkpoint_every_steps, commit_every_steps, verify_plan, peak_gflops, and how the job follows nodes
    /// that come and go (elastic, shrink_after_seconds, widen_after_seconds). Every other option decides
    /// what is trained, and is refused by its name.
    ///
    /// The new plan is checked as when a job is submitted: it has to fit the model and the batch, it is tried on a small
    /// model (see `sixfold verify-plan`), and the nodes that are up must have a core for each thread of each rank. If
    /// anything is wrong, the command says so and the job goes on as it is. Else the workers stop, and workers under the
    /// new plan go on from the state that nodes hold in memory, a step or two back at most. The loss of
    /// every step and the weights have the bits that they would have had without the change.
    ///
    /// The command returns when the ranks have their state again; `sixfold job ID` lists all changes.
    ///
    /// Example: sixfold replan 1 --set train.data_parallel=1 --set train.tensor_parallel=2
    Replan(ReplanArgs),
    /// Write the report of a job's training: one HTML page with its curves and where the time of its steps went.
    ///
    /// The page needs nothing else: pictures and style are in it, scripts are none. It shows loss, gradient norm,
    /// learning rate, throughput, MFU, pipeline bubble, waiting for data and memory by step, with faults, changes of the
    /// plan and stragglers marked; what each rank spends a step on (compute, every kind of exchange, optimizer, data,
    /// saving); the plan; and the hashes of the result. It can be written of a job that runs, has ended or has failed.
    ///
    /// Curves belong to the training's state, so they are whole after faults. They have 400 points at most: of
    /// longer trainings a point is the mean of several steps. MFU is relative to the best that products of matrices reach
    /// on the ranks' machines with their threads, measured while the ranks start (option `peak_gflops` overrides it).
    ///
    /// With --json, the figures as one object.
    Report(ReportArgs),
    /// List jobs.
    Jobs(ClientArgs),
    /// Show one job: stages, metrics, results; with --why, where each rank was placed and why.
    Job(JobArgs),
    /// Print a job's log.
    Logs(LogsArgs),
    /// Cancel a job; services that it started stop too.
    Cancel(JobIdArgs),
    /// List nodes.
    Nodes(ClientArgs),
    /// List artefacts: what every stage made, from what, and what they cannot be read without.
    ///
    /// A task model, made by a training with `lora_rank`, is adapters alone and needs its base: of several on one base, the
    /// base is there once. Fetched into a folder, it is what PEFT reads, and what `sixfold model merge BASE --adapter DIR` puts
    /// into the weights of the base, fetched into another.
    Artifacts(ArtifactsArgs),
    /// Talk to a model of a folder or a file, here, without a cluster.
    ///
    /// MODEL is a model folder, a .gguf file or a checkpoint of llama2.c. Messages are rendered by its chat template; the answer
    /// appears as it is computed. Several lines on standard input are the turns of one conversation.
    ///
    /// Examples: sixfold chat SmolLM2-135M-Instruct.Q4_1.gguf
    ///           sixfold chat smollm2 --adapter my-adapter --message "What is the capital of France?"
    #[command(verbatim_doc_comment)]
    Chat(ChatArgs),
    /// Ask a served model.
    Query(QueryArgs),
    /// Models of others in and out: import, export, inspect, check.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// How fast this machine trains, multiplies matrices and attends, without a cluster.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// The stage kinds of a job file and their options.
    Stages {
        /// One kind only.
        kind: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// As the node was told.
    #[arg(long)]
    pub(crate) pin_threads: bool,
}

impl WorkerArgs {
    /// The command line by which a worker gets these arguments.
    pub(crate) fn command_line(&self) -> Vec<String> {
        let pin = self.pin_threads.then(|| "--pin-threads".to_owned());
        ["worker".to_owned()].into_iter().chain(pin).collect()
    }
}

#[derive(Args, Clone)]
pub(crate) struct ChatArgs {
    /// A model folder, or a file of any format that `sixfold model import` reads.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// An adapter as PEFT writes it, or as a training with `lora_rank` makes it.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Say this, print the answer and end.
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) max_tokens: u32,
    /// Divides the logits; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// The same seed gives the same answers.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Memory for keys and values, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub(crate) kv_cache_mib: u32,
    /// Print a JSON object for each answer, once it is whole: `answer`, and for programs that compare models `prompt_ids`
    /// (the conversation as the template renders it), `ids` of the answer's tokens with the one that ends it, and `logprobs`.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to reach the cluster.
#[derive(Args, Clone)]
pub(crate) struct ClientArgs {
    /// Folder with your identity: what `sixfold login` wrote, or the coordinator's own folder.
    #[arg(long, env = "SIXFOLD_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CoordinatorArgs {
    /// Where the log, the certificate authority and the first user's identity are kept.
    #[arg(long, env = "SIXFOLD_COORDINATOR_DIR", value_name = "DIR", default_value = "sixfold-coordinator")]
    pub(crate) dir: PathBuf,
    /// Address for nodes and people (QUIC over UDP, mutual TLS).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6160")]
    pub(crate) listen: SocketAddr,
    /// Copies of each artefact to keep, at most one a node.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) copies: u32,
    /// End when standard input closes: for a process that a launcher started.
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// The coordinator's address.
    #[arg(long, value_name = "ADDR")]
    pub(crate) join: SocketAddr,
    /// A token from `sixfold token create --role node`; needed once, the certificate renews itself.
    #[arg(long, env = "SIXFOLD_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Where the identity and the artefacts are kept.
    #[arg(long, env = "SIXFOLD_NODE_DIR", value_name = "DIR", default_value = "sixfold-node")]
    pub(crate) dir: PathBuf,
    /// The node's name in the cluster; by default the host's name.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Address for other nodes (QUIC over UDP, mutual TLS); by default the one from which this machine
    /// reaches the coordinator, and a free port.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Serve the HTTP API here; without a certificate on loopback only.
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
    /// PEM file of the certificate for HTTPS, followed by those of its issuers.
    #[arg(long, value_name = "FILE", requires_all = ["http", "http_key"])]
    pub(crate) http_certificate: Option<PathBuf>,
    /// PEM file of the private key for HTTPS.
    #[arg(long, value_name = "FILE", requires = "http_certificate")]
    pub(crate) http_key: Option<PathBuf>,
    /// CPU cores to offer; all by default.
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<u32>,
    /// Keep each compute thread of a worker on a core of its own, and the whole worker on its cores. Workers of all nodes
    /// that one user runs on this machine share out its cores; one that finds too few free says so in its log and runs
    /// unpinned. Of use where several workers share a machine, or its memory is not equally near to all cores.
    #[arg(long)]
    pub(crate) pin_threads: bool,
    /// Nodes with the same label fail together: a rack, a power line. The node's name by default.
    #[arg(long, value_name = "LABEL")]
    pub(crate) failure_domain: Option<String>,
    /// Memory for states of trainings, this node's and others', in MiB; a quarter of the machine's by default.
    #[arg(long, value_name = "MIB")]
    pub(crate) hold_mib: Option<u64>,
    /// Tensor links between workers.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) links: Links,
    /// End when standard input closes: for a process that a launcher started.
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

impl From<Links> for LinkChoice {
    fn from(links: Links) -> Self {
        match links {
            Links::Auto => Self::Auto,
            Links::SharedMemory => Self::SharedMemory,
            Links::Quic => Self::Quic,
        }
    }
}

impl Links {
    /// As written on the command line.
    pub(crate) fn as_argument(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::SharedMemory => "shared-memory",
            Self::Quic => "quic",
        }
    }
}

/// Which tensor links workers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Links {
    /// Shared memory on one host, QUIC between hosts.
    Auto,
    /// Shared memory only.
    SharedMemory,
    /// QUIC only.
    Quic,
}

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it once.
    Create {
        /// Who may join with it.
        #[arg(long, value_enum)]
        role: TokenRole,
        /// How often it can be used.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// Minutes until it expires.
        #[arg(long, default_value_t = 60)]
        expires_minutes: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// What a token lets its holder become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// A node daemon.
    Node,
    /// A person or program that submits jobs.
    User,
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it once.
    Create {
        /// A name, for revoking it.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the names of keys.
    List(ClientArgs),
    /// Revoke a key by its name.
    Revoke {
        /// Its name.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Args)]
pub(crate) struct LoginArgs {
    /// The coordinator's address.
    #[arg(value_name = "ADDR")]
    pub(crate) coordinator: SocketAddr,
    /// A token from `sixfold token create --role user`.
    #[arg(long, env = "SIXFOLD_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// Your name in the cluster.
    #[arg(long, env = "USER", default_value = "user")]
    pub(crate) name: String,
    /// Where to keep the identity.
    #[arg(long, env = "SIXFOLD_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct JobFileArgs {
    /// The job file; `sixfold stages` explains its options, config/jobs/ has examples.
    #[arg(value_name = "JOB.toml")]
    pub(crate) file: PathBuf,
    /// Override an option, for example `--set train.tensor_parallel=2`. Can be given many times.
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Show progress until the job ends.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Start it without verifying the plans of its training stages (see `sixfold verify-plan`).
    #[arg(long)]
    pub(crate) no_verify_plan: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Args)]
pub(crate) struct VerifyPlanArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct LocalArgs {
    /// Keep everything here; a temporary folder by default (kept if the job fails).
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Leave the cluster up and print how to reach it; Ctrl-C ends it.
    #[arg(long)]
    pub(crate) keep: bool,
    /// CPU cores that each node offers; all by default.
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<u32>,
    /// Tensor links between workers.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) links: Links,
    /// Put each node into a network namespace of its own (Linux, as root).
    #[arg(long)]
    pub(crate) namespaces: bool,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobFileArgs,
    /// Start it without verifying the plans of its training stages (see `sixfold verify-plan`).
    #[arg(long)]
    pub(crate) no_verify_plan: bool,
    /// Node daemons to start, each a process with a folder of its own.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) local: u32,
    /// Write the report of the training into this folder when the job has ended (see `sixfold report`).
    #[arg(long, value_name = "FOLDER")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: LocalArgs,
}

#[derive(Args)]
pub(crate) struct QuickstartArgs {
    /// The site to crawl: a URL, or a folder of HTML that is served locally. Without it, documentation
    /// found on this machine, else a small site inside the binary.
    #[arg(long, value_name = "URL|FOLDER")]
    pub(crate) site: Option<String>,
    /// Pages to fetch at most.
    #[arg(long, value_name = "N", default_value_t = 320)]
    pub(crate) pages: u64,
    /// The question to ask the trained model.
    #[arg(long, value_name = "TEXT")]
    pub(crate) question: Option<String>,
    /// Training steps.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    #[command(flatten)]
    pub(crate) options: LocalArgs,
}

#[derive(Args)]
pub(crate) struct JobIdArgs {
    /// The job's number.
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Args)]
pub(crate) struct ReplanArgs {
    #[command(flatten)]
    pub(crate) job: JobIdArgs,
    /// An option of a `train` stage from now on. Can be given many times, for one stage.
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE", required = true)]
    pub(crate) settings: Vec<String>,
    /// Change the plan without trying it on a small model first.
    #[arg(long)]
    pub(crate) no_verify_plan: bool,
    /// Return when the coordinator has taken the change.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) job: JobIdArgs,
    /// Folder for the page, which is called `training-report-job-ID.html`.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub(crate) out: PathBuf,
}

#[derive(Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) job: JobIdArgs,
    /// Explain where each task was placed and why.
    #[arg(long)]
    pub(crate) why: bool,
}

#[derive(Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) job: JobIdArgs,
    /// Go on printing until the job ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Args)]
pub(crate) struct ArtifactsArgs {
    /// Write the files of this artefact (its id or a unique beginning of it) ...
    #[arg(long, value_name = "ID", requires = "to")]
    pub(crate) fetch: Option<String>,
    /// ... into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Args)]
pub(crate) struct QueryArgs {
    /// The question, or the beginning of a text.
    pub(crate) text: String,
    /// The model's name; needed only where several are served.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Complete the text instead of answering it as a chat.
    #[arg(long)]
    pub(crate) complete: bool,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 64)]
    pub(crate) max_tokens: u32,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}
