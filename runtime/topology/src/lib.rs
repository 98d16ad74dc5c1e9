//! Ranks, meshes, parallel plans, placement and pipeline schedules; pure functions, no IO.
