//! From tokens to text that may be shown: [`Detokenizer`] releases whole characters only, and
//! [`StopStrings`] holds back what could become a stop string. [`chat`] is the other direction,
//! from a conversation to a prompt.
//!
//! Both are functions of the tokens seen so far, so a replica that continues another's answer
//! replays its tokens and goes on at the same character.

pub mod chat;
mod codec;
mod detokenizer;
mod stop;

pub use codec::{EncodedPrompt, TextCodec};
pub use detokenizer::Detokenizer;
pub use stop::{Released, StopStrings};
