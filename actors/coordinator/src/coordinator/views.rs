//! The cluster as its nodes see it, and jobs and nodes as people see them.

use sixfold_cluster::protocol::{ClusterView, NodeAddress, NodeCommand, Service};
use sixfold_cluster::task::{GangId, HISTORY_FIGURE, Metric, Metrics, TaskAddress};
use sixfold_wire::id::{JobId, NodeName, TaskId};

use super::outbox::Key;
use super::place::domain_of;
use super::{Coordinator, Ticket};
use crate::event::UnitId;
use crate::job::PhaseSpec;
use crate::message::{
    ClientReply, JobState, JobSummary, JobView, NodeView, PlacementView, RankView, Refusal, StageHistory,
    StageState, StageView, TrainingView,
};
use crate::state::job::{Job, Phase, PhaseState};
use crate::state::node::{Node, NodeStatus};
use crate::state::unit::Standing;

/// Clients that watch at a time.
const WATCHERS_MAX: usize = 1024;
/// Outputs of a stage that are listed.
const OUTPUTS_SHOWN: usize = 1000;
/// Placements of a job that are listed.
const PLACEMENTS_SHOWN: usize = 2000;

/// A client that waits for a job to change.
pub(super) struct Watcher {
    ticket: Ticket,
    job: JobId,
    since: u64,
    until_ms: u64,
}

fn seconds(from_ms: u64, to_ms: u64) -> f64 {
    to_ms.saturating_sub(from_ms) as f64 / 1000.0
}

impl Coordinator {
    /// Tells every node about the cluster, if it has changed.
    pub(super) fn publish_view(&mut self) {
        let view = self.cluster_view();
        if view != self.view {
            self.view = ClusterView { version: self.view.version + 1, ..view };
            let nodes: Vec<NodeName> = self.links.iter().map(|(name, _)| name.clone()).collect();
            for node in nodes {
                self.send_view(&node);
            }
        }
    }

    pub(super) fn send_view(&mut self, node: &NodeName) {
        self.send(node, Key::View, NodeCommand::View(self.view.clone()));
    }

    /// The view as it should be, under the version of the last one.
    fn cluster_view(&self) -> ClusterView {
        let members = || self.state.nodes.iter().filter(|(_, node)| node.status != NodeStatus::Gone);
        let nodes = members().map(|(name, node)| NodeAddress { node: name.clone(), address: node.address });
        ClusterView {
            version: self.view.version,
            nodes: nodes.collect(),
            domains: members().map(|(name, node)| domain_of(name, node)).collect(),
            gangs: self.running_gangs(),
            services: self.services(),
            keys: self.state.access.valid_keys(),
            copies: self.options.copies,
        }
    }

    /// Gangs that have not done their work, placed or not.
    fn running_gangs(&self) -> Vec<GangId> {
        let gangs = self.state.open_jobs().flat_map(|(job, record)| {
            let running = |phase: &Phase| phase.is_gang() && phase.state == PhaseState::Running;
            let phases = (0..).zip(&record.phases).filter(move |(_, phase)| running(phase));
            phases.map(move |(phase, _)| GangId { job, phase })
        });
        gangs.collect()
    }

    fn services(&self) -> Vec<Service> {
        let mut services = Vec::new();
        for (id, phase, unit) in self.state.active_units().filter(|(_, phase, _)| phase.is_service()) {
            let Some(attempt) = unit.current() else { continue };
            for (member, node) in (0..).zip(&attempt.nodes) {
                let record = unit.members.get(member as usize);
                let Some(service) = record.and_then(|record| record.service.as_ref()) else { continue };
                let task = TaskId { job: id.job, phase: id.phase, index: phase.task_index(id.unit, member) };
                let at = TaskAddress { task, node: node.clone(), address: service.address };
                let (role, about) = (phase.spec.role.clone(), service.about.clone());
                services.push(Service { role, at, epoch: attempt.epoch, about });
            }
        }
        services
    }

    pub(super) fn watch(&mut self, job: JobId, since: u64, ticket: Ticket) -> Result<(), Refusal> {
        self.known(job)?;
        if self.watchers.len() >= WATCHERS_MAX {
            return Err(Refusal::Full { what: "watching clients".to_owned(), held: self.watchers.len() });
        }
        let until_ms = self.now_ms + self.options.watch_ms;
        self.watchers.push(Watcher { ticket, job, since, until_ms });
        Ok(())
    }

    pub(super) fn answer_watchers(&mut self) {
        let now_ms = self.now_ms;
        let is_due = |watcher: &Watcher, version: u64| version > watcher.since || watcher.until_ms <= now_ms;
        let (due, rest): (Vec<Watcher>, Vec<Watcher>) = std::mem::take(&mut self.watchers)
            .into_iter()
            .partition(|watcher| is_due(watcher, self.live.version(watcher.job)));
        self.watchers = rest;
        for watcher in due {
            let version = self.live.version(watcher.job);
            let reply = match self.job_view(watcher.job) {
                Ok(view) => ClientReply::Watched { version, job: Box::new(view) },
                Err(refusal) => ClientReply::Refused(refusal),
            };
            self.reply_client(watcher.ticket, reply);
        }
    }

