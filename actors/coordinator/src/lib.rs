//! The coordinator: jobs, nodes, leases and placement as a pure state machine over a log.
