//! Identifiers, envelope, codec and limits of every message; no IO.
//!
//! Read [`id`] first: everything that crosses a process boundary is named there. [`message`] is
//! what an actor's protocol implements, [`codec`] turns values into bytes (the only user of
//! bincode), [`frame`] cuts a byte stream into checked frames, [`channel`] and [`stream`] are the
//! frames themselves, and [`version`] says which wire versions work together.

pub mod channel;
pub mod codec;
pub mod frame;
pub mod id;
pub mod limits;
pub mod message;
pub mod stream;
pub mod version;
