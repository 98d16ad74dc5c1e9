//! A job as one JSON object, for programs that read the output of the command line.

use serde_json::{Map, Value, json};
use sixfold_cluster::task::{ACCOUNT_FIGURE, Metric, Metrics};
use sixfold_topology::ParallelPlan;

use super::{JobView, PlanChange, Recovery, StageView, TrainingView};

/// A metric as a JSON value.
pub fn metric_json(metric: &Metric) -> Value {
    match metric {
        Metric::Count(count) => json!(count),
        // Not every number has a place in JSON; what has none is told by its name.
        Metric::Number(number) if !number.is_finite() => json!(number.to_string()),
        Metric::Number(number) => json!(number),
        Metric::Text(text) => json!(text),
    }
}

fn metrics_json(metrics: &Metrics) -> Map<String, Value> {
    metrics.iter().map(|(name, metric)| (name.clone(), metric_json(metric))).collect()
}

impl StageView {
    fn to_json(&self) -> Value {
        let mut metrics = metrics_json(&self.metrics);
        // A rank's own account stands with the ranks.
        metrics.remove(ACCOUNT_FIGURE);
        json!({
            "name": self.name,
            "kind": self.kind,
            "state": self.state.to_string(),
            "seconds": self.seconds,
            "metrics": metrics,
            "tasks_done": self.tasks_done,
            "tasks_total": self.tasks_total,
            "outputs": self.outputs,
        })
    }
}

impl Recovery {
    fn to_json(&self) -> Value {
        json!({
            "task": self.task.to_string(),
            "stage": self.stage,
            "node": self.node,
            "cause": self.cause,
            "at_ms": self.detected_ms,
            "detect_ms": self.detected_ms.saturating_sub(self.last_sign_ms),
            "place_ms": self.placed_ms.map(|at| at.saturating_sub(self.detected_ms)),
            "resume_ms": self.resumed_ms.map(|at| at.saturating_sub(self.detected_ms)),
            "step": self.step,
            "redone_steps": self.redone,
        })
    }
}

impl PlanChange {
    /// The change as one object.
    pub fn to_json(&self) -> Value {
        json!({
            "number": self.number,
            "stage": self.stage,
            "from": self.from.to_string(),
            "to": self.to.to_string(),
            "by_itself": self.by_itself,
            "why": self.why,
            "at_ms": self.at_ms,
            "place_ms": self.placed_ms.map(|at| at.saturating_sub(self.at_ms)),
            "resume_ms": self.resumed_ms.map(|at| at.saturating_sub(self.at_ms)),
            "step": self.step,
            "redone_steps": self.redone,
        })
    }
}

/// Figures of a training that stand at the top of the object.
const TRAINING_FIGURES: [&str; 5] =
    ["weights_blake3", "loss_bits_blake3", "loss_first", "loss_last", "steps"];

impl TrainingView {
    fn add_to(&self, object: &mut Map<String, Value>) {
        for name in TRAINING_FIGURES {
            if let Some(metric) = self.metrics.get(name) {
                object.insert(name.to_owned(), metric_json(metric));
            }
        }
        object.insert("plan".to_owned(), plan_json(&self.plan));
        object.insert("wanted_plan".to_owned(), plan_json(&self.wanted_plan));
        let ranks = self.ranks.iter().map(|rank| {
            let mut fields = account(&rank.metrics);
            fields.insert("rank".to_owned(), json!(rank.rank));
            fields.insert("node".to_owned(), json!(rank.node));
            Value::Object(fields)
        });
        object.insert("ranks".to_owned(), ranks.collect());
    }
}

/// What a rank accounts for, or its figures until it does.
fn account(metrics: &Metrics) -> Map<String, Value> {
    let told = match metrics.get(ACCOUNT_FIGURE) {
        Some(Metric::Text(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    told.unwrap_or_else(|| metrics_json(metrics))
}

fn plan_json(plan: &ParallelPlan) -> Value {
    json!({
        "data_parallel": plan.data_parallel,
        "tensor_parallel": plan.tensor_parallel,
        "pipeline_parallel": plan.pipeline_parallel,
    })
}

impl JobView {
    /// The job as one object: `job, state, seconds, stages, recoveries, plan_changes`, and for a job that trained
    /// `weights_blake3, loss_bits_blake3, loss_first, loss_last, steps, plan, wanted_plan, ranks`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("job".to_owned(), json!(self.job.0));
        object.insert("name".to_owned(), json!(self.name));
        object.insert("state".to_owned(), json!(self.state.to_string()));
        object.insert("message".to_owned(), json!(self.message));
        object.insert("seconds".to_owned(), json!(self.seconds));
        object.insert("stages".to_owned(), self.stages.iter().map(StageView::to_json).collect());
        object.insert("recoveries".to_owned(), self.recoveries.iter().map(Recovery::to_json).collect());
        object.insert("plan_changes".to_owned(), self.plan_changes.iter().map(PlanChange::to_json).collect());
        if let Some(training) = &self.training {
            training.add_to(&mut object);
        }
        Value::Object(object)
    }
}
