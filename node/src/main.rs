//! The sixfold binary: node daemon, coordinator, command line, HTTP gateway.

#[allow(dead_code, reason = "the node daemon does not start it yet")]
mod gateway;

fn main() {}
