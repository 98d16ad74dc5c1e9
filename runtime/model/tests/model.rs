//! The model against references, from outside: one binary, since each is linked with everything below it.

mod decode;
mod embed;
mod golden;
mod gradients;
mod lora;
mod peft;
mod stories;
mod transformers;
mod weights;
