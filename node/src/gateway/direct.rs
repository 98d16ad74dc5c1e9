//! Questions that come over the cluster's transport instead of HTTP: the same way to a replica.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sixfold_infer::engine::Load;
use sixfold_infer::message::{GenerateRequest, ReplicaError};
use sixfold_infer::replica::{EventStream, ReplicaClient};

use super::Shared;
use super::load::added;
use super::session::Session;

/// All replicas of the cluster as if they were one that never dies.
pub(crate) struct Direct {
    pub(super) shared: Arc<Shared>,
}

impl Direct {
    /// The model that was named, or the only one that is served.
    fn model(&self, named: String) -> Result<String, ReplicaError> {
        let served: BTreeSet<String> = self.shared.pool.models();
        if self.shared.pool.knows(&named) {
            return Ok(named);
        }
        let list = || served.iter().map(|model| format!("`{model}`")).collect::<Vec<_>>().join(", ");
        match (named.is_empty(), served.len()) {
            (_, 0) => Err(ReplicaError::invalid("model", "no model is served")),
            (true, 1) => Ok(list().trim_matches('`').to_owned()),
            (true, _) => {
                Err(ReplicaError::invalid("model", format_args!("name one of the models {}", list())))
            }
            (false, _) => Err(ReplicaError::invalid(
                "model",
                format_args!("no model is called `{named}`; served: {}", list()),
            )),
        }
    }
}

#[async_trait]
impl ReplicaClient for Direct {
    async fn generate(&self, mut request: GenerateRequest) -> Result<EventStream, ReplicaError> {
        request.model = self.model(request.model)?;
        Ok(Session::new(&self.shared, request).into_events())
    }

    async fn load(&self) -> Result<Load, ReplicaError> {
        let loads = self.shared.pool.loads().await;
        Ok(loads.into_iter().map(|(_, load)| load).fold(Load::default(), added))
    }
}
