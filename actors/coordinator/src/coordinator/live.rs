//! What is shown of running jobs and not worth keeping: the newest figures of each task, the last
//! lines of each job's log, and a version that grows with every change, for clients that watch.

use std::collections::{BTreeMap, VecDeque};

use sixfold_cluster::task::{HISTORY_FIGURE, Metric, Metrics, renew_figures};
use sixfold_wire::id::{Epoch, JobId, TaskId};

use crate::event::{Entry, Event, JobEvent, UnitEvent};
use crate::message::LogPage;
use crate::state::State;

/// Longest line that is kept, in bytes.
const LINE_BYTES_MAX: usize = 2000;
/// Lines that one answer holds at most.
const PAGE_LINES: usize = 500;
/// Jobs whose lines are kept; those of the oldest give way.
const JOBS_WITH_LINES: usize = 256;
/// Phases whose curves are kept; those of the oldest jobs give way.
const HISTORIES_MAX: usize = 256;

/// What is shown of all jobs.
pub(super) struct LiveJobs {
    version: u64,
    lines_max: usize,
    jobs: BTreeMap<JobId, LiveJob>,
    figures: BTreeMap<TaskId, Metrics>,
    /// The curves of each phase that has any, as JSON; they stay when their tasks have ended.
    histories: BTreeMap<(JobId, u32), String>,
}

#[derive(Default)]
struct LiveJob {
    version: u64,
    lines: VecDeque<String>,
    first_line: u64,
}

impl LiveJobs {
    /// Versions grow from one coordinator to the next.
    pub(super) fn new(epoch: Epoch, lines_max: usize) -> Self {
        Self {
            version: epoch.0 << 32,
            lines_max: lines_max.max(1),
            jobs: BTreeMap::new(),
            figures: BTreeMap::new(),
            histories: BTreeMap::new(),
        }
    }

    pub(super) fn watch_jobs(&mut self, jobs: impl Iterator<Item = JobId>) {
        jobs.for_each(|job| self.bump(job));
    }

    fn bump(&mut self, job: JobId) {
        self.version += 1;
        self.jobs.entry(job).or_default().version = self.version;
    }

    pub(super) fn version(&self, job: JobId) -> u64 {
        self.jobs.get(&job).map_or(0, |job| job.version)
    }

    /// Whoever watches the job hears of it if it `changes` what they see.
    pub(super) fn set_figures(&mut self, task: TaskId, mut figures: Metrics, changes: bool) {
        if let Some(Metric::Text(history)) = figures.remove(HISTORY_FIGURE) {
            self.histories.insert((task.job, task.phase), history);
            if self.histories.len() > HISTORIES_MAX {
                self.histories.pop_first();
            }
        }
        renew_figures(self.figures.entry(task).or_default(), figures);
        if changes {
            self.bump(task.job);
        }
    }

    pub(super) fn history(&self, job: JobId, phase: u32) -> Option<&str> {
        self.histories.get(&(job, phase)).map(String::as_str)
    }

    pub(super) fn figures(&self, task: TaskId) -> Option<&Metrics> {
        self.figures.get(&task)
    }

    pub(super) fn drop_figures(&mut self, task: TaskId) {
        self.figures.remove(&task);
    }

    pub(super) fn drop_job_figures(&mut self, job: JobId) {
        self.figures.retain(|task, _| task.job != job);
    }

    pub(super) fn add_lines(&mut self, job: JobId, source: &str, lines: &[String]) {
        for line in lines {
            self.add_line(job, format!("{source}: {line}"));
        }
    }

    fn add_line(&mut self, id: JobId, mut line: String) {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        let job = self.jobs.entry(id).or_default();
        job.lines.push_back(line);
        while job.lines.len() > self.lines_max {
            job.lines.pop_front();
            job.first_line += 1;
        }
        self.bump(id);
    }

    pub(super) fn page(&self, job: JobId, from: u64) -> LogPage {
        let Some(job) = self.jobs.get(&job) else { return LogPage { from, lines: Vec::new(), next: from } };
        let from = from.clamp(job.first_line, job.first_line + job.lines.len() as u64);
        let skipped = usize::try_from(from - job.first_line).unwrap_or(usize::MAX);
        let lines: Vec<String> = job.lines.iter().skip(skipped).take(PAGE_LINES).cloned().collect();
        LogPage { from, next: from + lines.len() as u64, lines }
    }

    /// Notes that a job changed, and says so in its log where a person would want to know.
    pub(super) fn note(&mut self, state: &State, entry: &Entry) {
        match &entry.event {
            Event::Job(id, event) => {
                self.bump(*id);
                self.note_job(state, *id, event);
            }
            Event::Unit(id, event) => {
                self.bump(id.job);
                let Some(job) = state.jobs.get(&id.job) else { return };
                let stage = job.stage_name(id.phase);
                let is_gang = state.phase(id.job, id.phase).is_some_and(|phase| phase.is_gang());
                let name = if is_gang { stage.to_owned() } else { format!("{stage}[{}]", id.unit) };
                if let Some(line) = describe(event, is_gang) {
                    self.add_line(id.job, format!("{name}: {line}"));
                }
            }
            Event::Started(_) | Event::Node(..) | Event::Artifact(_) | Event::Access(_) => {}
        }
    }

