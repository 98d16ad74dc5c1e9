//! Byte-level BPE, as the `tokenizers` library has it.

use serde_json::{Map, Value, json};

use super::PreTokenizer;

/// What of a tokenizer.json is the algorithm's.
pub(super) fn parts(
    vocab: Map<String, Value>,
    merges: &[(String, String)],
    pre_tokenizer: &PreTokenizer,
) -> Value {
    json!({
        "normalizer": pre_tokenizer.normalizer(),
        "pre_tokenizer": pre_tokenizer.to_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre_tokenizer.takes_whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    })
}
