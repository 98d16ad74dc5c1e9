//! QUIC endpoints, identity and mutual TLS, actor channels with credits, tensor links.

pub mod identity;
pub mod link;
