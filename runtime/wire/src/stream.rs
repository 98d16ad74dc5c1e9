//! The first frame on every stream says what the stream is for; the second answers it.

use serde::{Deserialize, Serialize};

/// First frame from the side that opened the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamOpening {
    /// Sent once, on the first stream: the answer tells the dialler that its certificate was accepted.
    Hello,
    /// An actor channel.
    Actor {
        /// Name of the actor.
        actor: String,
        /// Its [`PROTOCOL`](crate::message::Message::PROTOCOL).
        protocol: String,
    },
    /// A byte stream.
    Bytes {
        /// Name of its kind, for example `artifact`.
        kind: String,
        /// The kind's own header, encoded.
        header: Vec<u8>,
    },
}

/// Answer to a [`StreamOpening`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamAnswer {
    /// The stream is open.
    Accepted {
        /// Credits that the opener of an actor channel starts with; 0 for other streams.
        window: u32,
    },
    /// It is not, and why.
    Refused(Refusal),
}

/// Why a stream was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No actor or stream kind of that name.
    #[error("there is no `{0}` here")]
    Unknown(String),
    /// The actor speaks another protocol.
    #[error("the actor speaks `{0}`")]
    Protocol(String),
    /// The peer's role may not.
    #[error("the role `{0}` may not do this")]
    Role(String),
    /// The handler's own reason.
    #[error("{0}")]
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;

    /// Golden bytes of wire version 1: variants may be added at the end, never moved.
    #[test]
    fn version_1_openings_are_pinned() {
        let hex = |bytes: Vec<u8>| data_encoding::HEXLOWER.encode(&bytes);
        assert_eq!(hex(encode(&StreamOpening::Hello).unwrap()), "00000000");
        let actor = StreamOpening::Actor { actor: "a".into(), protocol: "p".into() };
        assert_eq!(hex(encode(&actor).unwrap()), "01000000010000000000000061010000000000000070");
        let bytes = StreamOpening::Bytes { kind: "k".into(), header: vec![9] };
        assert_eq!(hex(encode(&bytes).unwrap()), "0200000001000000000000006b010000000000000009");
        assert_eq!(hex(encode(&StreamAnswer::Accepted { window: 2 }).unwrap()), "0000000002000000");
        let refused = StreamAnswer::Refused(Refusal::Role("u".into()));
        assert_eq!(hex(encode(&refused).unwrap()), "0100000002000000010000000000000075");
    }
}
