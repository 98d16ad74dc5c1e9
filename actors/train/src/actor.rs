//! The role `train`: one rank of a training job, as work on a thread of its own.

use std::sync::Arc;

use sixfold_cluster::task::{TaskContext, TaskResult};
use sixfold_cluster::work::Work;
use tokio::runtime::Handle;

use crate::error::TrainError;
use crate::host::BlockingHost;
use crate::links::LinkFactory;
use crate::network::{NetworkLinks, NoLinks};
use crate::shard;

/// The work of the `train` role. The task's index is the rank.
///
/// The default gets its links from the task's network; without one it can only be the single rank
/// of a serial plan.
#[derive(Default)]
pub struct TrainerShard {
    links: Option<Arc<dyn LinkFactory>>,
}

impl TrainerShard {
    /// A rank that gets its links from `links`.
    pub fn with_links(links: Arc<dyn LinkFactory>) -> Self {
        Self { links: Some(links) }
    }

    fn links(&self, context: &TaskContext) -> Result<Arc<dyn LinkFactory>, TrainError> {
        Ok(match (&self.links, &context.network) {
            (Some(links), _) => links.clone(),
            (None, Some(network)) => Arc::new(NetworkLinks::bind(network, context.spec.id.job)?),
            (None, None) => Arc::new(NoLinks),
        })
    }
}

impl Work for TrainerShard {
    fn name(&self) -> &'static str {
        "trainer"
    }

    fn run(&self, context: &TaskContext, runtime: &Handle) -> TaskResult {
        let _inside = runtime.enter();
        let links = self.links(context)?;
        let host = BlockingHost::new(context.clone(), runtime.clone());
        Ok(shard::run(&host, links.as_ref())?)
    }
}
