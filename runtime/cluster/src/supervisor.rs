//! The supervisor of a process's role actors.
//!
//! It starts an actor a task, waits for the task's result, and turns every other end (a panic, an
//! error in a handler, a stop without a result) into a [`TaskError`]. It never restarts by itself:
//! whether, where and when a task is tried again is the coordinator's decision, under its budget.

use std::collections::HashMap;
use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use sixfold_wire::id::{Epoch, TaskId};

use crate::role::Role;
use crate::task::{ErrorClass, TaskContext, TaskError, TaskResult};

/// Told how each task ended, exactly once.
pub(crate) trait EndSink: Send + Sync + 'static {
    /// A task's attempt ended.
    fn ended(&self, task: TaskId, epoch: Epoch, result: TaskResult);
}

/// What the supervisor is asked to do.
pub(crate) enum SupervisorMessage {
    /// Start a role's actor for a task.
    Start(Role, Box<TaskContext>, tokio::sync::oneshot::Receiver<TaskResult>),
    /// Ask a task's actor to stop; one that does not within the grace period is killed.
    Stop(TaskId, Epoch),
    /// The grace period of a stopped task is over.
    Kill(TaskId, Epoch),
    /// A task's actor said how it ended.
    Said(ActorId, TaskResult),
}

/// How long a stopped task may take to save its state.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

/// The supervising actor; see the module.
pub(crate) struct Supervisor;

struct Child {
    context: TaskContext,
    cell: ActorCell,
    said: Option<TaskResult>,
    /// The actor is gone; what it said last is still on its way.
    gone: bool,
}