    pub(super) fn job_summaries(&self) -> Vec<JobSummary> {
        let summary = |(id, job): (&JobId, &Job)| JobSummary {
            job: *id,
            name: job.spec.name.clone(),
            state: job.state,
            seconds: seconds(job.submitted_ms, job.ended_ms.unwrap_or(self.now_ms)),
            message: job.message.clone(),
        };
        self.state.jobs.iter().map(summary).collect()
    }

    pub(super) fn job_view(&self, id: JobId) -> Result<JobView, Refusal> {
        let job = self.state.jobs.get(&id).ok_or(Refusal::NoSuchJob(id))?;
        let stages = 0..job.spec.stages.len();
        Ok(JobView {
            job: id,
            name: job.spec.name.clone(),
            state: job.state,
            message: job.message.clone(),
            seconds: seconds(job.submitted_ms, job.ended_ms.unwrap_or(self.now_ms)),
            stages: stages.filter_map(|stage| self.stage_view(id, job, stage)).collect(),
            training: self.training_view(id, job),
            recoveries: job.recoveries.clone(),
            plan_changes: job.plan_changes.clone(),
        })
    }

    fn stage_view(&self, id: JobId, job: &Job, stage: usize) -> Option<StageView> {
        let spec = job.spec.stages.get(stage)?;
        let phases: Vec<(u32, &Phase)> =
            (0..).zip(&job.phases).filter(|(_, phase)| phase.stage == stage).collect();
        let mut metrics = Metrics::new();
        for (index, phase) in &phases {
            metrics.extend(self.phase_metrics(id, *index, phase));
        }
        let started = phases.first().and_then(|(_, phase)| phase.started_ms);
        let last = phases.last().map(|(_, phase)| *phase)?;
        let ended = last.ended_ms.or(job.ended_ms).unwrap_or(self.now_ms);
        let members = phases.iter().flat_map(|(_, phase)| &phase.units).flat_map(|unit| &unit.members);
        let done =
            members.clone().filter(|member| member.result.is_some() || member.service.is_some()).count();
        Some(StageView {
            name: spec.name.clone(),
            kind: spec.kind.clone(),
            state: stage_state(job.state, &phases),
            seconds: started.map_or(0.0, |started| seconds(started, ended)),
            metrics,
            tasks_done: done as u64,
            tasks_total: members.count() as u64,
            outputs: last.outputs.iter().take(OUTPUTS_SHOWN).copied().collect(),
        })
    }

    /// Adds up the tasks' counts and keeps the first task's other figures. Every rank of a gang
    /// speaks of the same steps, so there each figure is that of the first rank that has it. A task
    /// that still runs counts with its newest figures.
    fn phase_metrics(&self, job: JobId, index: u32, phase: &Phase) -> Metrics {
        let mut sum = Metrics::new();
        for (unit_index, unit) in (0..).zip(&phase.units) {
            for (member_index, member) in (0..).zip(&unit.members) {
                let task = TaskId { job, phase: index, index: phase.task_index(unit_index, member_index) };
                let result = member.result.as_ref().map(|result| &result.metrics);
                let service = member.service.as_ref().map(|service| &service.about);
                for figures in [result.or_else(|| self.live.figures(task)), service].into_iter().flatten() {
                    let figures =
                        figures.iter().filter(|(name, _)| !phase.is_gang() || !sum.contains_key(*name));
                    let figures = figures.filter(|(name, _)| *name != HISTORY_FIGURE);
                    let figures: Vec<(&String, &Metric)> = figures.collect();
                    figures.into_iter().for_each(|(name, metric)| add_metric(&mut sum, name, metric));
                }
            }
        }
        sum
    }

    fn training_view(&self, id: JobId, job: &Job) -> Option<TrainingView> {
        let phases = (0..).zip(&job.phases);
        let gangs = phases.filter_map(|(index, phase)| Some((index, phase, phase.spec.plan()?)));
        let (index, phase, plan): (u32, &Phase, _) = gangs.last()?;
        let unit = phase.units.first()?;
        let ranks = (0..).zip(&unit.members).map(|(rank, member)| {
            let task = TaskId { job: id, phase: index, index: rank };
            let result = member.result.as_ref().map(|result| &result.metrics);
            let mut metrics = result.or_else(|| self.live.figures(task)).cloned().unwrap_or_default();
            metrics.remove(HISTORY_FIGURE);
            RankView { rank, node: unit.node_of(rank).cloned(), metrics }
        });
        Some(TrainingView {
            stage: job.stage_name(index).to_owned(),
            plan,
            wanted_plan: job.wanted(index).and_then(PhaseSpec::plan).unwrap_or(plan),
            metrics: self.phase_metrics(id, index, phase),
            ranks: ranks.collect(),
        })
    }

