//! The inference-replica role: a model that answers many requests at once, and the protocol by
//! which gateways ask it.
//!
//! A request ([`message::GenerateRequest`]) reaches a [`replica::Replica`], which tokenizes it and
//! hands it to the [`engine::Engine`] on its own thread. The [`scheduler::Scheduler`] decides which
//! sequences compute how many tokens in each step; token events flow back over a bounded channel,
//! and between processes over a byte stream ([`remote`]).
//!
//! What a request is answered with depends on the request alone: not on the batch, the replica, or
//! the moment. So an answer that one replica began is continued by another with the same tokens.
//!
//! [`actor::InferenceReplica`] is the role that a worker process hosts.
//!
//! This crate speaks no HTTP: the gateway does, and sees a replica as a [`replica::ReplicaClient`].
//! Read [`replica::Replica`] first.

pub mod actor;
pub mod engine;
pub mod error;
pub mod latency;
pub mod load;
pub mod message;
pub mod options;
pub mod pulse;
pub mod remote;
pub mod replica;
pub mod sampler;
pub mod scheduler;
pub mod text;
pub mod thread;

#[cfg(test)]
mod testing;
