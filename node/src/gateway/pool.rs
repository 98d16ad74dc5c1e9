//! The replicas that are ready, by model, and how busy each is with this gateway's requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use sixfold_cluster::protocol::{ClusterView, Service};
use sixfold_cluster::task::{Metric, TaskAddress};
use sixfold_infer::engine::Load;
use sixfold_infer::message::{ABOUT_MODEL, ROLE};
use sixfold_infer::replica::ReplicaClient;
use sixfold_wire::id::{Epoch, TaskId};
use tokio::sync::watch;

/// How to reach a replica.
pub(crate) trait Dial: Send + Sync {
    /// A client of the replica at this address. Connecting is left to its first request.
    fn replica(&self, at: &TaskAddress) -> Arc<dyn ReplicaClient>;
}

/// An attempt of a replica's task: one that was placed anew is another.
pub(super) type ReplicaKey = (TaskId, Epoch);

/// See the module.
pub(super) struct Pool {
    view: watch::Receiver<ClusterView>,
    dial: Arc<dyn Dial>,
    table: Mutex<Table>,
}

/// How long a replica that failed comes last: the cluster takes a moment to notice a dead one.
const SUSPECTED: Duration = Duration::from_secs(2);
/// How long requests for a model still wait for it after its last replica has gone.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Models that are remembered.
const REMEMBERED_MAX: usize = 64;

#[derive(Default)]
struct Table {
    version: Option<u64>,
    seen: BTreeMap<String, Instant>,
    replicas: BTreeMap<ReplicaKey, Arc<Entry>>,
}

struct Entry {
    key: ReplicaKey,
    model: String,
    client: Arc<dyn ReplicaClient>,
    outstanding: AtomicUsize,
    failed_at: Mutex<Option<Instant>>,
}

impl Entry {
    /// What to prefer: replicas that did not fail just now, then those with the least to do.
    fn rank(&self) -> (bool, usize) {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let suspect = failed_at.is_some_and(|at| at.elapsed() < SUSPECTED);
        (suspect, self.outstanding.load(Ordering::Relaxed))
    }
}

/// A replica that a request has been given to; counted until dropped.
pub(super) struct Given {
    entry: Arc<Entry>,
}

impl Pool {
    pub(super) fn new(view: watch::Receiver<ClusterView>, dial: Arc<dyn Dial>) -> Self {
        Self { view, dial, table: Mutex::default() }
    }

    /// Names of the models that are served.
    pub(super) fn models(&self) -> BTreeSet<String> {
        self.view.borrow().services.iter().filter_map(served_model).map(str::to_owned).collect()
    }

    /// Whether `model` is served, or was a short time ago and may come back.
    pub(super) fn knows(&self, model: &str) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut table);
        let served = table.replicas.values().any(|entry| entry.model == model);
        served || table.seen.get(model).is_some_and(|seen| seen.elapsed() < REMEMBERED)
    }

    /// The replica of `model` with the fewest outstanding requests, none of `avoid`.
    pub(super) fn pick(&self, model: &str, avoid: &BTreeSet<ReplicaKey>) -> Option<Given> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut table);
        let fits = |entry: &&Arc<Entry>| entry.model == model && !avoid.contains(&entry.key);
        let entry = table.replicas.values().filter(fits).min_by_key(|entry| entry.rank())?;
        entry.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(Given { entry: Arc::clone(entry) })
    }

    /// How full each replica is, with the name of its model; those that do not say so are left out.
    pub(super) async fn loads(&self) -> Vec<(String, Load)> {
        let entries: Vec<Arc<Entry>> = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            self.refresh(&mut table);
            table.replicas.values().cloned().collect()
        };
        let asked = entries.iter().map(|entry| async {
            let load = entry.client.load().await.ok()?;
            Some((entry.model.clone(), load))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Follows the changes of the cluster.
    pub(super) fn changes(&self) -> watch::Receiver<ClusterView> {
        self.view.clone()
    }

    fn refresh(&self, table: &mut Table) {
        let view = self.view.borrow();
        if table.version == Some(view.version) {
            return;
        }
        table.version = Some(view.version);
        let mut known = std::mem::take(&mut table.replicas);
        let now = Instant::now();
        table.seen.retain(|_, seen| now - *seen < REMEMBERED);
        for entry in known.values() {
            if table.seen.len() < REMEMBERED_MAX {
                table.seen.insert(entry.model.clone(), now);
            }
        }
        for service in &view.services {
            let Some(model) = served_model(service) else { continue };
            let key = (service.at.task, service.epoch);
            let entry = known.remove(&key).unwrap_or_else(|| {
                let client = self.dial.replica(&service.at);
                Arc::new(Entry {
                    key,
                    model: model.to_owned(),
                    client,
                    outstanding: AtomicUsize::new(0),
                    failed_at: Mutex::new(None),
                })
            });
            table.replicas.insert(key, entry);
        }
    }
}

impl Given {
    pub(super) fn key(&self) -> ReplicaKey {
        self.entry.key
    }

    /// The replica did not keep its word.
    pub(super) fn suspect(&self) {
        *self.entry.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn client(&self) -> &dyn ReplicaClient {
        self.entry.client.as_ref()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.entry.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

fn served_model(service: &Service) -> Option<&str> {
    match service.about.get(ABOUT_MODEL) {
        Some(Metric::Text(model)) if service.role == ROLE => Some(model),
        _ => None,
    }
}
