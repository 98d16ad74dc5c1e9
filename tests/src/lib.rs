//! What the whole-cluster tests share: the binary, local clusters of it, and their processes.
//!
//! A test starts `sixfold run` as a person would, looks at it through `sixfold job --json`, and kills
//! processes of it that it finds under `/proc`.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod processes;
mod rig;
mod site;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use processes::{Frozen, Process, kill};
pub use rig::{MIDDLES, Rig, is_amid, outcome};
pub use site::Site;

/// How long a job of a test may take, on a loaded machine.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);
/// What a run says on standard error, in its folder, beside the logs of its processes.
const SAID: &str = "run.log";
/// Pause between two looks at a job.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The sixfold binary: the one that `SIXFOLD_BINARY` names, or one that is built now if it is not up to date. With other
/// features or flags than it was built with before, that is a build of every dependency, and takes its time.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("SIXFOLD_BINARY") {
            return std::path::absolute(named).unwrap();
        }
        // The cargo that runs the tests, where one does.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        eprintln!("building the sixfold binary, unless it is up to date");
        let built = Command::new(cargo)
            .args(["build", "--release", "--package", "sixfold", "--message-format", "json"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let messages = String::from_utf8(built.stdout).unwrap();
        let mut messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let executable = messages.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        executable.expect("cargo names the executable")
    })
}

/// A command of the binary, in the root of the workspace, without the caller's own settings.
pub fn sixfold(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    for name in ["SIXFOLD_HOME", "SIXFOLD_TOKEN", "SIXFOLD_NODE_DIR", "SIXFOLD_COORDINATOR_DIR"] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end; its output, whatever became of it.
pub fn output(arguments: &[&str]) -> Output {
    sixfold(arguments).output().unwrap()
}

/// The last line of standard output as JSON, of a command that must succeed.
pub fn result(arguments: &[&str]) -> Value {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    last_line(&output)
}

/// What a command that must fail says on standard error.
pub fn refusal(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last:?}"))
}

/// Whether nodes can be given network namespaces of their own here; says so where not.
pub fn has_namespaces() -> bool {
    let name = format!("sfprobe{}", std::process::id());
    let ip = |arguments: &[&str]| Command::new("ip").args(arguments).stderr(Stdio::null()).status();
    let has =
        ["add", "del"].iter().all(|what| ip(&["netns", what, &name]).is_ok_and(|status| status.success()));
    if !has {
        println!("skipped: network namespaces need root and iproute2");
    }
    has
}

/// Held by tests that need the machine for themselves: clusters side by side would only slow each
/// other down.
pub fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // A test that failed has left no cluster behind.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job on a local cluster that runs while the test does something to it.
pub struct Running {
    child: Option<Child>,
    folder: Arc<tempfile::TempDir>,
    since: Instant,
}

