//! The roles `import`, `clean`, `clean-reduce` and `tokenize`, as work on a thread of its own.
//!
//! They share one type, since all of them read artefacts, work on all cores and publish artefacts;
//! what they do in between is a function in [`crate::stage`].

use sixfold_cluster::task::{TaskContext, TaskResult};
use sixfold_cluster::work;
use tokio::runtime::Handle;

use crate::stage::{self, Work};

impl work::Work for Work {
    fn name(&self) -> &str {
        self.role()
    }

    fn run(&self, context: &TaskContext, runtime: &Handle) -> TaskResult {
        Ok(runtime.block_on(stage::run(*self, context))?)
    }
}
