//! The gateway as its clients see it, over fake replicas in this process.

mod api;
mod connections;
mod failover;
mod fake;
mod socket;
mod transport;
mod wire;
