//! The cleaner role: pages and files to clean documents, a tokenizer, token shards and a data card.
