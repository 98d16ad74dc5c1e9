//! The options of the stage kinds `import`, `clean` and `tokenize`, as a job file states them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sixfold_chat::{Builtin, Date};

use crate::extract::Extractor;
use crate::instruct::record::Form;
use crate::normal_form::Width;
use crate::pii::MaskKind;
use crate::quality::{Limits, Profile};

/// Options of an `import` stage. One of `text` and `jsonl` is needed; either may be gzip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImportOptions {
    /// A UTF-8 text file, on the node that runs the stage.
    pub text: Option<PathBuf>,
    /// A file of one JSON object a line.
    pub jsonl: Option<PathBuf>,
    /// The field of a JSON object that holds the text.
    pub text_field: String,
    /// The field of a JSON object that says where the text comes from; it may be absent.
    pub url_field: String,
    /// Take a text file as one document.
    pub whole: bool,
    /// A line of a text file that ends a part. Empty: a blank line does.
    pub document_separator: String,
    /// Consecutive parts of a text file are joined until a document has this many characters. 1: each
    /// part is a document.
    pub document_chars_min: usize,
    /// Longer documents are cut.
    pub document_bytes_max: usize,
    /// Read at most this many bytes, after unpacking; a longer file is an error.
    pub file_bytes_max: u64,
    /// Documents an artefact; a following clean stage cleans artefacts in parallel.
    pub documents_per_artifact: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            text: None,
            jsonl: None,
            text_field: "text".to_owned(),
            url_field: "url".to_owned(),
            whole: false,
            document_separator: String::new(),
            document_chars_min: 4000,
            document_bytes_max: 16 << 20,
            file_bytes_max: 64 << 30,
            documents_per_artifact: 4096,
        }
    }
}

/// Options of a `clean` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CleanOptions {
    /// How a page's text is found: `main_text`, `documentation` or `body`.
    pub extractor: Extractor,
    /// The quality rules that hold: `web` (published rules for pages), `documentation`, `none`.
    pub profile: Profile,
    /// Shorter documents are rejected, whatever the profile.
    pub chars_min: usize,
    /// Limits by rule that replace the profile's for English; a negative one turns a rule off.
    pub english: Limits,
    /// The same for Chinese.
    pub chinese: Limits,
    /// Keep only these languages, as BCP 47 tags; `zh` stands for `zh-Hans` and `zh-Hant`. Empty: all.
    pub languages: Vec<String>,
    /// Reject documents whose language is less sure than this, 0 to 1.
    pub language_confidence_min: f64,
    /// What becomes of full-width forms: `keep`, `alphanumerics` or `all` become half-width.
    pub width: Width,
    /// Convert traditional Chinese to simplified.
    pub simplify: bool,
    /// Personal data to mask.
    pub masks: Vec<MaskKind>,
    /// Leave out documents with the same letters and digits as an earlier one.
    pub exact_duplicates: bool,
    /// Leave out documents that are nearly the same as an earlier one of their language: their SimHashes
    /// differ in at most `near_duplicate_bits` bits, and their texts share `near_duplicate_overlap`.
    pub near_duplicates: bool,
    /// Bits of 64, at most 3.
    pub near_duplicate_bits: u32,
    /// Share of runs of five words (Chinese: of five characters) that two documents have in common, of all
    /// that either has, at least; 0 to 1, estimated to about 0.05. 0: SimHash alone decides.
    pub near_duplicate_overlap: f64,
    /// Larger pages are rejected.
    pub page_bytes_max: usize,
    /// Threads a task. 0: one a core.
    pub threads: usize,
}

impl Default for CleanOptions {
    fn default() -> Self {
        Self {
            extractor: Extractor::MainText,
            profile: Profile::Web,
            chars_min: 50,
            english: Limits::new(),
            chinese: Limits::new(),
            languages: Vec::new(),
            language_confidence_min: 0.0,
            width: Width::Alphanumerics,
            simplify: false,
            masks: MaskKind::ALL.to_vec(),
            exact_duplicates: true,
            near_duplicates: true,
            near_duplicate_bits: 3,
            near_duplicate_overlap: 0.5,
            page_bytes_max: 8 << 20,
            threads: 0,
        }
    }
}

/// Where a tokenizer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerSource {
    /// Byte-level BPE, trained on the training split.
    #[default]
    Train,
    /// One token a byte.
    Bytes,
}

