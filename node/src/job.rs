//! Job files: TOML in, a checked [`sixfold_coordinator::job::JobSpec`] out.
//!
//! ```toml
//! name = "pretrain-tiny"
//!
//! [stage.data]
//! kind = "import"
//! text = "book.txt"
//!
//! [stage.tokens]
//! kind = "tokenize"
//! inputs = ["data"]
//! ```
//! [`file`] reads the text and keeps the place of every key, so that an error points at its line.
//! [`kinds`] is the closed set of stage kinds. [`compile`] joins the two.

pub(crate) mod compile;
pub(crate) mod file;
pub(crate) mod kinds;
