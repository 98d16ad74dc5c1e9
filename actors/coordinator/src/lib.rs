//! The coordinator: decides where work runs, and under whose authority; it does none itself.
//!
//! [`Coordinator`] is a pure state machine: node reports, client requests and time come in, events
//! and messages go out. Events go to the [`log`] before anything else leaves the process, and the
//! log is all that a restarted coordinator needs: leases, running tasks and unacknowledged results
//! come back with the nodes. [`actor`] connects the state machine to the log, the clock and the
//! nodes. A [`job`] is known only as phases that fan out into tasks; what the tasks mean is for the
//! roles to know.
//!
//! What it is not: it moves no artefacts, sees no pages or tensors, and is not asked when a request
//! is served.
//!
//! Read [`Coordinator`] first.

pub mod actor;
pub mod coordinator;
pub mod event;
pub mod job;
pub mod log;
pub mod message;
pub mod options;
pub mod state;

pub use coordinator::{Answer, Command, Coordinator, Effects, Ticket};
pub use options::Options;
pub use state::State;
