//! Files of other programs, from outside: one binary, since each is linked with everything below it.

mod codecs;
mod models;
mod stories;
