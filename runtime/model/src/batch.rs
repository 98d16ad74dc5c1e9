//! What a forward pass is told about its input: [`MicroBatch`], and the [`StepSeed`] from which
//! every random number of the step follows.

use std::ops::Range;

use sixfold_tensor::IGNORED_TARGET;

/// Whole sequences that go through the model together.
///
/// Row `s * length + i` of an activation belongs to token `i` of sequence `s`. A token attends to
/// the tokens of its own document up to itself, and its position counts from the document's start:
/// what the model says about a document does not depend on what it is packed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Input tokens, sequence after sequence; used by the slice that holds the embedding.
    pub tokens: Vec<u32>,
    /// The token after each input token, or [`IGNORED_TARGET`] where the loss does not count: after
    /// a document's last token. Used by the slice that holds the head.
    pub targets: Vec<u32>,
    /// Rows at which documents begin, ascending. Every sequence begins with one: a document that
    /// the sequence before began goes on as a new one.
    pub document_starts: Vec<usize>,
    /// Tokens of one sequence; divides the length of `tokens`.
    pub length: usize,
    /// Data groups that the micro-batch holds whole, side by side, as many sequences each: a power of two. 1 also
    /// where it is only a part of one.
    pub groups: usize,
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
    /// The documents' starts do not ascend, lie outside, or leave out the start of a sequence.
    #[error("the starts of the documents do not cut {tokens} tokens in sequences of {length}")]
    Documents {
        /// Input tokens.
        tokens: usize,
        /// Tokens of one sequence.
        length: usize,
    },
    /// The sequences cannot be shared out among the data groups.
    #[error("{sequences} sequences are not the same number for each of {groups} data groups, a power of two")]
    Groups {
        /// Sequences.
        sequences: usize,
        /// Data groups.
        groups: usize,
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
    /// Sequences of `length` tokens that are a document each, the first of them the step's first.
    pub fn of_documents(tokens: Vec<u32>, targets: Vec<u32>, length: usize) -> Self {
        let document_starts = (0..tokens.len()).step_by(length.max(1)).collect();
        Self { tokens, targets, document_starts, length, groups: 1, first_sample: 0 }
    }

    /// Whether another micro-batch holds the next data groups of the step, in the same shape.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        self.first_sample + self.sequences() as u64 == next.first_sample
            && (self.tokens.len(), self.length, self.groups) == (next.tokens.len(), next.length, next.groups)
    }

    /// Adds the sequences and data groups of a micro-batch that follows.
    pub fn append(&mut self, next: Self) {
        let rows = self.tokens.len();
        self.document_starts.extend(next.document_starts.iter().map(|start| rows + start));
        self.tokens.extend(next.tokens);
        self.targets.extend(next.targets);
        self.groups += next.groups;
    }

    /// The rows of each data group, in order.
    pub(crate) fn group_rows(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.tokens.len() / self.groups;
        (0..self.groups).map(move |group| group * rows..(group + 1) * rows)
    }

    /// Those of each sequence of a data group.
    pub(crate) fn sequence_rows(&self, group: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let length = self.length;
        group.step_by(length).map(move |first| first..first + length)
    }

    /// Targets that count in the loss.
    pub fn counted_targets(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED_TARGET).count()
    }

    /// The rows of each document, in order.
    pub fn documents(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let ends = self.document_starts.iter().skip(1).copied().chain([self.tokens.len()]);
        self.document_starts.iter().zip(ends).map(|(start, end)| *start..end)
    }

    /// The position of each row in its document.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.documents().flat_map(|rows| 0..rows.len() as u32).collect()
    }

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
        let (sequences, groups) = (tokens / length, self.groups);
        if !groups.is_power_of_two() || sequences % groups != 0 {
            return Err(BatchError::Groups { sequences, groups });
        }
        if !self.documents_fit() {
            return Err(BatchError::Documents { tokens, length });
        }
        let outside = |token: &&u32| **token as usize >= vocabulary;
        let targets = self.targets.iter().filter(|target| **target != IGNORED_TARGET);
        match self.tokens.iter().chain(targets).find(outside) {
            Some(&token) => Err(BatchError::Token { token, vocabulary }),
            None => Ok(()),
        }
    }

    fn documents_fit(&self) -> bool {
        let starts = &self.document_starts;
        let mut sequences = (0..self.tokens.len()).step_by(self.length);
        starts.is_sorted_by(|a, b| a < b)
            && starts.last().is_some_and(|last| *last < self.tokens.len())
            && sequences.all(|start| starts.binary_search(&start).is_ok())
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
    /// The same of the dropout before adapters.
    pub adapter_dropout: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_the_model_cannot_index() {
        let batch =
            |tokens: &[u32], length| MicroBatch::of_documents(tokens.to_vec(), tokens.to_vec(), length);
        assert_eq!(batch(&[1, 2, 3, 4], 2).validate(5, 8), Ok(()));
        assert!(matches!(batch(&[1, 2, 3], 2).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[], 2).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[1, 2], 0).validate(5, 8), Err(BatchError::Shape { .. })));
        assert!(matches!(batch(&[1, 5], 2).validate(5, 8), Err(BatchError::Token { token: 5, .. })));
        assert!(matches!(batch(&[1, 2], 2).validate(5, 1), Err(BatchError::Positions { .. })));
        let of_groups = |groups| MicroBatch { groups, ..batch(&[1; 12], 2) }.validate(5, 8);
        assert_eq!((of_groups(1), of_groups(2)), (Ok(()), Ok(())));
        for groups in [0, 3, 4] {
            assert_eq!(of_groups(groups), Err(BatchError::Groups { sequences: 6, groups }));
        }
        let ignored = MicroBatch { targets: vec![IGNORED_TARGET; 2], ..batch(&[1, 2], 2) };
        assert_eq!((ignored.validate(5, 8), ignored.counted_targets()), (Ok(()), 0));
    }

    #[test]
    fn refuses_documents_that_do_not_cut_the_sequences() {
        let cut = |starts: &[usize]| {
            let batch = MicroBatch::of_documents(vec![1; 6], vec![1; 6], 3);
            MicroBatch { document_starts: starts.to_vec(), ..batch }.validate(5, 8)
        };
        assert_eq!((cut(&[0, 3]), cut(&[0, 2, 3, 4, 5])), (Ok(()), Ok(())));
        for wrong in [&[][..], &[0], &[3], &[0, 2], &[0, 3, 3], &[3, 0], &[0, 3, 6]] {
            assert_eq!(cut(wrong), Err(BatchError::Documents { tokens: 6, length: 3 }), "{wrong:?}");
        }
    }

    #[test]
    fn takes_in_groups_whose_sequences_follow() {
        let group = |token: u32, first_sample| {
            let batch = MicroBatch::of_documents(vec![token; 4], vec![token + 1; 4], 2);
            MicroBatch { first_sample, document_starts: vec![0, 1, 2], ..batch }
        };
        let mut batch = group(1, 6);
        assert!(batch.is_followed_by(&group(2, 8)) && !batch.is_followed_by(&group(2, 10)));
        batch.append(group(2, 8));
        assert_eq!((batch.tokens.as_slice(), batch.groups), (&[1, 1, 1, 1, 2, 2, 2, 2][..], 2));
        assert_eq!(batch.document_starts, [0, 1, 2, 4, 5, 6]);
        assert_eq!(batch.group_rows().collect::<Vec<_>>(), [0..4, 4..8]);
    }

    #[test]
    fn positions_restart_with_every_document() {
        let batch = MicroBatch::of_documents(vec![1; 6], vec![1; 6], 3);
        let batch = MicroBatch { document_starts: vec![0, 1, 3], ..batch };
        assert_eq!(batch.documents().collect::<Vec<_>>(), [0..1, 1..3, 3..6]);
        assert_eq!(batch.positions(), [0, 0, 1, 0, 1, 2]);
    }
}
