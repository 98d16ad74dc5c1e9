//! The cleaner role: pages and files to clean documents, a tokenizer, token shards and a data card.
pub mod charset;
pub mod clean;
pub mod document;
pub mod duplicates;
pub mod error;
pub mod extract;
pub mod html;
pub mod import;
pub mod language;
pub mod normal_form;
pub mod options;
pub mod pii;
pub mod progress;
pub mod quality;
pub mod segment;
pub mod signature;
pub mod words;
