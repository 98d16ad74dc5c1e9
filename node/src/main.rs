//! The sixfold binary: node daemon, coordinator, command line, HTTP gateway.

#[allow(dead_code, reason = "the node daemon does not start it yet")]
mod gateway;
#[allow(dead_code, reason = "no command uses it yet")]
mod site;

fn main() {}
