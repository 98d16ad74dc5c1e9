//! The roles that a binary can host: a closed table from a role's name to the actor that does it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ractor::{Actor, ActorCell, SpawnErr};

use crate::task::TaskContext;

/// Where a role's actor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosted {
    /// In the daemon: light, mostly waiting for other machines.
    Daemon,
    /// In a process of its own: a crash, an out-of-memory kill or a device error costs that process.
    Worker,
}

type Spawn = dyn Fn(TaskContext, ActorCell) -> SpawnFuture + Send + Sync;
type SpawnFuture = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// One role.
#[derive(Clone)]
pub struct Role {
    /// Where its actor lives.
    pub hosted: Hosted,
    spawn: Arc<Spawn>,
}

impl Role {
    /// Starts the role's actor for one task, linked to its supervisor.
    ///
    /// # Errors
    /// What the actor's `pre_start` said.
    pub async fn spawn(&self, context: TaskContext, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
        (self.spawn)(context, supervisor).await
    }
}

/// All roles of a binary, by name.
#[derive(Clone, Default)]
pub struct Roles {
    roles: BTreeMap<&'static str, Role>,
}

impl Roles {
    /// Adds a role; `make` builds the actor's (empty) handler.
    #[must_use]
    pub fn with<A>(mut self, name: &'static str, hosted: Hosted, make: fn() -> A) -> Self
    where
        A: Actor<Arguments = TaskContext>,
    {
        let spawn: Arc<Spawn> = Arc::new(move |context, supervisor| {
            Box::pin(async move {
                let (actor, _task) = A::spawn_linked(None, make(), context, supervisor).await?;
                Ok(actor.get_cell())
            })
        });
        self.roles.insert(name, Role { hosted, spawn });
        self
    }

    /// The role of that name.
    pub fn get(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.roles.keys().copied()
    }
}
