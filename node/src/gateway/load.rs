//! How full the cluster's replicas are, asked where somebody looks at the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sixfold_infer::engine::Load;
use tokio::sync::Mutex;

use super::measure::vllm;
use super::pool::Pool;

/// Replicas are asked no more often than this, however often somebody looks.
const FRESH: Duration = Duration::from_secs(1);

/// The last answers of the replicas, summed up by model.
#[derive(Default)]
pub(super) struct Loads {
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    asked: Option<Instant>,
    by_model: BTreeMap<String, Load>,
}

impl Loads {
    /// Asks all replicas and sets the metrics. One that does not answer counts as if it were not
    /// there, and a model that has gone as idle.
    pub(super) async fn refresh(&self, pool: &Pool) {
        let mut last = self.last.lock().await;
        if last.asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return;
        }
        let mut by_model: BTreeMap<String, Load> = pool.models().into_iter().map(idle).collect();
        by_model.extend(std::mem::take(&mut last.by_model).into_keys().map(idle));
        for (model, load) in pool.loads().await {
            by_model.entry(model).and_modify(|sum| *sum = added(*sum, load)).or_insert(load);
        }
        vllm::loads(&by_model);
        *last = Last { asked: Some(Instant::now()), by_model };
    }
}

fn idle(model: String) -> (String, Load) {
    (model, Load::default())
}

/// Two replicas as if they were one.
pub(super) fn added(one: Load, other: Load) -> Load {
    Load {
        running: one.running.saturating_add(other.running),
        waiting: one.waiting.saturating_add(other.waiting),
        blocks_used: one.blocks_used.saturating_add(other.blocks_used),
        blocks: one.blocks.saturating_add(other.blocks),
        preempted: one.preempted.saturating_add(other.preempted),
    }
}
