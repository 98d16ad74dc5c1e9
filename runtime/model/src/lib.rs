//! Decoder-only Transformer on one device: forward, backward, optimiser, KV cache, sampling.
