//! The sixfold binary: node daemon, coordinator, command line, HTTP gateway.

fn main() {}