    fn note_job(&mut self, state: &State, id: JobId, event: &JobEvent) {
        let Some(job) = state.jobs.get(&id) else { return };
        let line = match event {
            JobEvent::Submitted { .. } => {
                self.trim_jobs();
                format!("job {id} accepted")
            }
            JobEvent::PhaseStarted { phase, inputs } => {
                let tasks = state.phase(id, *phase).map_or(0, |phase| phase.tasks());
                format!("{}: {tasks} task(s) on {} input(s)", job.stage_name(*phase), inputs.len())
            }
            JobEvent::PhaseServing { phase } => format!("{}: serving", job.stage_name(*phase)),
            JobEvent::PhaseDone { phase, outputs } => {
                format!("{}: done, {} output(s)", job.stage_name(*phase), outputs.len())
            }
            JobEvent::Became { state, message: Some(message) } => format!("job {id} {state}: {message}"),
            JobEvent::Became { state, message: None } => format!("job {id} {state}"),
            JobEvent::Replanned { phase, why, .. } => {
                let stage = job.stage_name(*phase);
                match job.plan_changes.last() {
                    Some(change) => format!("{stage}: plan {} -> {}: {why}", change.from, change.to),
                    None => format!("{stage}: {why}"),
                }
            }
        };
        self.add_line(id, line);
    }

    fn trim_jobs(&mut self) {
        let with_lines: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| !job.lines.is_empty()).map(|(id, _)| *id).collect();
        let surplus = with_lines.len().saturating_sub(JOBS_WITH_LINES);
        for id in with_lines.into_iter().take(surplus) {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.first_line += job.lines.len() as u64;
                job.lines.clear();
            }
        }
    }
}

fn describe(event: &UnitEvent, is_gang: bool) -> Option<String> {
    match event {
        UnitEvent::Placed { nodes, step, epoch, .. } if is_gang => {
            let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
            let from = step.map_or_else(|| "the beginning".to_owned(), |step| format!("step {step}"));
            Some(format!("attempt {epoch} on {} from {from}", names.join(", ")))
        }
        UnitEvent::Resumed { .. } if is_gang => Some("all ranks work".to_owned()),
        UnitEvent::Failed { node, message, .. } => Some(format!("failed on {node}: {message}")),
        UnitEvent::Adopted => Some("still runs, taken back".to_owned()),
        UnitEvent::Serving { address, .. } => Some(format!("serves on {address}")),
        UnitEvent::WentOn { step, redone } => {
            Some(format!("goes on after step {step}; {redone} step(s) done again"))
        }
        UnitEvent::Placed { .. }
        | UnitEvent::Resumed { .. }
        | UnitEvent::Saved { .. }
        | UnitEvent::Succeeded { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_lines_and_their_numbers() {
        let mut live = LiveJobs::new(Epoch(1), 3);
        let lines: Vec<String> = (0..5).map(|line| line.to_string()).collect();
        live.add_lines(JobId(1), "crawl[0]", &lines);
        let page = live.page(JobId(1), 0);
        assert_eq!((page.from, page.next), (2, 5));
        assert_eq!(page.lines, ["crawl[0]: 2", "crawl[0]: 3", "crawl[0]: 4"]);
        assert_eq!(live.page(JobId(1), 5).lines, Vec::<String>::new());
        assert_eq!(live.page(JobId(1), 99).next, 5);
    }

    #[test]
    fn curves_stay_when_their_task_ends_and_are_bounded() {
        let mut live = LiveJobs::new(Epoch(1), 3);
        let task = |job| TaskId { job: JobId(job), phase: 2, index: 0 };
        let told = |name: &str| Metrics::from([(name.to_owned(), Metric::Text("{}".to_owned()))]);
        for job in 1..=HISTORIES_MAX as u64 + 1 {
            live.set_figures(task(job), told(HISTORY_FIGURE), true);
            live.set_figures(task(job), told("loss"), true);
            assert_eq!(live.figures(task(job)), Some(&told("loss")), "curves are no figure");
            live.drop_figures(task(job));
        }
        assert_eq!(live.history(JobId(1), 2), None);
        assert_eq!(live.history(JobId(2), 2), Some("{}"));
        let version = live.version(JobId(2));
        live.set_figures(task(2), told("loss"), false);
        assert_eq!(live.version(JobId(2)), version);
    }

    #[test]
    fn cuts_long_lines_between_characters() {
        let mut live = LiveJobs::new(Epoch(1), 3);
        live.add_lines(JobId(1), "x", &["é".repeat(LINE_BYTES_MAX)]);
        assert!(live.page(JobId(1), 0).lines[0].len() <= LINE_BYTES_MAX);
    }
}
