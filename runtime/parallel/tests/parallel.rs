//! Plans and scores, from outside: one binary, since each is linked with everything below it.

mod plans;
mod score;
