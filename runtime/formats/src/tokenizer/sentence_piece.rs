//! SentencePiece's BPE with bytes for what no token has, as the `tokenizers` library has it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Token, TokenKind};

/// What a space is in a token.
pub(crate) const SPACE: char = '\u{2581}';

/// The pairs of tokens that make a token, those of the highest score first: SentencePiece keeps the scores alone, and
/// merges whatever two neighbours make a token.
pub(super) fn merges(tokens: &[Token], scores: &[f32]) -> Vec<(String, String)> {
    let mergeable = |token: &Token| matches!(token.kind, TokenKind::Normal | TokenKind::UserDefined);
    let normal = tokens.iter().zip(scores).enumerate().filter(|(_, (token, _))| mergeable(token));
    let ids: HashMap<&str, usize> =
        normal.clone().map(|(id, (token, _))| (token.text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (_, (token, score)) in normal {
        let text = token.text.as_str();
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let known = cuts.filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right)));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        merges.extend(known.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    // Stable: of equal scores the token that was there first.
    merges.sort_by(|one, other| other.0.total_cmp(&one.0));
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// What of a tokenizer.json is the algorithm's.
pub(super) fn parts(
    vocab: Map<String, Value>,
    merges: &[(String, String)],
    unknown: Option<&str>,
    space_before: bool,
) -> Value {
    let space = SPACE.to_string();
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
    let before = space_before.then(|| json!({"type": "Prepend", "prepend": space}));
    let after = space_before.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let normalizers: Vec<Value> = before.into_iter().chain([spaces]).collect();
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let decoders: Vec<Value> = decoders.into_iter().chain(after).collect();
    json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_by_their_score() {
        let token = |text: &str| Token { text: text.to_owned(), kind: TokenKind::Normal };
        let tokens = ["a", "b", "ab", "aab", "aa"].map(token);
        let merges = merges(&tokens, &[0.0, 0.0, -3.0, -2.0, -1.0]);
        let merges: Vec<_> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        assert_eq!(merges, ["a a", "a ab", "aa b", "a b"]);
    }
}
