//! A daemon's session with the coordinator: one connection, a lease on it, heartbeats, and reports
//! that wait for the next lease when a connection is lost.
//!
//! The session never gives up: a coordinator that is away costs new decisions, not work.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sixfold_transport::identity::Role;
use sixfold_transport::{ChannelOptions, Connection, Endpoint, RemoteRef};
use sixfold_wire::id::{Epoch, Fence, LeaseId, NodeName, Sequence};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::host::Reports;
use crate::protocol::{ClusterView, Fenced, Hello, NodeReply, NodeReport, REPORTS_ACTOR};
use crate::task::HostError;

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// How long a report may stay unanswered before the connection counts as lost.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before the coordinator is dialled again.
const REDIAL_PAUSE: Duration = Duration::from_millis(100);

/// A lease, and the channel that it holds on.
struct Lease {
    reports: RemoteRef<Fenced<NodeReport>>,
    urgent: RemoteRef<Fenced<NodeReport>>,
    epoch: Epoch,
    lease: LeaseId,
    sent: AtomicU64,
}

/// The session; see the module.
pub(crate) struct Session {
    endpoint: Endpoint,
    coordinator: SocketAddr,
    introduce: Box<dyn Fn() -> Hello + Send + Sync>,
    lease: watch::Sender<Option<Arc<Lease>>>,
    view: watch::Sender<ClusterView>,
    /// The coordinator does not know the lease any more.
    stale: Notify,
    /// The newest epoch that was seen, here or on a command.
    epoch: Mutex<Epoch>,
}

impl Session {
    /// A session that is not connected yet; [`Session::run`] keeps it up. `introduce` is asked what
    /// the node has and runs each time that a lease is asked for.
    pub(crate) fn new(
        endpoint: Endpoint,
        coordinator: SocketAddr,
        introduce: impl Fn() -> Hello + Send + Sync + 'static,
    ) -> Self {
        Self {
            endpoint,
            coordinator,
            introduce: Box::new(introduce),
            lease: watch::Sender::new(None),
            view: watch::Sender::new(ClusterView::default()),
            stale: Notify::new(),
            epoch: Mutex::new(Epoch(0)),
        }
    }

    /// Connects, asks for a lease, renews it, and begins again when it is lost; until `end`.
    pub(crate) async fn run(&self, end: CancellationToken) {
        while !end.is_cancelled() {
            tokio::select! {
                () = end.cancelled() => {}
                () = self.hold_lease() => {
                    self.lease.send_replace(None);
                    tokio::time::sleep(REDIAL_PAUSE).await;
                }
            }
        }
        self.lease.send_replace(None);
    }

    /// Waits until the session holds a lease.
    pub(crate) async fn joined(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.lease.subscribe().wait_for(Option::is_some).await;
    }

    /// Takes note of an epoch; false if a newer one was seen, whose bearer is then the coordinator.
    pub(crate) fn admit(&self, epoch: Epoch) -> bool {
        let mut newest = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = epoch.max(*newest);
        *newest == epoch
    }

    /// The coordinator described the cluster anew; returns whether that is newer than what was known.
    pub(crate) fn set_view(&self, view: ClusterView) -> bool {
        self.view.send_if_modified(|current| {
            let newer = view.version >= current.version;
            if newer {
                *current = view;
            }
            newer
        })
    }

    /// The live connection to the coordinator, if there is one.
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.endpoint.connections().into_iter().find(|one| one.peer().role() == Role::Coordinator)
    }

    async fn hold_lease(&self) {
        let lease = match self.ask_for_lease().await {
            Ok(lease) => Arc::new(lease),
            Err(error) => {
                tracing::debug!(%error, "no lease");
                return;
            }
        };
        tracing::info!(epoch = %lease.epoch, lease = %lease.lease, "joined the cluster");
        self.lease.send_replace(Some(Arc::clone(&lease)));
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.stale.notified() => return,
                _ = lease.urgent.closed() => return,
            }
            let heartbeat = self.fenced(&lease, NodeReport::Heartbeat);
            match lease.urgent.call(heartbeat, REPORT_DEADLINE).await {
                Ok(NodeReply::Stale) => {
                    tracing::warn!("the lease has ended; asking for a new one");
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the coordinator does not answer");
                    return;
                }
            }
        }
    }

    async fn ask_for_lease(&self) -> Result<Lease, HostError> {
        fn away(error: impl std::fmt::Display) -> HostError {
            HostError::Unreachable(error.to_string())
        }
        let connection = match self.connection().filter(|one| one.close_reason().is_none()) {
            Some(connection) => connection,
            None => self.endpoint.connect(self.coordinator, Role::Coordinator).await.map_err(away)?,
        };
        let urgent = connection.actor(REPORTS_ACTOR, ChannelOptions::URGENT).await.map_err(away)?;
        let reports = connection.actor(REPORTS_ACTOR, ChannelOptions::default()).await.map_err(away)?;
        let hello = NodeReport::Hello((self.introduce)());
        let fence = self.fence(Epoch(0), LeaseId(0), Sequence(0));
        let hello = Fenced { fence, body: hello };
        match urgent.call(hello, REPORT_DEADLINE).await.map_err(away)? {
            NodeReply::Welcome { epoch, lease, .. } => {
                self.admit(epoch);
                Ok(Lease { reports, urgent, epoch, lease, sent: AtomicU64::new(0) })
            }
            NodeReply::Refused(why) => {
                tracing::error!("the coordinator refuses this node: {why}");
                Err(HostError::Unreachable(why))
            }
            other => Err(HostError::Unreachable(format!("unexpected answer {other:?}"))),
        }
    }

    fn fenced(&self, lease: &Lease, body: NodeReport) -> Fenced<NodeReport> {
        let sequence = Sequence(lease.sent.fetch_add(1, Ordering::Relaxed) + 1);
        Fenced { fence: self.fence(lease.epoch, lease.lease, sequence), body }
    }

    fn fence(&self, epoch: Epoch, lease: LeaseId, sequence: Sequence) -> Fence {
        Fence { cluster: self.endpoint.identity().cluster().clone(), epoch, lease, sequence }
    }

    /// This node's name, as in its certificate.
    pub(crate) fn node(&self) -> NodeName {
        NodeName(self.endpoint.identity().peer().name().to_owned())
    }
}

#[async_trait]
impl Reports for Session {
    async fn report(&self, report: NodeReport) -> Result<NodeReply, HostError> {
        let mut leases = self.lease.subscribe();
        loop {
            let lease = match leases.wait_for(Option::is_some).await.map(|lease| lease.clone()) {
                Ok(Some(lease)) => lease,
                _ => return Err(HostError::Superseded),
            };
            let message = self.fenced(&lease, report.clone());
            match lease.reports.call(message, REPORT_DEADLINE).await {
                Ok(NodeReply::Stale) => self.stale.notify_one(),
                Ok(reply) => return Ok(reply),
                Err(error) => tracing::debug!(%error, "a report was not answered; it is sent again"),
            }
            // The lease that failed must be gone before the next try.
            let replaced =
                |now: &Option<Arc<Lease>>| !now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &lease));
            let waited = tokio::time::timeout(REPORT_DEADLINE, leases.wait_for(replaced)).await;
            if waited.is_err() {
                tracing::debug!("the lease holds although a report failed; trying again");
            }
        }
    }

    fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.subscribe()
    }
}
