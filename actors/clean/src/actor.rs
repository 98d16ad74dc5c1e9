//! The actor that does one task of this crate: starts the work on a thread of its own and says how
//! it ended.
//!
//! Four roles share it, since all of them read artefacts, work on all cores and publish artefacts;
//! what they do in between is a function in [`crate::stage`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::{TaskContext, TaskOutput};
use tokio::runtime::Builder;

use crate::error::CleanError;
use crate::message::WorkMessage;
use crate::stage::{self, Work};

/// The actor of the roles `import`, `clean`, `clean-reduce` and `tokenize`. Its argument is the task; it
/// stops when the work has ended.
pub struct TextWorker(pub Work);

impl Actor for TextWorker {
    type Msg = WorkMessage;
    type State = TaskContext;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: TaskContext,
    ) -> Result<TaskContext, ActorProcessingErr> {
        Ok(context)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        _context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(WorkMessage::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: WorkMessage,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkMessage::Begin => start_thread(self.0, context.clone(), myself)?,
            WorkMessage::Ended(result) => {
                context.finish(result.map_err(Into::into));
                myself.stop(None);
            }
            WorkMessage::Panicked(message) => return Err(CleanError::Thread(message).into()),
            WorkMessage::Cancel => context.cancel.cancel(),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        context.cancel.cancel();
        Ok(())
    }
}

fn start_thread(work: Work, context: TaskContext, actor: ActorRef<WorkMessage>) -> Result<(), CleanError> {
    let run = move || {
        let last = match catch_unwind(AssertUnwindSafe(|| run(work, &context))) {
            Ok(result) => WorkMessage::Ended(result),
            Err(panic) => WorkMessage::Panicked(panic_message(&*panic)),
        };
        // An actor that is gone was stopped, and nobody waits for this work.
        let _ = actor.cast(last);
    };
    let started = std::thread::Builder::new().name(work.role().to_owned()).spawn(run);
    started.map(drop).map_err(|error| CleanError::Thread(error.to_string()))
}

/// The thread's runtime only waits for artefacts to be fetched and published.
fn run(work: Work, context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CleanError::Thread(error.to_string()))?;
    runtime.block_on(stage::run(work, context))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
