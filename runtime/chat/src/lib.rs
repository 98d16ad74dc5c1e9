//! Chat templates: a conversation as the text that a model knows, and where in it the answers are.
//!
//! The dialect is that of Hugging Face's `transformers`: Jinja with trimmed blocks, `raise_exception`, `strftime_now`,
//! `tojson` as Python writes JSON, loop controls, the string methods that templates use, and `generation` blocks.
//!
//! It knows no tokenizer, no file and no clock: what a template may ask for is an argument.
//!
//! Read [`ChatTemplate`] first.

mod answers;
mod builtin;
mod date;
mod json;
mod python;
mod source;
mod template;

pub use answers::{AnswerError, Answers};
pub use builtin::Builtin;
pub use date::Date;
pub use source::ChatSource;
pub use template::{ChatTemplate, Message, TemplateError};
