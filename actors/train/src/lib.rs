//! The trainer-shard role: one rank of a training job.
