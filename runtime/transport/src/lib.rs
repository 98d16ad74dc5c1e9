//! QUIC endpoints, identity and mutual TLS, actor channels with credits, byte streams, tensor links.
//!
//! Read [`Endpoint`] first: it owns a socket, dials and accepts [`Connection`]s to peers with
//! certificates of the cluster, and holds the table of actors and stream kinds that peers may use.
//! [`RemoteRef`] is an actor of another process. [`identity`] is who a process is, `join.rs`
//! how it becomes a member and `renewal.rs` how it stays one. [`tensor`] moves tensors between ranks over [`link::TensorLink`]s.
//!
//! ```no_run
//! use std::time::{Duration, SystemTime};
//!
//! use serde::{Deserialize, Serialize};
//! use sixfold_transport::identity::{Authority, MEMBER_LIFETIME, Peer, Role};
//! use sixfold_transport::{ActorGone, ChannelOptions, Delivery, Endpoint, EndpointOptions};
//! use sixfold_wire::message::Message;
//!
//! #[derive(Serialize, Deserialize)]
//! enum Ledger {
//!     Add(u64),
//!     Sum,
//! }
//!
//! impl Message for Ledger {
//!     type Reply = u64;
//!     const PROTOCOL: &'static str = "ledger";
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let now = SystemTime::now();
//! let authority = Authority::create(now)?;
//! let [main, node] = [Peer::coordinator("main")?, Peer::node("node-1")?]
//!     .map(|peer| authority.issue_identity(&peer, now, MEMBER_LIFETIME));
//! let options = EndpointOptions::new("127.0.0.1:0".parse()?);
//!
//! // The coordinator bridges the actor's mailbox; a real one would be a ractor actor's.
//! let coordinator = Endpoint::bind(main?, &options)?;
//! let (mailbox, mut messages) = tokio::sync::mpsc::unbounded_channel::<Delivery<Ledger>>();
//! let registration = coordinator.register("ledger", Role::Node, move |delivery| {
//!     mailbox.send(delivery).map_err(|_| ActorGone)
//! });
//! tokio::spawn(async move {
//!     let mut sum = 0;
//!     while let Some(delivery) = messages.recv().await {
//!         match (delivery.message, delivery.reply) {
//!             (Ledger::Add(amount), _) => sum += amount,
//!             (Ledger::Sum, Some(reply)) => reply.send(&sum),
//!             (Ledger::Sum, None) => {}
//!         }
//!     }
//! });
//!
//! // The node dials, opens a channel and calls.
//! let node = Endpoint::bind(node?, &options)?;
//! let connection = node.connect(coordinator.local_address()?, Role::Coordinator).await?;
//! let ledger = connection.actor::<Ledger>("ledger", ChannelOptions::default()).await?;
//! ledger.cast(Ledger::Add(2)).await?;
//! let sum = ledger.call(Ledger::Sum, Duration::from_secs(1)).await?;
//! assert_eq!(sum, 2);
//! drop(registration);
//! println!("{}", ledger.closed().await);
//! # Ok(())
//! # }
//! ```
//!
//! Supervision, membership and message routing are not here: they are the cluster's, above.

mod byte_stream;
mod channel;
mod connection;
mod endpoint;
mod framed;
mod handshake;
pub mod identity;
mod join;
pub mod link;
mod quic_runtime;
mod renewal;
pub mod tensor;

pub use byte_stream::{ByteStream, IncomingStream, RecvHalf, SendHalf};
pub use channel::{
    ActorGone, CallError, CastError, ChannelOptions, Death, Delivery, RemoteRef, ReplyTo, TryCastError,
};
pub use connection::{Activity, Connection, Disconnect, OpenError};
pub use endpoint::{BindError, ConnectError, Endpoint, EndpointOptions, Registration};
pub use join::{JoinError, JoinRequest, join};
pub use renewal::{RenewalError, renew, serve_renewals};

#[cfg(test)]
mod tests;