/// Options of a `tokenize` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizeOptions {
    /// `train` a byte-level BPE tokenizer, or one token a byte (`bytes`).
    pub tokenizer: TokenizerSource,
    /// Entries of the vocabulary, special tokens included. Fewer where the text has no more pairs.
    pub vocabulary: u32,
    /// Merge pairs that occur at least this often.
    pub pair_count_min: u64,
    /// Train the tokenizer on at most this many bytes of text, from the first document on.
    pub training_bytes_max: u64,
    /// Share of documents kept out of training, 0 to 0.5; chosen by a hash of the document's id.
    pub held_out: f64,
    /// A shard is ended by the document that reaches this many tokens.
    pub shard_tokens_max: u64,
    /// Threads. 0: one a core.
    pub threads: usize,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self {
            tokenizer: TokenizerSource::Train,
            vocabulary: 4096,
            pair_count_min: 2,
            training_bytes_max: 256 << 20,
            held_out: 0.05,
            shard_tokens_max: 1 << 28,
            threads: 0,
        }
    }
}

/// What becomes of a dialogue that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// It is left out.
    #[default]
    Drop,
    /// It loses its end.
    Cut,
}

/// Options of an `instruct` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstructOptions {
    /// Files of dialogues, on the node that runs the stage: each a JSON list or one JSON object a line, either may be gzip.
    pub files: Vec<PathBuf>,
    /// How they say what was said: `alpaca` (`instruction`, `input`, `output`, also `history` and `system`), `sharegpt`
    /// (`conversations` of `from` and `value`), `messages` (of `role` and `content`), or `auto`: row by row, by their fields.
    pub form: Form,
    /// A chat template by name: `chatml`, `llama3`, `mistral` or `turns`. Empty: the model's own.
    pub template: String,
    /// A system prompt for dialogues that have none. Empty: none.
    pub system: String,
    /// The day that a template is told which asks for it, as 2024-07-26.
    pub today: String,
    /// More tokens than these are too long for a dialogue. 0: one more than the model has positions.
    pub tokens_max: usize,
    /// What becomes of a dialogue that is too long: `drop` or `cut`. Either is counted.
    pub too_long: TooLong,
    /// Share of dialogues kept out of training, 0 to 0.5; chosen by a hash of what was said.
    pub held_out: f64,
    /// Read no more rows than these. 0: all.
    pub rows_max: u64,
    /// Read at most this many bytes of a file, after unpacking; a longer file is an error.
    pub file_bytes_max: u64,
    /// A shard is ended by the dialogue that reaches this many tokens.
    pub shard_tokens_max: u64,
    /// Threads. 0: one a core.
    pub threads: usize,
}

impl Default for InstructOptions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            form: Form::Auto,
            template: String::new(),
            system: String::new(),
            today: "2024-07-26".to_owned(),
            tokens_max: 0,
            too_long: TooLong::Drop,
            held_out: 0.05,
            rows_max: 0,
            file_bytes_max: 4 << 30,
            shard_tokens_max: 1 << 28,
            threads: 0,
        }
    }
}

impl InstructOptions {
    /// Checks what can be checked without the files.
    ///
    /// # Errors
    /// Names the first option that does not fit.
    pub fn validate(&self) -> Result<(), String> {
        if self.files.is_empty() {
            return Err("`files` names no file".to_owned());
        }
        if !(0.0..=0.5).contains(&self.held_out) {
            return Err(format!("`held_out` is {}; it must be from 0 to 0.5", self.held_out));
        }
        if !self.template.is_empty() && Builtin::of_name(&self.template).is_none() {
            let names: Vec<&str> = Builtin::ALL.into_iter().map(Builtin::name).collect();
            return Err(format!("`template` is `{}`; it must be one of {}", self.template, names.join(", ")));
        }
        if self.tokens_max == 1 {
            return Err("`tokens_max` is 1; a question and an answer have two".to_owned());
        }
        self.today.parse::<Date>().map(drop).map_err(|error| format!("`today`: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_a_default_and_unknown_ones_are_refused() {
        assert_eq!(serde_json::from_str::<CleanOptions>("{}").unwrap(), CleanOptions::default());
        assert_eq!(serde_json::from_str::<ImportOptions>("{}").unwrap(), ImportOptions::default());
        assert_eq!(serde_json::from_str::<TokenizeOptions>("{}").unwrap(), TokenizeOptions::default());
        assert!(serde_json::from_str::<CleanOptions>(r#"{"profil":"web"}"#).is_err());
        assert!(serde_json::from_str::<CleanOptions>(r#"{"english":{"no_such_rule":1}}"#).is_err());
    }

    #[test]
    fn limits_are_named_by_rule() {
        let options: CleanOptions =
            serde_json::from_str(r#"{"chinese":{"line_punctuation_min":0.2,"top_2_gram_max":-1}}"#).unwrap();
        assert_eq!(options.chinese[&crate::quality::Rule::LinePunctuationMin], 0.2);
    }
}
