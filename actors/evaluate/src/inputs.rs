//! What an evaluation reads: a model, and text that was held out of its training.

use sixfold_artifact::tokens::TokenShards;
use sixfold_artifact::{Manifest, Store, model};
use sixfold_wire::id::ArtifactId;

use crate::error::EvaluateError;
use crate::perplexity::Document;

/// Kind of the artefact with the held-out text.
const TOKENS: &str = "tokens";
/// The split that the trainer does not see.
const SPLIT: &str = "held-out";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The artefacts of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inputs {
    pub(crate) model: ArtifactId,
    pub(crate) tokens: ArtifactId,
}

impl Inputs {
    /// Finds them by their kinds, in whatever order they come; artefacts of other kinds are passed over.
    pub(crate) fn find(fetched: &[(ArtifactId, Manifest)]) -> Result<Self, EvaluateError> {
        let (model, of_model) = the_one(fetched, model::KIND)?;
        let (tokens, of_tokens) = the_one(fetched, TOKENS)?;
        let tokenizer = |manifest: &Manifest| manifest.file(TOKENIZER_FILE).map(|file| file.hash);
        match (tokenizer(of_model), tokenizer(of_tokens)) {
            (Some(ours), Some(theirs)) if ours != theirs => Err(EvaluateError::OtherTokenizer),
            _ => Ok(Self { model, tokens }),
        }
    }

    /// The held-out split.
    pub(crate) fn held_out(&self, store: &Store) -> Result<TokenShards, EvaluateError> {
        Ok(TokenShards::from_artifact(store, self.tokens, SPLIT)?)
    }
}

fn the_one<'a>(
    fetched: &'a [(ArtifactId, Manifest)],
    kind: &'static str,
) -> Result<(ArtifactId, &'a Manifest), EvaluateError> {
    let mut of_kind = fetched.iter().filter(|(_, manifest)| manifest.kind == kind);
    match (of_kind.next(), of_kind.count()) {
        (Some((id, manifest)), 0) => Ok((*id, manifest)),
        (first, more) => Err(EvaluateError::Inputs { kind, found: usize::from(first.is_some()) + more }),
    }
}

/// The documents that are scored: the first ones that together have so many tokens to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) documents: u64,
    /// Tokens to score: all but the first of each document, of dialogues those of answers.
    pub(crate) tokens: u64,
}

impl Selection {
    /// Whole documents, until at least `tokens_max` tokens are to be scored.
    pub(crate) fn of(held_out: &TokenShards, tokens_max: u64) -> Self {
        let mut selection = Self { documents: 0, tokens: 0 };
        while selection.tokens < tokens_max {
            let Some(range) = held_out.document(selection.documents) else { break };
            selection.documents += 1;
            let scored = range.start.saturating_add(1)..range.end;
            selection.tokens += scored.filter(|token| held_out.is_learned(*token)).count() as u64;
        }
        selection
    }
}

/// One document; an empty one where the split has no such document.
pub(crate) fn document(held_out: &TokenShards, number: u64) -> Result<Document, EvaluateError> {
    let range = held_out.document(number).unwrap_or(0..0);
    let tokens = held_out.get(range.clone())?;
    let of_answers = held_out.is_masked().then(|| range.map(|token| held_out.is_learned(token)).collect());
    Ok(Document { tokens, of_answers })
}
