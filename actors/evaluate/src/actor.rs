//! The evaluator as an actor: starts the work on a thread of its own and says how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::{TaskContext, TaskOutput};
use tokio::runtime::Builder;

use crate::error::EvaluateError;
use crate::message::EvaluateMessage;
use crate::{ROLE, task};

/// The actor of the `evaluate` role. Its argument is the task; it stops when the evaluation has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evaluator;

impl Actor for Evaluator {
    type Msg = EvaluateMessage;
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
        Ok(myself.cast(EvaluateMessage::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: EvaluateMessage,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EvaluateMessage::Begin => start_thread(context.clone(), myself)?,
            EvaluateMessage::Ended(result) => {
                context.finish(result.map_err(Into::into));
                myself.stop(None);
            }
            EvaluateMessage::Panicked(message) => return Err(EvaluateError::Thread(message).into()),
            EvaluateMessage::Cancel => context.cancel.cancel(),
        }
        Ok(())
    }

    /// An evaluation whose actor is stopped ends before its next window or token.
    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        context.cancel.cancel();
        Ok(())
    }
}

fn start_thread(context: TaskContext, actor: ActorRef<EvaluateMessage>) -> Result<(), EvaluateError> {
    let work = move || {
        let last = match catch_unwind(AssertUnwindSafe(|| run(&context))) {
            Ok(result) => EvaluateMessage::Ended(result),
            Err(panic) => EvaluateMessage::Panicked(panic_message(&*panic)),
        };
        // An actor that is gone was stopped, and nobody waits for this report.
        let _ = actor.cast(last);
    };
    let started = std::thread::Builder::new().name(ROLE.to_owned()).spawn(work);
    started.map(drop).map_err(|error| EvaluateError::Thread(error.to_string()))
}

/// The thread's runtime only waits for artefacts to be fetched and published.
fn run(context: &TaskContext) -> Result<TaskOutput, EvaluateError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| EvaluateError::Thread(error.to_string()))?;
    runtime.block_on(task::run(context))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
