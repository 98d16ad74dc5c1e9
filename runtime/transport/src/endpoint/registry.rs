//! What peers may use on an endpoint: actors and kinds of byte streams, by name.

use std::sync::Arc;

use dashmap::DashMap;
use sixfold_wire::stream::Refusal;
use tokio::sync::watch;

use crate::byte_stream::IncomingStream;
use crate::channel::AnyActor;
use crate::identity::{Peer, Roles};

/// The tables.
#[derive(Default)]
pub(super) struct Registry {
    actors: DashMap<String, Arc<dyn AnyActor>>,
    streams: DashMap<String, Arc<StreamEntry>>,
}

/// A kind of byte stream.
pub(super) struct StreamEntry {
    pub(super) roles: Roles,
    pub(super) handler: Box<dyn Fn(IncomingStream) + Send + Sync>,
}

/// Keeps a name registered; dropping it takes the name away and ends an actor's channels.
#[must_use = "the registration ends when this is dropped"]
pub struct Registration {
    registry: Arc<Registry>,
    entry: Entry,
    reason: String,
}

enum Entry {
    Actor { name: String, actor: Arc<dyn AnyActor>, stopped: watch::Sender<Option<String>> },
    Streams { kind: String, entry: Arc<StreamEntry> },
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.entry {
            Entry::Actor { name, .. } => write!(f, "Registration(actor `{name}`)"),
            Entry::Streams { kind, .. } => write!(f, "Registration(streams `{kind}`)"),
        }
    }
}

impl Registration {
    /// Ends the registration; peers with a channel to the actor learn `reason`.
    pub fn stop(mut self, reason: &str) {
        reason.clone_into(&mut self.reason);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        match &self.entry {
            Entry::Actor { name, actor, stopped } => {
                self.registry.actors.remove_if(name, |_, current| Arc::ptr_eq(current, actor));
                stopped.send_replace(Some(std::mem::take(&mut self.reason)));
            }
            Entry::Streams { kind, entry } => {
                self.registry.streams.remove_if(kind, |_, current| Arc::ptr_eq(current, entry));
            }
        }
    }
}

impl Registry {
    pub(super) fn add_actor(
        registry: &Arc<Self>,
        name: &str,
        actor: Arc<dyn AnyActor>,
        stopped: watch::Sender<Option<String>>,
    ) -> Registration {
        registry.actors.insert(name.to_owned(), actor.clone());
        let entry = Entry::Actor { name: name.to_owned(), actor, stopped };
        Registration { registry: registry.clone(), entry, reason: "it was taken away".into() }
    }

    pub(super) fn add_streams(registry: &Arc<Self>, kind: &str, entry: StreamEntry) -> Registration {
        let entry = Arc::new(entry);
        registry.streams.insert(kind.to_owned(), entry.clone());
        let entry = Entry::Streams { kind: kind.to_owned(), entry };
        Registration { registry: registry.clone(), entry, reason: String::new() }
    }

    /// The actor `name`, if `peer` may use it with `protocol`.
    pub(super) fn actor(
        &self,
        name: &str,
        protocol: &str,
        peer: &Peer,
    ) -> Result<Arc<dyn AnyActor>, Refusal> {
        let actor = self.actors.get(name).map(|entry| entry.value().clone());
        let actor = actor.ok_or_else(|| unknown(name))?;
        permit(actor.roles(), peer)?;
        if actor.protocol() == protocol {
            Ok(actor)
        } else {
            Err(Refusal::Protocol(actor.protocol().to_owned()))
        }
    }

    /// The stream kind `kind`, if `peer` may use it.
    pub(super) fn streams(&self, kind: &str, peer: &Peer) -> Result<Arc<StreamEntry>, Refusal> {
        let entry = self.streams.get(kind).map(|entry| entry.value().clone());
        let entry = entry.ok_or_else(|| unknown(kind))?;
        permit(entry.roles, peer)?;
        Ok(entry)
    }
}

fn permit(roles: Roles, peer: &Peer) -> Result<(), Refusal> {
    if roles.contains(peer.role()) { Ok(()) } else { Err(Refusal::Role(peer.role().to_string())) }
}

fn unknown(name: &str) -> Refusal {
    Refusal::Unknown(sixfold_wire::channel::clipped(name).to_owned())
}