impl Running {
    /// Starts `sixfold run` (or `quickstart`) with these arguments and a folder of its own.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in_folder(tempfile::tempdir().unwrap(), arguments)
    }

    /// As [`Self::start`], in a folder that was prepared.
    pub fn start_in_folder(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        Self::start_in(Arc::new(folder), arguments)
    }

    /// Starts again in the folder of this run, which has ended.
    pub fn again(&self, arguments: &[&str]) -> Self {
        Self::start_in(Arc::clone(&self.folder), arguments)
    }

    fn start_in(folder: Arc<tempfile::TempDir>, arguments: &[&str]) -> Self {
        // A pipe that nobody reads until the end could fill and stop the run.
        let said = std::fs::File::create(folder.path().join(SAID)).unwrap();
        let child = sixfold(arguments)
            .args(["--json", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .unwrap();
        Self { child: Some(child), folder, since: Instant::now() }
    }

    /// Where the cluster's folders are.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The cluster's first job, once there is one.
    pub fn job(&self) -> Option<Value> {
        let home = self.dir().join("coordinator");
        let output = output(&["job", "1", "--json", "--home", home.to_str()?]);
        output.status.success().then(|| last_line(&output))
    }

    /// Waits until the job is as wanted; the job then.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        match self.look_for(what, wanted) {
            Some(job) => job,
            None => panic!("{what}: the run ended before: {}", self.logs()),
        }
    }

    /// As [`Self::wait_for`], for what may be over between two looks: nothing if the run ends first.
    pub fn look_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        loop {
            if let Some(job) = self.job().filter(|job| wanted(job)) {
                return Some(job);
            }
            if self.has_ended(what).is_some() {
                return None;
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// How the run ended, if it has; it must not take for ever.
    fn has_ended(&mut self, what: &str) -> Option<ExitStatus> {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        if ended.is_none() && self.since.elapsed() > RUN_TIMEOUT {
            panic!("{what}: not within {RUN_TIMEOUT:?}: {:?}\n{}", self.job(), self.logs());
        }
        ended
    }

    /// Whether the run is over.
    pub fn has_finished(&mut self) -> bool {
        self.has_ended("the run").is_some()
    }

    /// The process of a node daemon.
    pub fn node(&self, name: &str) -> Process {
        Process::with_argument(self.dir().join(name).to_str().unwrap())
    }

    /// The nodes that have worker processes, with these.
    pub fn busy_nodes(&self) -> Vec<(String, Vec<Process>)> {
        let nodes = Process::nodes_in(self.dir().to_str().unwrap()).into_iter();
        let nodes = nodes.map(|(name, daemon)| (name, daemon.children()));
        nodes.filter(|(_, workers)| !workers.is_empty()).collect()
    }

    /// Stops a node daemon and its workers where they are, until the result is dropped.
    pub fn freeze_node(&self, name: &str) -> Frozen {
        let daemon = self.node(name);
        let workers = daemon.children();
        Frozen::new([vec![daemon], workers].concat())
    }

    /// What job 1 has said so far.
    pub fn said(&self) -> String {
        let home = self.dir().join("coordinator");
        let output = output(&["logs", "1", "--home", home.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The process of the coordinator.
    pub fn coordinator(&self) -> Process {
        Process::with_argument(self.dir().join("coordinator").to_str().unwrap())
    }

    /// Asks for another plan of job 1; what the command says.
    pub fn replan(&self, settings: &[&str]) -> Output {
        let home = self.dir().join("coordinator");
        let mut arguments = vec!["replan", "1", "--json", "--home", home.to_str().unwrap()];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        output(&arguments)
    }

    /// Has another node, of one core, join the cluster.
    pub fn join_node(&self, name: &str) -> Joined {
        let home = self.dir().join("coordinator");
        let token =
            result(&["token", "create", "--role", "node", "--json", "--home", home.to_str().unwrap()]);
        let address = std::fs::read_to_string(home.join("coordinator.txt")).unwrap();
        let log = std::fs::File::create(self.dir().join(format!("{name}.log"))).unwrap();
        let child =
            sixfold(&["node", "--with-parent", "--join", address.trim(), "--name", name, "--cores", "1"])
                .arg("--dir")
                .arg(self.dir().join(name))
                .env("SIXFOLD_TOKEN", token["token"].as_str().unwrap())
                .stdin(Stdio::piped())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
        Joined(child)
    }

    /// The node that the last placed task of a stage of job 1 was given to.
    pub fn host_of(&self, stage: &str) -> String {
        let home = self.dir().join("coordinator");
        let why = result(&["job", "1", "--why", "--json", "--home", home.to_str().unwrap()]);
        let placed = |one: &&Value| one["stage"] == stage && one["nodes"].is_array();
        let task = why.as_array().unwrap().iter().rfind(placed);
        let task = task.unwrap_or_else(|| panic!("{stage} is nowhere: {why}"));
        task["nodes"][0].as_str().unwrap().to_owned()
    }

    /// Kills a node daemon with all its workers, and deletes its folder: a machine that burnt down.
    pub fn destroy_node(&self, name: &str) {
        let daemon = self.node(name);
        let workers = daemon.children();
        kill(&daemon);
        workers.iter().for_each(kill);
        std::fs::remove_dir_all(self.dir().join(name)).unwrap();
    }

    /// Waits for the end and returns the result.
    pub fn finish(self) -> Value {
        self.finish_and_keep().1
    }

    /// Waits for the end; the folder lives as long as the first value.
    pub fn finish_and_keep(mut self) -> (Self, Value) {
        while self.has_ended("the end").is_none() {
            std::thread::sleep(LOOK_PAUSE);
        }
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "the run failed: {}", self.logs());
        let result = last_line(&output);
        (self, result)
    }

    /// Ends a cluster that was to be kept.
    pub fn stop(mut self) {
        let child = self.child.take().unwrap();
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(status.success() && output.status.success(), "{}", self.logs());
    }

    /// The ends of all logs, for a failure's message.
    fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.dir()).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                text += &format!("== {}\n{}\n", path.display(), tail.join("\n"));
            }
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves no cluster behind: its processes end with their parent.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A node that joined a run's cluster; it ends when this is dropped.
pub struct Joined(Child);

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stage of a job by its name.
pub fn stage<'a>(job: &'a Value, name: &str) -> &'a Value {
    let stages = job["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("no stage {name} in {job}"))
}
