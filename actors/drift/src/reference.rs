//! What the model was trained on: the counts of the training split, and their noise.

use std::ops::Range;

use sixfold_artifact::tokens::TokenShards;
use sixfold_artifact::{Manifest, Store};
use sixfold_wire::id::ArtifactId;

use crate::counts::{TokenCounts, count};
use crate::error::DriftError;
use crate::noise::NoiseBand;
use crate::options::DriftOptions;

/// Kind of the artefact that is read.
const TOKENS: &str = "tokens";
/// The split that the model was trained on.
const SPLIT: &str = "train";
/// Tokens counted at a time.
const COUNTED_TOKENS: usize = 1 << 16;

/// A reference to compare with.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// How often each token occurs.
    pub counts: TokenCounts,
    /// How far its own pieces are from it.
    pub noise: NoiseBand,
}

impl Reference {
    /// Counts `tokens` of a vocabulary and measures their noise. Computes for up to seconds.
    ///
    /// # Errors
    /// [`DriftError::TooLittle`] where there are too few tokens for samples of `min_tokens`.
    pub fn new(tokens: &[u32], vocabulary: u32, options: &DriftOptions) -> Result<Self, DriftError> {
        let mut counts = TokenCounts::new(vocabulary, options.smoothing);
        tokens.chunks(COUNTED_TOKENS).for_each(|part| counts.add(&count(part)));
        let (smallest, largest) = (options.min_tokens, options.window_tokens);
        match NoiseBand::measure(tokens, &mut counts, smallest, largest) {
            Some(noise) => Ok(Self { counts, noise }),
            None => Err(DriftError::TooLittle { found: tokens.len() as u64, min_tokens: smallest }),
        }
    }

    /// Reads the beginning of an artefact's training split.
    ///
    /// # Errors
    /// [`DriftError::Tokens`] and as [`Reference::new`].
    pub fn read(store: &Store, tokens: ArtifactId, options: &DriftOptions) -> Result<Self, DriftError> {
        let shards = TokenShards::from_artifact(store, tokens, SPLIT)?;
        let text = text_of(&shards, options.reference_tokens_max)?;
        Self::new(&text, shards.vocabulary(), options)
    }
}

/// The one tokens artefact among a stage's inputs.
pub(crate) fn find_tokens(inputs: &[(ArtifactId, Manifest)]) -> Result<ArtifactId, DriftError> {
    let found: Vec<_> = inputs.iter().filter(|(_, manifest)| manifest.kind == TOKENS).collect();
    match found.as_slice() {
        [(id, _)] => Ok(*id),
        found => Err(DriftError::Inputs(found.len())),
    }
}

/// The documents without the end-of-text token of each, which nobody asks for; `tokens_max` at most.
fn text_of(shards: &TokenShards, tokens_max: u64) -> Result<Vec<u32>, DriftError> {
    let mut text = Vec::new();
    let documents = (0..shards.documents()).map_while(|number| shards.document(number));
    for Range { start, end } in documents {
        let room = tokens_max.saturating_sub(text.len() as u64);
        if room == 0 {
            break;
        }
        let end = end.saturating_sub(1).clamp(start, start.saturating_add(room));
        text.extend(shards.get(start..end)?);
    }
    Ok(text)
}
