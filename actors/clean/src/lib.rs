//! The cleaner role: pages and files to clean documents, a tokenizer, token shards and a data card.
//!
//! Three stage kinds. `import` reads a file that somebody has. `clean` maps each segment of a crawl or
//! import to candidates ([`clean`], [`segment`]) and reduces all of them, in order, to a corpus
//! ([`merge`], [`corpus`], [`card`]). `tokenize` trains a tokenizer and writes token shards
//! ([`tokenizer`], [`shards`]). Every result depends on inputs and options alone, never on how many
//! workers there were or which was first.
//!
//! It fetches no page and trains no model.
//!
//! Read [`stage`] for what a task does, [`clean::Cleaner`] for what becomes of a page, and
//! [`options`] for what a job file can say. [`stage::Work`] is what a node hosts.

pub mod card;
pub mod charset;
pub mod clean;
pub mod corpus;
pub mod document;
pub mod duplicates;
pub mod error;
pub mod extract;
pub mod figures;
pub mod html;
pub mod import;
pub mod instruct;
pub mod language;
pub mod merge;
pub mod normal_form;
pub mod options;
pub mod pii;
pub mod progress;
pub mod quality;
pub mod segment;
pub mod shards;
pub mod signature;
pub mod sketch;
pub mod stage;
pub mod tokenizer;
pub mod words;

mod actor;
