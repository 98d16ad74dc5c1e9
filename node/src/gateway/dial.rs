//! The way to replicas over the cluster's transport.

use std::sync::Arc;

use sixfold_cluster::task::TaskAddress;
use sixfold_infer::remote::RemoteReplica;
use sixfold_infer::replica::ReplicaClient;
use sixfold_transport::Endpoint;

use super::pool::Dial;

/// Dials the worker processes that serve, as the node that owns `endpoint`.
pub(crate) struct QuicDial {
    /// The endpoint of the gateway's daemon.
    pub(crate) endpoint: Endpoint,
}

impl Dial for QuicDial {
    fn replica(&self, at: &TaskAddress) -> Arc<dyn ReplicaClient> {
        Arc::new(RemoteReplica::new(self.endpoint.clone(), at.node.as_str(), at.address))
    }
}
