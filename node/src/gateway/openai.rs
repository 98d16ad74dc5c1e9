//! OpenAI's API: [`request`] is what clients send, [`response`] what they get, [`sse`] how it is
//! streamed, [`ApiError`] what is said when something is wrong.
//!
//! Fields that would change the answer and are not supported are refused by name; fields that
//! would not are ignored. Beyond OpenAI's, `top_k`, `min_p`, `repetition_penalty` and `ignore_eos`
//! mean what they mean to vLLM.

mod error;
mod request;
mod response;
mod sse;
#[cfg(test)]
mod tests;

pub(super) use error::ApiError;
pub(super) use request::{Asked, ChatRequest, CompletionRequest};
pub(super) use response::{Collected, Form, Shape};
pub(super) use sse::{ChoiceEvents, Chunks};
