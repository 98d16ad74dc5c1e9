//! The role `evaluate`, as work on a thread of its own.

use sixfold_cluster::task::{TaskContext, TaskResult};
use sixfold_cluster::work::Work;
use tokio::runtime::Handle;

use crate::{ROLE, task};

/// The work of the `evaluate` role.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evaluator;

impl Work for Evaluator {
    fn name(&self) -> &'static str {
        ROLE
    }

    fn run(&self, context: &TaskContext, runtime: &Handle) -> TaskResult {
        Ok(runtime.block_on(task::run(context))?)
    }
}
