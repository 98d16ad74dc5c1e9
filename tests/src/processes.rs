//! Processes of a local cluster, found under `/proc`.

use std::time::{Duration, Instant};

/// How long a killed process may take to be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    parent: u32,
    arguments: Vec<String>,
}

impl Process {
    /// All processes of the binary under test.
    fn all() -> Vec<Self> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter_map(Self::read).filter(Self::is_ours).collect()
    }

    fn read(id: u32) -> Option<Self> {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
        let arguments = line.split_terminator('\0').map(str::to_owned).collect();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        Some(Self { id, parent, arguments })
    }

    fn is_ours(&self) -> bool {
        let binary = super::binary().to_str().unwrap();
        self.arguments.first().is_some_and(|program| program.as_str() == binary)
    }

    /// The processes of the binary that were given something in this folder.
    pub fn in_folder(folder: &str) -> Vec<Self> {
        let inside = |one: &Self| one.arguments.iter().any(|argument| argument.starts_with(folder));
        Self::all().into_iter().filter(inside).collect()
    }

    /// As [`Self::in_folder`], with the workers that they started.
    pub fn of_cluster(folder: &str) -> Vec<Self> {
        let all = Self::all();
        let inside = |one: &Self| one.arguments.iter().any(|argument| argument.starts_with(folder));
        let daemons: Vec<u32> = all.iter().filter(|one| inside(one)).map(|one| one.id).collect();
        all.into_iter().filter(|one| inside(one) || daemons.contains(&one.parent)).collect()
    }

    /// The node daemons whose folders are in this one, with the names of these.
    pub(crate) fn nodes_in(folder: &str) -> Vec<(String, Self)> {
        let node = |one: Self| {
            let own =
                one.arguments.iter().find_map(|argument| argument.strip_prefix(folder)?.strip_prefix('/'));
            let is_node = one.arguments.get(1).is_some_and(|command| command == "node");
            own.filter(|_| is_node).map(|name| (name.to_owned(), one.clone()))
        };
        let mut nodes: Vec<_> = Self::all().into_iter().filter_map(node).collect();
        nodes.sort_by(|(a, _), (b, _)| a.cmp(b));
        nodes
    }

    /// The one process of the binary that was given this argument as its folder.
    pub(crate) fn with_argument(argument: &str) -> Self {
        let mut found = Self::all().into_iter().filter(|one| {
            let long_running =
                ["node", "coordinator"].map(|command| one.arguments.get(1).is_some_and(|arg| arg == command));
            long_running.contains(&true) && one.arguments.iter().any(|one| one == argument)
        });
        let process = found.next().unwrap_or_else(|| panic!("no process with {argument}"));
        assert_eq!(found.next(), None, "several processes with {argument}");
        process
    }

    /// The processes of the binary that it started.
    pub fn children(&self) -> Vec<Self> {
        Self::all().into_iter().filter(|other| other.parent == self.id).collect()
    }

    fn is_gone(&self) -> bool {
        // A process that has ended and is not yet waited for has no command line.
        Self::read(self.id).is_none_or(|now| now.arguments != self.arguments)
    }
}

/// Processes that stand still, and go on when this is dropped.
pub struct Frozen(Vec<Process>);

impl Frozen {
    /// Stops processes where they are, as `kill -STOP` does.
    pub fn new(processes: Vec<Process>) -> Self {
        signal("-STOP", &processes);
        Self(processes)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

/// Sends a signal to processes, of which some may have ended.
fn signal(name: &str, processes: &[Process]) {
    let ids = processes.iter().map(|process| process.id.to_string());
    let sent =
        std::process::Command::new("kill").arg(name).args(ids).stderr(std::process::Stdio::null()).status();
    assert!(sent.is_ok(), "there is no `kill`");
}

/// Ends a process at once, as `kill -9` does, and waits until it is gone.
pub fn kill(process: &Process) {
    let status = std::process::Command::new("kill").args(["-9", &process.id.to_string()]).status().unwrap();
    assert!(status.success() || process.is_gone(), "{process:?} cannot be killed");
    let since = Instant::now();
    while !process.is_gone() {
        assert!(since.elapsed() < GONE_TIMEOUT, "{process:?} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}
