//! What can be set about a coordinator, with the values that it uses otherwise.

use serde::{Deserialize, Serialize};

/// Options of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How often time-outs are looked at.
    pub tick_ms: u64,
    /// Silence after which another node is asked to probe a node.
    pub suspect_ms: u64,
    /// Silence after which a node is declared dead if the probe agrees or nobody can probe. Its
    /// lease ends then, by its own clock too.
    pub evict_ms: u64,
    /// How long a probing node may take to answer before another is asked.
    pub probe_ms: u64,
    /// Silence after which a node is declared dead whatever a probe says: a partition one way.
    pub unreachable_ms: u64,
    /// Time after the coordinator's start in which nodes from the log may come back.
    pub grace_ms: u64,
    /// Failures of a task on one node after which it is placed elsewhere.
    pub restarts_per_node: u32,
    /// Failures of a task in a row, without progress, after which its job fails.
    pub restarts_max: u32,
    /// Nodes that a task may lose in a row, without progress, before its job fails.
    pub node_losses_max: u32,
    /// Wait before the second attempt; it doubles with each failure.
    pub backoff_ms: u64,
    /// Longest wait between attempts.
    pub backoff_max_ms: u64,
    /// A service that ran that long has used up none of its restarts.
    pub stable_ms: u64,
    /// Different tasks that give up on a node, none succeeding there meanwhile, before it is quarantined.
    pub strikes_max: u32,
    /// How long a quarantined node gets no tasks.
    pub quarantine_ms: u64,
    /// How long a job waits for an input that is on no node before it fails.
    pub lost_artifact_ms: u64,
    /// Copies of each artefact, or as many as there are nodes.
    pub copies: u32,
    /// States of a task that are kept, newest first.
    pub states_kept: usize,
    /// How long a command that was not answered waits before it is sent again.
    pub resend_ms: u64,
    /// How long a copy of an artefact may take before it is asked for again.
    pub replicate_ms: u64,
    /// Longest time that a watching client waits for a change.
    pub watch_ms: u64,
    /// Log lines kept for each job.
    pub log_lines: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            suspect_ms: 750,
            evict_ms: 1250,
            probe_ms: 500,
            unreachable_ms: 5000,
            grace_ms: 5000,
            restarts_per_node: 3,
            restarts_max: 8,
            node_losses_max: 10,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            stable_ms: 60_000,
            strikes_max: 3,
            quarantine_ms: 60_000,
            lost_artifact_ms: 30_000,
            copies: 2,
            states_kept: 3,
            resend_ms: 250,
            replicate_ms: 30_000,
            watch_ms: 10_000,
            log_lines: 2000,
        }
    }
}

impl Options {
    /// Wait before an attempt after `failures` failures in a row.
    pub(crate) fn backoff_after(&self, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(20);
        (self.backoff_ms << doublings).min(self.backoff_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let options = Options::default();
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 60].map(|failures| options.backoff_after(failures)).into();
        assert_eq!(waits, [100, 200, 400, 6400, 10_000, 10_000]);
    }
}