/// The supervisor's children.
pub(crate) struct SupervisorState {
    sink: Arc<dyn EndSink>,
    children: HashMap<ActorId, Child>,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = Arc<dyn EndSink>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        sink: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(SupervisorState { sink, children: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Start(role, context, result) => {
                state.start(&myself, role, *context, result).await
            }
            SupervisorMessage::Stop(task, epoch) => {
                for child in state.attempts(task, epoch) {
                    child.context.cancel.cancel();
                }
                myself.send_after(STOP_GRACE, move || SupervisorMessage::Kill(task, epoch));
            }
            SupervisorMessage::Kill(task, epoch) => {
                state.attempts(task, epoch).for_each(|child| child.cell.kill())
            }
            SupervisorMessage::Said(actor, result) => {
                state.said(actor, result);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                state.end(cell.get_id(), &format!("crashed: {error}"));
            }
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
                state.end(cell.get_id(), &format!("stopped without a result: {reason}"));
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn start(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        role: Role,
        context: TaskContext,
        result: tokio::sync::oneshot::Receiver<TaskResult>,
    ) {
        let (task, epoch) = (context.spec.id, context.epoch);
        match role.spawn(context.clone(), myself.get_cell()).await {
            Ok(cell) => {
                let (actor, myself) = (cell.get_id(), myself.clone());
                self.children.insert(actor, Child { context, cell, said: None, gone: false });
                tokio::spawn(async move {
                    if let Ok(result) = result.await {
                        // A supervisor that is gone has told its sink of every end.
                        let _ = myself.cast(SupervisorMessage::Said(actor, result));
                    }
                });
            }
            Err(error) => {
                let message = format!("role `{}` could not start: {error}", context.spec.role);
                self.sink.ended(task, epoch, Err(TaskError { class: ErrorClass::Restart, message }));
            }
        }
    }

    /// The task's attempts up to `epoch`.
    fn attempts(&self, task: TaskId, epoch: Epoch) -> impl Iterator<Item = &Child> {
        let wanted = move |context: &TaskContext| context.spec.id == task && context.epoch <= epoch;
        self.children.values().filter(move |child| wanted(&child.context))
    }

    fn said(&mut self, actor: ActorId, result: TaskResult) {
        let Some(child) = self.children.get_mut(&actor) else { return };
        child.said = Some(result);
        if child.gone {
            self.end(actor, "");
        } else {
            child.cell.stop(None);
        }
    }

    /// An actor is gone. What it said last may arrive after that.
    fn end(&mut self, actor: ActorId, otherwise: &str) {
        let Some(child) = self.children.get_mut(&actor) else { return };
        if child.said.is_none() && child.context.has_finished() {
            child.gone = true;
            return;
        }
        let Some(child) = self.children.remove(&actor) else { return };
        let spec = &child.context.spec;
        let result = child.said.unwrap_or_else(|| {
            let message = format!("role `{}` {otherwise}", spec.role);
            Err(TaskError { class: ErrorClass::Restart, message })
        });
        self.sink.ended(spec.id, child.context.epoch, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::{Hosted, Roles};
    use crate::task::{LocalHost, TaskOutput, TaskSpec};
    use sixfold_artifact::Store;
    use sixfold_wire::id::JobId;
    use tokio::sync::mpsc;

    struct Ends(mpsc::UnboundedSender<(TaskId, TaskResult)>);

    impl EndSink for Ends {
        fn ended(&self, task: TaskId, _epoch: Epoch, result: TaskResult) {
            self.0.send((task, result)).unwrap();
        }
    }

    /// Does what its stage's name says.
    struct Scripted;

    impl Actor for Scripted {
        type Msg = ();
        type State = TaskContext;
        type Arguments = TaskContext;

        async fn pre_start(
            &self,
            myself: ActorRef<()>,
            context: TaskContext,
        ) -> Result<TaskContext, ActorProcessingErr> {
            if context.spec.stage == "refuse" {
                return Err("no such device".into());
            }
            myself.cast(())?;
            Ok(context)
        }

        async fn handle(
            &self,
            myself: ActorRef<()>,
            (): (),
            context: &mut TaskContext,
        ) -> Result<(), ActorProcessingErr> {
            match context.spec.stage.as_str() {
                "panic" => panic!("index out of bounds"),
                "silent" => myself.stop(None),
                "wait" => {
                    let context = context.clone();
                    tokio::spawn(async move {
                        context.cancel.cancelled().await;
                        context.finish(Err(TaskError::fatal("cancelled")));
                    });
                }
                "work and stop" => {
                    context.finish(Ok(TaskOutput::default()));
                    myself.stop(None);
                }
                _ => context.finish(Ok(TaskOutput::default())),
            }
            Ok(())
        }
    }

    async fn run(stage: &str, stop: bool) -> TaskResult {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let id = TaskId { job: JobId(1), phase: 0, index: 0 };
        let spec = TaskSpec {
            id,
            role: "scripted".into(),
            stage: stage.into(),
            count: 1,
            options_json: "{}".into(),
            inputs: vec![],
            resume: vec![],
        };
        let host = Arc::new(LocalHost::new(store.clone()));
        let (context, result) =
            TaskContext::new(spec, Epoch(1), "n".into(), store, folder.path().to_owned(), host);
        let (sender, mut ends) = mpsc::unbounded_channel();
        let sink: Arc<dyn EndSink> = Arc::new(Ends(sender));
        let (supervisor, task) = Actor::spawn(None, Supervisor, sink).await.unwrap();
        let roles = Roles::default().with("scripted", Hosted::Daemon, || Scripted);
        let role = roles.get("scripted").unwrap().clone();
        supervisor.cast(SupervisorMessage::Start(role, Box::new(context), result)).unwrap();
        if stop {
            supervisor.cast(SupervisorMessage::Stop(id, Epoch(1))).unwrap();
        }
        let (ended, result) = ends.recv().await.unwrap();
        assert_eq!(ended, id);
        supervisor.stop(None);
        task.await.unwrap();
        assert!(ends.recv().await.is_none(), "a task ends once");
        result
    }

    #[tokio::test]
    async fn reports_a_result() {
        assert_eq!(run("work", false).await, Ok(TaskOutput::default()));
    }

    #[tokio::test]
    async fn hears_the_result_of_an_actor_that_stopped_at_once() {
        for _ in 0..100 {
            assert_eq!(run("work and stop", false).await, Ok(TaskOutput::default()));
        }
    }

    #[tokio::test]
    async fn turns_a_panic_into_a_restart_with_its_message() {
        let error = run("panic", false).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Restart);
        assert!(error.message.contains("index out of bounds"), "{error}");
    }

    #[tokio::test]
    async fn turns_a_silent_stop_into_a_restart() {
        let error = run("silent", false).await.unwrap_err();
        assert!(error.message.contains("without a result"), "{error}");
    }

    #[tokio::test]
    async fn reports_an_actor_that_cannot_start() {
        assert!(run("refuse", false).await.unwrap_err().message.contains("no such device"));
    }

    #[tokio::test]
    async fn stops_a_task_that_listens() {
        assert_eq!(run("wait", true).await, Err(TaskError::fatal("cancelled")));
    }
}
