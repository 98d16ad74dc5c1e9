//! Roles and tasks, membership, leases, supervision, worker processes: what a node daemon is made of.
