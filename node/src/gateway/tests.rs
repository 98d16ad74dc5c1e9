//! The gateway as its clients see it, over fake replicas in this process.

mod api;
mod connections;
mod failover;
mod fake;
mod https;
mod metrics;
mod socket;
mod transport;
mod wire;

use super::{Gateway, GatewayError, GatewayOptions, GatewayParts, HttpSocket};

/// A gateway that serves HTTP.
async fn start(options: GatewayOptions, parts: GatewayParts) -> Result<Gateway, GatewayError> {
    let socket = HttpSocket::bind(&options).await?;
    Ok(Gateway::start(options, parts, Some(socket)).unwrap())
}
