//! Roles whose task is one function: it runs on a thread of its own, and an actor watches over it.
//!
//! Computing, parsing and file access must not hold up the threads that run actors, so that is how
//! most roles look from inside. A panic of the thread becomes the actor's failure, with its message,
//! and a stopped actor asks the thread to stop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Handle;

use crate::task::{TaskContext, TaskResult};

/// The function. It looks at [`TaskContext::cancel`] from time to time, and blocks as it likes.
pub trait Work: Send + Sync + 'static {
    /// Name of the thread, for people who look at the process.
    fn name(&self) -> &str;

    /// Does the task. What it has to wait for, it waits for on `runtime`.
    ///
    /// # Errors
    /// What the supervisor shall do about it, in words for the person who submitted the job.
    fn run(&self, context: &TaskContext, runtime: &Handle) -> TaskResult;
}

/// The actor of a role that is [`Work`]. Its argument is the task; it stops when the work has ended.
pub struct Threaded<W>(Arc<W>);

impl<W: Work> Threaded<W> {
    /// An actor that does `work`.
    pub fn new(work: W) -> Self {
        Self(Arc::new(work))
    }
}

/// How the work ended. Sent once, by its thread.
#[derive(Debug)]
pub enum WorkEnded {
    /// With a result.
    Returned(TaskResult),
    /// With a panic of this message.
    Panicked(String),
}

impl<W: Work> Actor for Threaded<W> {
    type Msg = WorkEnded;
    type State = TaskContext;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<WorkEnded>,
        context: TaskContext,
    ) -> Result<TaskContext, ActorProcessingErr> {
        Ok(context)
    }

    async fn post_start(
        &self,
        myself: ActorRef<WorkEnded>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        let (work, context, runtime) = (Arc::clone(&self.0), context.clone(), Handle::current());
        let run = move || {
            let ended = match catch_unwind(AssertUnwindSafe(|| work.run(&context, &runtime))) {
                Ok(result) => WorkEnded::Returned(result),
                Err(panic) => WorkEnded::Panicked(panic_message(&*panic)),
            };
            // An actor that is gone was stopped, and nobody waits for this work.
            let _ = myself.cast(ended);
        };
        std::thread::Builder::new().name(self.0.name().to_owned()).spawn(run)?;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkEnded>,
        ended: WorkEnded,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        match ended {
            WorkEnded::Returned(result) => {
                context.finish(result);
                myself.stop(None);
                Ok(())
            }
            WorkEnded::Panicked(message) => Err(message.into()),
        }
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<WorkEnded>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        context.cancel.cancel();
        Ok(())
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
