//! Whole documents, packed into sequences: [`Packing`].

use std::collections::BTreeMap;

/// Documents side by side in sequences of equal length, none of them cut.
///
/// The longest documents are placed first, each where it leaves the least room (best-fit decreasing; for language models
/// Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination"). It is a function of the lengths alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    /// The documents of all sequences, sequence after sequence.
    documents: Vec<u64>,
    /// How many of them lie in the sequences up to each.
    ends: Vec<usize>,
}

impl Packing {
    /// Packs documents, each with the rows that it takes, into sequences of `length` rows. One that takes more, or none,
    /// is left out.
    pub(crate) fn new(documents: impl IntoIterator<Item = (u64, usize)>, length: usize) -> Self {
        let fits = |rows: usize| (1..=length).contains(&rows);
        let mut waiting: Vec<(u64, usize)> = documents.into_iter().filter(|&(_, rows)| fits(rows)).collect();
        waiting.sort_by_key(|&(document, rows)| (std::cmp::Reverse(rows), document));
        let mut sequences: Vec<Vec<u64>> = Vec::new();
        // Sequences by the room that they have left.
        let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (document, rows) in waiting {
            let tightest = open.range(rows..).next().map(|(room, _)| *room);
            let (sequence, room) = match tightest.and_then(|room| Some((take(&mut open, room)?, room))) {
                Some(found) => found,
                None => {
                    sequences.push(Vec::new());
                    (sequences.len() - 1, length)
                }
            };
            sequences[sequence].push(document);
            if room > rows {
                open.entry(room - rows).or_default().push(sequence);
            }
        }
        let mut packing = Self::default();
        for sequence in sequences {
            packing.documents.extend(sequence);
            packing.ends.push(packing.documents.len());
        }
        packing
    }

    /// Sequences.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The documents of a sequence; none where there is no such sequence.
    pub(crate) fn sequence(&self, sequence: usize) -> &[u64] {
        let start = sequence.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(sequence).map_or(&[], |&end| &self.documents[start..end])
    }
}

/// Takes a sequence that has exactly that room.
fn take(open: &mut BTreeMap<usize, Vec<usize>>, room: usize) -> Option<usize> {
    let sequences = open.get_mut(&room)?;
    let taken = sequences.pop();
    if sequences.is_empty() {
        open.remove(&room);
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequences(packing: &Packing) -> Vec<&[u64]> {
        (0..packing.len()).map(|sequence| packing.sequence(sequence)).collect()
    }

    proptest! {
        #[test]
        fn every_document_that_fits_is_in_one_sequence_whole(
            rows in prop::collection::vec(0_usize..20, 0..200),
            length in 1_usize..30,
        ) {
            let packing = Packing::new((0..).zip(rows.iter().copied()), length);
            let mut packed = Vec::new();
            for documents in sequences(&packing) {
                let taken: usize = documents.iter().map(|&document| rows[document as usize]).sum();
                prop_assert!(taken <= length && !documents.is_empty());
                packed.extend_from_slice(documents);
            }
            packed.sort_unstable();
            let fit = |document: &u64| (1..=length).contains(&rows[*document as usize]);
            prop_assert_eq!(packed, (0..rows.len() as u64).filter(fit).collect::<Vec<_>>());
            // No two sequences would fit into one.
            let taken = |documents: &&[u64]| documents.iter().map(|&one| rows[one as usize]).sum::<usize>();
            let mut least: Vec<usize> = sequences(&packing).iter().map(taken).collect();
            least.sort_unstable();
            prop_assert!(least.len() < 2 || least[0] + least[1] > length);
        }
    }

    #[test]
    fn documents_go_where_they_leave_the_least_room() {
        let packing = Packing::new([(0, 3), (1, 6), (2, 9), (3, 4), (4, 1), (5, 11)], 10);
        assert_eq!(sequences(&packing), [&[2, 4][..], &[1, 3], &[0]]);
        assert_eq!(packing.sequence(3), &[] as &[u64]);
    }
}
