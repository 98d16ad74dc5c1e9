//! What an actor gets for each message from another process.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use sixfold_wire::channel::{ChannelFrame, write_reply};
use sixfold_wire::message::Message;

use super::outbox::Outbox;
use crate::identity::Peer;

/// The actor behind a registration takes no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the actor has stopped")]
pub struct ActorGone;

/// A message from another process. Its credits return when it is dropped (for a call: when the
/// reply is sent or dropped), so keep it until the message has been handled.
#[derive(Debug)]
pub struct Delivery<M: Message> {
    /// Who sent it, as its certificate says.
    pub from: Arc<Peer>,
    /// The message.
    pub message: M,
    /// Where to reply, if it is a call.
    pub reply: Option<ReplyTo<M::Reply>>,
    /// Held for its drop.
    pub(super) _credit: Option<Credit>,
}

/// Credits of a message that has not been handled yet.
#[derive(Debug)]
pub(super) struct Credit {
    pub(super) outbox: Arc<Outbox>,
    pub(super) credits: u32,
    pub(super) window: u32,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.outbox.give_back(self.credits, self.window);
    }
}

/// Where to send the reply to a call. Dropped without a reply, it tells the caller so.
#[derive(Debug)]
pub struct ReplyTo<R> {
    credit: Credit,
    id: u64,
    deadline: Instant,
    answered: bool,
    reply: PhantomData<fn(R)>,
}

impl<R> ReplyTo<R> {
    pub(super) fn new(credit: Credit, id: u64, deadline: Instant) -> Self {
        Self { credit, id, deadline, answered: false, reply: PhantomData }
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether nobody waits for the reply any more.
    pub fn abandoned(&self) -> bool {
        self.credit.outbox.ended() || Instant::now() >= self.deadline
    }
}

impl<R: Serialize> ReplyTo<R> {
    /// Sends the reply. A reply that is too long, or to a caller who is gone, is dropped; a live
    /// caller then learns that there is none.
    pub fn send(mut self, reply: &R) {
        let mut frame = Vec::with_capacity(128);
        if write_reply(&mut frame, self.id, reply).is_ok() && self.credit.outbox.push(&frame).is_ok() {
            self.answered = true;
        }
    }
}

impl<R> Drop for ReplyTo<R> {
    fn drop(&mut self) {
        if !self.answered {
            let mut frame = Vec::new();
            ChannelFrame::Unanswered { id: self.id }.write(&mut frame);
            // The caller is gone if this fails.
            let _ = self.credit.outbox.push(&frame);
        }
    }
}
