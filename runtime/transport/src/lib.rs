//! QUIC endpoints, identity and mutual TLS, actor channels with credits, byte streams, tensor links.
//!
//! Read [`Endpoint`] first: it owns a socket, dials and accepts [`Connection`]s to peers with
//! certificates of the cluster, and holds the table of actors and stream kinds that peers may use.
//! [`RemoteRef`] is an actor of another process. [`identity`] is who a process is, [`join`](mod@join)
//! how it becomes a member. [`tensor`] moves tensors between ranks over [`link::TensorLink`]s.
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
pub mod tensor;

pub use byte_stream::{ByteStream, IncomingStream, RecvHalf, SendHalf};
pub use channel::{
    ActorGone, CallError, CastError, ChannelOptions, Death, Delivery, RemoteRef, ReplyTo, TryCastError,
};
pub use connection::{Activity, Connection, Disconnect, OpenError};
pub use endpoint::{BindError, ConnectError, Endpoint, EndpointOptions, Registration};
pub use join::{JoinError, JoinRequest, join};

#[cfg(test)]
mod tests;
