//! What was asked here, told to the drift monitors of the cluster.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use sixfold_cluster::protocol::{ClusterView, Service};
use sixfold_cluster::task::Metric;
use sixfold_drift::{ABOUT_MODEL, ACTOR, DriftReply, DriftRequest, OBSERVED_ENTRIES_MAX, ROLE};
use sixfold_transport::identity::Expected;
use sixfold_transport::{ChannelOptions, Endpoint, RemoteRef};
use sixfold_wire::id::{Epoch, TaskId};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::gateway::Gateway;

/// Time between two reports.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a monitor may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

type Monitors = HashMap<(TaskId, Epoch), RemoteRef<DriftRequest>>;

/// Tells each monitor what was asked of its model, until aborted. Counts that cannot be delivered
/// are lost: a monitor watches a sample.
pub(super) async fn feed(endpoint: Endpoint, view: watch::Receiver<ClusterView>, gateway: Arc<Gateway>) {
    let mut monitors = Monitors::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = gateway.take_asked();
        if asked.is_empty() {
            continue;
        }
        let services: Vec<Service> =
            view.borrow().services.iter().filter(|service| service.role == ROLE).cloned().collect();
        monitors.retain(|key, _| services.iter().any(|service| (service.at.task, service.epoch) == *key));
        for service in &services {
            let Some(Metric::Text(model)) = service.about.get(ABOUT_MODEL) else { continue };
            let Some(counts) = asked.get(model) else { continue };
            for counts in counts.chunks(OBSERVED_ENTRIES_MAX) {
                let told = DriftRequest::Observe { model: model.clone(), counts: counts.to_vec() };
                if let Err(error) = tell(&endpoint, &mut monitors, service, told).await {
                    tracing::debug!("a drift monitor was not told: {error:#}");
                    monitors.remove(&(service.at.task, service.epoch));
                }
            }
        }
    }
}

async fn tell(
    endpoint: &Endpoint,
    monitors: &mut Monitors,
    service: &Service,
    message: DriftRequest,
) -> anyhow::Result<()> {
    let monitor = match monitors.entry((service.at.task, service.epoch)) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => {
            let expected = Expected::Host(service.at.node.to_string());
            let connection = endpoint.connect(service.at.address, expected).await?;
            new.insert(connection.actor(ACTOR, ChannelOptions::default()).await?)
        }
    };
    if let DriftReply::Refused(why) = monitor.call(message, DEADLINE).await? {
        anyhow::bail!(why);
    }
    Ok(())
}
