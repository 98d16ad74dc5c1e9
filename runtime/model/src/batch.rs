//! What a forward pass is told about its input: [`MicroBatch`], and the [`StepSeed`] from which
//! every random number of the step follows.

/// Whole sequences that go through the model together.
///
/// Row `s * length + i` of an activation belongs to token `i` of sequence `s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Input tokens, sequence after sequence; used by the slice that holds the embedding.
    pub tokens: Vec<u32>,
    /// The token after each input token; used by the slice that holds the head.
    pub targets: Vec<u32>,
    /// Tokens of one sequence; divides the length of `tokens`.
    pub length: usize,
    /// Index of the first sequence in the training step; the others follow it.
    pub first_sample: u64,
}

/// The input does not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Tokens, targets and sequence length disagree.
    #[error("{tokens} tokens and {targets} targets do not make sequences of {length}")]
    Shape {
        /// Input tokens.
        tokens: usize,
        /// Target tokens.
        targets: usize,
        /// Tokens of one sequence.
        length: usize,
    },
    /// A token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A sequence is longer than the model's positions.
    #[error("a sequence of {length} tokens exceeds the model's {positions} positions")]
    Positions {
        /// Tokens of one sequence.
        length: usize,
        /// Positions that the model may be asked for.
        positions: usize,
    },
}

impl MicroBatch {
    /// Sequences in the micro-batch.
    pub fn sequences(&self) -> usize {
        self.tokens.len().checked_div(self.length).unwrap_or(0)
    }

    /// Checks shape and tokens, so that the model may index with them.
    ///
    /// # Errors
    /// [`BatchError`] names what does not fit.
    pub fn validate(&self, vocabulary: usize, positions: usize) -> Result<(), BatchError> {
        let (tokens, targets, length) = (self.tokens.len(), self.targets.len(), self.length);
        if tokens == 0 || tokens != targets || length == 0 || tokens % length != 0 {
            return Err(BatchError::Shape { tokens, targets, length });
        }
        if length > positions {
            return Err(BatchError::Positions { length, positions });
        }
        let outside = |token: &&u32| **token as usize >= vocabulary;
        match self.tokens.iter().chain(&self.targets).find(outside) {
            Some(&token) => Err(BatchError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }
}

/// What the random numbers of a training step are drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSeed {
    /// The job's seed.
    pub seed: u64,
    /// The step, counted from 0.
    pub step: u64,
    /// Probability with which dropout sets an element to zero; 0 turns it off.
    pub dropout: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_the_model_cannot_index() {
        let batch = |tokens: &[u32], length| MicroBatch {
            tokens: tokens.to_vec(),
            targets: tokens.to_vec(),
            length,
            first_sample: 0,
        };
        assert_eq!(batch(&[1, 2, 3, 4], 2).validate(5, 8), Ok(()));
        assert!(matches!(batch(&[1, 2, 3], 2).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[], 2).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[1, 2], 0).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[1, 5], 2).validate(5, 8), Err(BatchError::Token { token: 5, .. })));
        assert!(matches!(batch(&[1, 2], 2).validate(5, 1), Err(BatchError::Positions { .. })));
    }
}
