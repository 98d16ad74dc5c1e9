//! Cleaning, from outside: one binary, since each is linked with everything below it.

mod extraction;
mod golden;
