//! The gateway as its clients see it, over fake replicas in this process.

mod api;
mod connections;
mod fake;
mod failover;
