//! Identifiers, envelope, codec and limits of every message; no IO.
