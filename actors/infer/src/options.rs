//! Options of a `serve` stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::DecoderShape;
use crate::scheduler::Limits;

/// Upper bound of a step, so that a scored prompt's part of it fits one message.
const STEP_TOKENS_MAX: usize = 2048;

/// Options of a `serve` stage, as written in a job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Name under which clients ask for the model.
    pub model_name: String,
    /// Replicas of the model, each a process of its own.
    pub replicas: u32,
    /// Sequences that a replica computes at the same time.
    pub batch_max: u32,
    /// Requests that may wait in a replica's queue; one more is answered as busy.
    pub waiting_max: u32,
    /// Memory for keys and values of a replica, in mebibytes.
    pub kv_cache_mib: u32,
    /// Tokens that a replica computes in one step: bounds how long a prompt holds up other answers.
    pub step_tokens_max: u32,
    /// Longest prompt, in bytes of text; longer ones are refused before they are tokenized.
    pub prompt_bytes_max: u32,
    /// Most tokens of one answer, whatever a request asks for; 0 for the model's context.
    pub output_tokens_max: u32,
    /// Events that wait for a slow client before its sequence is held.
    pub events_per_request: u32,
    /// Compute threads of a replica; 0 for as many as the machine has cores.
    pub threads: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model_name: "sixfold".to_owned(),
            replicas: 1,
            batch_max: 16,
            waiting_max: 64,
            kv_cache_mib: 256,
            step_tokens_max: 256,
            prompt_bytes_max: 1 << 20,
            output_tokens_max: 0,
            events_per_request: 64,
            threads: 0,
        }
    }
}

impl Options {
    /// What the scheduler may spend on a model of this shape.
    pub fn limits(&self, shape: DecoderShape) -> Limits {
        Limits {
            kv_blocks: shape.blocks,
            block_tokens: shape.block_tokens,
            batch_max: whole(self.batch_max),
            waiting_max: whole(self.waiting_max),
            step_tokens_max: whole(self.step_tokens_max).min(STEP_TOKENS_MAX),
        }
    }

    /// Memory for keys and values, in bytes.
    pub fn kv_bytes_max(&self) -> usize {
        whole(self.kv_cache_mib).saturating_mul(1 << 20)
    }
}

fn whole(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_options_are_refused() {
        assert!(serde_json::from_str::<Options>(r#"{"replicas":2}"#).is_ok_and(|o| o.replicas == 2));
        assert!(serde_json::from_str::<Options>(r#"{"replica":2}"#).is_err());
    }

    #[test]
    fn a_step_is_never_larger_than_an_event_can_carry() {
        let options = Options { step_tokens_max: u32::MAX, ..Options::default() };
        let shape = DecoderShape { vocabulary: 8, context_tokens: 64, block_tokens: 64, blocks: 3 };
        let limits = options.limits(shape);
        assert_eq!((limits.kv_blocks, limits.step_tokens_max), (3, STEP_TOKENS_MAX));
    }
}