    /// The curves of a job's gangs: of those that are done as the log has them, of others as they were told last.
    pub(super) fn histories(&self, id: JobId) -> Result<Vec<StageHistory>, Refusal> {
        let job = self.state.jobs.get(&id).ok_or(Refusal::NoSuchJob(id))?;
        let histories = (0..).zip(&job.phases).filter_map(|(index, phase)| {
            let members = phase.units.iter().flat_map(|unit| &unit.members);
            let told =
                members.filter_map(|member| member.result.as_ref()?.metrics.get(HISTORY_FIGURE)).next();
            let json = match told {
                Some(Metric::Text(json)) => json,
                _ => self.live.history(id, index)?,
            };
            Some(StageHistory { stage: job.stage_name(index).to_owned(), json: json.to_owned() })
        });
        Ok(histories.collect())
    }

    pub(super) fn placements(&self, id: JobId) -> Result<Vec<PlacementView>, Refusal> {
        let job = self.state.jobs.get(&id).ok_or(Refusal::NoSuchJob(id))?;
        let mut views = Vec::new();
        for (index, phase) in (0..).zip(&job.phases) {
            for (unit_index, unit) in (0..).zip(&phase.units) {
                let task = TaskId { job: id, phase: index, index: phase.task_index(unit_index, 0) };
                let key = UnitId { job: id, phase: index, unit: unit_index };
                let placed = match unit.standing {
                    Standing::Waiting { .. } => None,
                    Standing::Active | Standing::Done => unit.attempt.as_ref(),
                };
                let waits = || match (self.waits.get(&key), &unit.failures.last) {
                    (Some(why), _) => format!("waits: {why}"),
                    (None, Some(message)) => format!("waits before another attempt; the last: {message}"),
                    (None, None) => "waits".to_owned(),
                };
                views.push(PlacementView {
                    stage: job.stage_name(index).to_owned(),
                    role: phase.spec.role.clone(),
                    task,
                    placed: placed.map(|attempt| (attempt.epoch, attempt.nodes.clone())),
                    why: placed.map_or_else(waits, |attempt| attempt.why.clone()),
                });
                if views.len() >= PLACEMENTS_SHOWN {
                    return Ok(views);
                }
            }
        }
        Ok(views)
    }

    pub(super) fn node_views(&self) -> Vec<NodeView> {
        let view = |(name, node): (&NodeName, &Node)| {
            let members = self.members_on(name).into_iter();
            NodeView {
                node: NodeAddress { node: name.clone(), address: node.address },
                state: self.node_state(name, node).to_owned(),
                http: node.http,
                capabilities: node.capabilities.clone(),
                tasks: members.map(|(unit, member)| self.task_of(unit, member)).collect(),
                artifacts: self.state.catalogue.held_by(name).len() as u64,
                silent_ms: self.links.get(name).map(|link| link.silent_ms(self.now_ms)),
            }
        };
        self.state.nodes.iter().map(view).collect()
    }

    fn node_state(&self, name: &NodeName, node: &Node) -> &'static str {
        let link = self.links.get(name);
        match node.status {
            NodeStatus::Gone if node.evicted => "dead",
            NodeStatus::Gone => "left",
            NodeStatus::Draining => "draining",
            NodeStatus::Member => match link {
                None => "awaited",
                Some(link) if link.broken || link.silent_ms(self.now_ms) >= self.options.suspect_ms => {
                    "suspected"
                }
                Some(_) if node.quarantined_until_ms > self.now_ms => "quarantined",
                Some(_) => "live",
            },
        }
    }
}

fn stage_state(job: JobState, phases: &[(u32, &Phase)]) -> StageState {
    let all = |state: PhaseState| phases.iter().all(|(_, phase)| phase.state == state);
    let last = phases.last().map(|(_, phase)| phase.state);
    if last == Some(PhaseState::Done) {
        return StageState::Succeeded;
    }
    match job {
        JobState::Failed if !all(PhaseState::Blocked) => StageState::Failed,
        JobState::Cancelled => StageState::Cancelled,
        _ if last == Some(PhaseState::Serving) => StageState::Serving,
        _ if all(PhaseState::Blocked) => StageState::Waiting,
        _ => StageState::Running,
    }
}

fn add_metric(sum: &mut Metrics, name: &str, metric: &Metric) {
    match (sum.get_mut(name), metric) {
        (Some(Metric::Count(total)), Metric::Count(count)) => *total = total.saturating_add(*count),
        (Some(_), _) => {}
        (None, metric) => _ = sum.insert(name.to_owned(), metric.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_other_figures_are_the_first_tasks() {
        let mut sum = Metrics::new();
        for (pages, loss) in [(3, 0.5), (4, 0.25)] {
            add_metric(&mut sum, "pages", &Metric::Count(pages));
            add_metric(&mut sum, "loss", &Metric::Number(loss));
        }
        assert_eq!(sum["pages"], Metric::Count(7));
        assert_eq!(sum["loss"], Metric::Number(0.5));
    }
}
