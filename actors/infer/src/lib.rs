//! The inference-replica role: continuous batching over a KV cache.
