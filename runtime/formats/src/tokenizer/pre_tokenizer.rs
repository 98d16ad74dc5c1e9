//! How texts are cut into words before byte-level BPE: [`PreTokenizer`].
//!
//! GGUF names a kind (`tokenizer.ggml.pre`); a tokenizer.json has its steps. The kinds are those of llama.cpp
//! (`llama-vocab.cpp`), their steps those of the tokenizers of the models after which they are named.

use serde_json::{Value, json};

/// A kind of cutting.
#[derive(Debug, PartialEq)]
pub(crate) struct PreTokenizer {
    /// The names of GGUF; the first one is written.
    pub(crate) names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether texts are brought into normal form C first.
    composes: bool,
    /// Whether a word that is a token is one, whatever merges there are.
    pub(crate) takes_whole_words: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// What a pattern matches, and what lies between, are words of their own.
    Isolate(&'static str),
    /// Each digit is a word of its own.
    Digits,
    /// GPT-2's pattern, then bytes as letters.
    Gpt2Words,
    /// Bytes as letters.
    Bytes,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

static KINDS: [PreTokenizer; 6] = [
    PreTokenizer {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de", "gigachat"],
        steps: &[Step::Gpt2Words],
        composes: false,
        takes_whole_words: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        steps: &[Step::Digits, Step::Gpt2Words],
        composes: false,
        takes_whole_words: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        steps: &[Step::Isolate(LLAMA3), Step::Bytes],
        composes: false,
        takes_whole_words: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"],
        steps: &[Step::Isolate(QWEN2), Step::Bytes],
        composes: true,
        takes_whole_words: false,
    },
    PreTokenizer {
        names: &["tekken"],
        steps: &[Step::Isolate(TEKKEN), Step::Bytes],
        composes: false,
        takes_whole_words: true,
    },
    PreTokenizer {
        names: &["default"],
        steps: &[
            Step::Isolate(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Isolate(GPT2),
            Step::Isolate(r"\p{N}+"),
            Step::Isolate("[0-9][0-9][0-9]"),
            Step::Bytes,
        ],
        composes: false,
        takes_whole_words: false,
    },
];

impl PreTokenizer {
    /// The kind with a name of GGUF.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.names.contains(&name))
    }

    /// All names, for messages.
    pub(crate) fn known() -> String {
        KINDS.iter().flat_map(|kind| kind.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// The kind that cuts as the `pre_tokenizer` of a tokenizer.json.
    pub(crate) fn of_json(pre_tokenizer: &Value) -> Option<&'static Self> {
        let steps = match pre_tokenizer["type"].as_str()? {
            "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(pre_tokenizer),
        };
        KINDS.iter().find(|kind| {
            kind.steps.len() == steps.len() && kind.steps.iter().zip(steps).all(|(step, json)| step.is(json))
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(|step| step.to_json()).collect();
        match steps.as_slice() {
            [one] => one.clone(),
            _ => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }
}

impl Step {
    fn to_json(self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        match self {
            Self::Isolate(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            Self::Digits => json!({"type": "Digits", "individual_digits": true}),
            Self::Gpt2Words => byte_level(true),
            Self::Bytes => byte_level(false),
        }
    }

    /// Whether a step of a tokenizer.json cuts in this way.
    fn is(self, json: &Value) -> bool {
        let ours = self.to_json();
        let keys: &[&str] = match self {
            Self::Isolate(_) => &["type", "pattern", "behavior", "invert"],
            Self::Digits => &["type", "individual_digits"],
            // Without the field a regex is used.
            Self::Gpt2Words if json.get("use_regex").is_none() => &["type", "add_prefix_space"],
            Self::Gpt2Words | Self::Bytes => &["type", "add_prefix_space", "use_regex"],
        };
        keys.iter().all(|key| json[*key] == ours[*key])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_names_and_by_its_steps() {
        for kind in &KINDS {
            assert!(kind.names.iter().all(|name| PreTokenizer::named(name) == Some(kind)));
            assert_eq!(PreTokenizer::of_json(&kind.to_json()), Some(kind));
        }
        assert_eq!(PreTokenizer::named("unheard of"), None);
        assert_eq!(PreTokenizer::of_json(&json!({"type": "Whitespace"})), None);
    }
}
