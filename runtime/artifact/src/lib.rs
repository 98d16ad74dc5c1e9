//! Content-addressed store, manifests and lineage, token shards.
