//! A process group whose sums form a balanced binary tree: [`TreeGroup`].
//!
//! Sums of short buffers, and of all buffers between two ranks, use recursive doubling. Longer ones
//! use recursive halving and an all-gather that runs it backwards (Rabenseifner 2004, "Optimization
//! of collective reduction operations", section 4), but with the *nearest* neighbour first: the
//! textbook's farthest-first form adds rank 0 to rank n/2, which is another tree. Each rank moves
//! `2 (n - 1) / n` of the buffer, as in a ring.

use std::ops::Range;
use std::time::Duration;

use sixfold_tensor::cpu::add_assign;
use sixfold_transport::link::{LinkError, TensorLink};

use crate::exchange::exchange;

/// Up to this many numbers, fewer messages are worth more than fewer bytes.
const SHORT: usize = 4096;

/// A collective failed. The group is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A member is gone, silent, or disagrees about the length.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The links do not make a group.
    #[error("index {index} with {partners} partners is not a member of a power-of-two group")]
    Membership {
        /// The member's index.
        index: usize,
        /// Links given.
        partners: usize,
    },
}

/// One member of a group of `2^k` ranks, linked to the `k` members whose index differs in one bit.
///
/// All members call the same methods with the same lengths in the same order.
pub struct TreeGroup {
    index: usize,
    /// The link to member `index ^ 2^k`, by `k`.
    partners: Vec<Box<dyn TensorLink>>,
    /// Bytes of the buffers reduced so far.
    reduced_bytes: u64,
}

impl TreeGroup {
    /// The group of one rank.
    pub fn alone() -> Self {
        Self { index: 0, partners: Vec::new(), reduced_bytes: 0 }
    }

    /// Member `index`; `partners[k]` is linked to member `index ^ 2^k` (see [`Self::partners_of`]).
    ///
    /// # Errors
    /// [`CollectiveError::Membership`] if the index does not fit the number of partners.
    pub fn new(index: usize, partners: Vec<Box<dyn TensorLink>>) -> Result<Self, CollectiveError> {
        match u32::try_from(partners.len()).ok().and_then(|levels| 1_usize.checked_shl(levels)) {
            Some(size) if index < size => Ok(Self { index, partners, reduced_bytes: 0 }),
            _ => Err(CollectiveError::Membership { index, partners: partners.len() }),
        }
    }

    /// The members that member `index` of a group of `size` needs links to, in the order of
    /// [`Self::new`]. `size` is a power of two.
    pub fn partners_of(index: usize, size: usize) -> impl Iterator<Item = usize> {
        (0..size.trailing_zeros()).map(move |level| index ^ (1 << level))
    }

    /// Position in the group, which is the position of the rank's leaf in the tree.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        1 << self.partners.len()
    }

    /// Bytes sent to other members so far.
    pub fn bytes_sent(&self) -> u64 {
        self.partners.iter().map(|link| link.bytes_sent()).sum()
    }

    /// Bytes that this member would have sent so far if every sum and maximum had gone around a ring:
    /// `2 (n - 1) / n` of each buffer.
    pub fn ring_bytes(&self) -> u64 {
        let members = self.size() as u64;
        self.reduced_bytes * 2 * (members - 1) / members
    }

    /// How long this member has waited for others so far.
    pub fn waited(&self) -> Duration {
        self.partners.iter().map(|link| link.waited()).sum()
    }

    /// Replaces each member's `buffer` by the sum over the group, in the tree's order.
    ///
    /// # Errors
    /// [`CollectiveError::Link`] if a member is gone or disagrees about the length.
    pub fn sum(&mut self, buffer: &mut [f32]) -> Result<(), CollectiveError> {
        if self.partners.len() < 2 || buffer.len() <= SHORT {
            return self.fold(buffer, |left, right| left + right);
        }
        let cuts = self.even_cuts(buffer.len());
        self.reduce_scatter(buffer, &cuts)?;
        self.all_gather(buffer, &cuts)
    }

    /// Which piece of a buffer this member ends with after [`Self::reduce_scatter`]: with the nearest
    /// neighbour first, pieces land at their members' indices with the bits reversed.
    pub fn piece(&self) -> usize {
        Self::piece_of(self.index, self.size())
    }

    /// The piece of member `index` of a group of `size`, a power of two.
    pub fn piece_of(index: usize, size: usize) -> usize {
        let levels = size.trailing_zeros();
        (0..levels).fold(0, |piece, level| piece | (index >> level & 1) << (levels - 1 - level))
    }

    /// The first half of [`Self::sum`], with the same bits: of the pieces `cuts[i]..cuts[i + 1]` of `buffer`,
    /// this member's ([`Self::piece`]) becomes the sum over the group; the rest holds anything afterwards.
    /// `cuts` rise from 0 to the buffer's length, one more of them than members, and are the same on all members.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn reduce_scatter(&mut self, buffer: &mut [f32], cuts: &[usize]) -> Result<(), CollectiveError> {
        self.reduced_bytes += size_of_val(buffer) as u64 / 2;
        let mut held = 0..self.size();
        for (level, link) in self.partners.iter_mut().enumerate() {
            let (keep, give) = halves(&held, self.index >> level & 1);
            exchange(link.as_mut(), buffer, numbers(cuts, &give), numbers(cuts, &keep), add_assign)?;
            held = keep;
        }
        Ok(())
    }

    /// Gives every member the pieces of all others: the halving of [`Self::reduce_scatter`] backwards, so that
    /// finished halves are exchanged, farthest neighbour first.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn all_gather(&mut self, buffer: &mut [f32], cuts: &[usize]) -> Result<(), CollectiveError> {
        self.reduced_bytes += size_of_val(buffer) as u64 / 2;
        let (own, levels) = (self.piece(), self.partners.len());
        for (level, link) in self.partners.iter_mut().enumerate().rev() {
            let held = 1 << (levels - level);
            let first = own / held * held;
            let (keep, give) = halves(&(first..first + held), self.index >> level & 1);
            exchange(
                link.as_mut(),
                buffer,
                numbers(cuts, &keep),
                numbers(cuts, &give),
                <[f32]>::copy_from_slice,
            )?;
        }
        Ok(())
    }

    /// Cuts of a buffer of `len` numbers into pieces that are as even as halving makes them.
    fn even_cuts(&self, len: usize) -> Vec<usize> {
        let members = self.size();
        let mut cuts = vec![len; members + 1];
        cuts[0] = 0;
        for level in 0..self.partners.len() {
            let pieces = members >> level;
            for first in (0..members).step_by(pieces) {
                cuts[first + pieces / 2] = cuts[first] + (cuts[first + pieces] - cuts[first]) / 2;
            }
        }
        cuts
    }

    /// Replaces each member's `values` by the largest of the group. Where one of two numbers is
    /// not a number, the one of the lower index stays.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn max(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.fold(values, |left, right| if right > left { right } else { left })
    }

    /// Replaces each member's `record` by member 0's.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn broadcast(&mut self, record: &mut [u8]) -> Result<(), CollectiveError> {
        for level in (0..self.partners.len()).rev() {
            let below = self.index % (2 << level);
            if below == 0 {
                self.partners[level].send(record)?;
            } else if below == 1 << level {
                self.partners[level].recv(record)?;
            }
        }
        Ok(())
    }

    /// Collects the members' records, all of one length, on member 0, one after another by index.
    /// Other members get nothing.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn gather(&mut self, record: &[u8]) -> Result<Option<Vec<u8>>, CollectiveError> {
        let mut collected = record.to_vec();
        for (level, link) in self.partners.iter_mut().enumerate() {
            if self.index >> level & 1 == 1 {
                link.send(&collected)?;
                return Ok(None);
            }
            let own = collected.len();
            collected.resize(2 * own, 0);
            link.recv(&mut collected[own..])?;
        }
        Ok(Some(collected))
    }

    /// Recursive doubling: after level `k` the members of each subtree of `2^(k+1)` agree.
    fn fold(&mut self, buffer: &mut [f32], combine: fn(f32, f32) -> f32) -> Result<(), CollectiveError> {
        self.reduced_bytes += size_of_val(buffer) as u64;
        let all = 0..buffer.len();
        for (level, link) in self.partners.iter_mut().enumerate() {
            let left = self.index >> level & 1 == 0;
            exchange(link.as_mut(), buffer, all.clone(), all.clone(), |own, theirs| {
                for (own, &theirs) in own.iter_mut().zip(theirs) {
                    *own = if left { combine(*own, theirs) } else { combine(theirs, *own) };
                }
            })?;
        }
        Ok(())
    }
}

/// Where the numbers of some neighbouring pieces lie.
fn numbers(cuts: &[usize], pieces: &Range<usize>) -> Range<usize> {
    cuts[pieces.start]..cuts[pieces.end]
}

/// The half of `range` that a member keeps and the one that it gives to its partner; the lower
/// member keeps the lower half.
fn halves(range: &Range<usize>, bit: usize) -> (Range<usize>, Range<usize>) {
    let middle = range.start + range.len() / 2;
    let (lower, upper) = (range.start..middle, middle..range.end);
    if bit == 0 { (lower, upper) } else { (upper, lower) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sixfold_tensor::cpu::tree_sum;

    use super::*;
    use crate::exchange::PIECE;
    use crate::testing::on_group;

    /// Numbers whose sum depends on the order, with zeros of both signs among them.
    fn leaf(seed: u64, index: usize, len: usize) -> Vec<f32> {
        let mut state = seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let number =
            |at: usize, value: f32| if at % 5 == 3 { -0.0 } else { value * 10_f32.powi(at as i32 % 7) };
        (0..len).map(|at| number(at, next())).collect()
    }

    fn serial(mut leaves: Vec<Vec<f32>>) -> Vec<u32> {
        let mut parts: Vec<&mut [f32]> = leaves.iter_mut().map(Vec::as_mut_slice).collect();
        tree_sum(&mut parts);
        bits(&leaves[0])
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn sums(size: usize, leaves: &[Vec<f32>]) -> Vec<Vec<u32>> {
        let each = leaves.len() / size;
        on_group(size, |mut group| {
            let mut own: Vec<Vec<f32>> = leaves[group.index() * each..(group.index() + 1) * each].to_vec();
            let mut parts: Vec<&mut [f32]> = own.iter_mut().map(Vec::as_mut_slice).collect();
            tree_sum(&mut parts);
            group.sum(&mut own[0]).unwrap();
            bits(&own[0])
        })
    }

    fn assert_equal_to_serial(size: usize, count: usize, len: usize, seed: u64) {
        let leaves: Vec<_> = (0..count).map(|index| leaf(seed, index, len)).collect();
        let expected = serial(leaves.clone());
        for sum in sums(size, &leaves) {
            assert!(sum == expected, "{size} ranks, {count} leaves of {len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn sum_has_the_bits_of_the_serial_tree(size in 0_u32..4, extra in 0_u32..3, len in 0_usize..9000, seed: u64) {
            assert_equal_to_serial(1 << size, 1 << (size + extra), len, seed);
        }
    }

    #[test]
    fn long_buffers_cross_a_narrow_window() {
        for (size, len) in [(2, 13 * PIECE + 1), (4, 9 * PIECE + 3), (8, 4 * PIECE - 1)] {
            assert_equal_to_serial(size, size, len, 7);
        }
    }

    #[test]
    fn negative_zeros_stay_negative() {
        for len in [3, SHORT + 1] {
            let leaves = vec![vec![-0.0; len]; 4];
            assert!(sums(4, &leaves).iter().flatten().all(|bits| *bits == (-0.0_f32).to_bits()));
        }
    }

    #[test]
    fn swapping_two_leaves_changes_the_bits() {
        for len in [100, SHORT + 100] {
            let mut leaves: Vec<_> = (0..4).map(|index| leaf(3, index, len)).collect();
            let straight = sums(4, &leaves);
            leaves.swap(1, 2);
            assert_ne!(straight, sums(4, &leaves), "{len}");
        }
    }

    #[test]
    fn a_long_sum_moves_what_a_ring_moves() {
        let len = 1 << 16;
        let sent = on_group(4, |mut group| {
            group.sum(&mut vec![1.0; len]).unwrap();
            (group.bytes_sent(), group.ring_bytes())
        });
        let ring = 2 * 3 * (len as u64 / 4) * 4;
        assert_eq!(sent, [(ring, ring); 4]);
    }

    #[test]
    fn uneven_pieces_of_a_sum_are_finished_by_their_owners_and_gathered() {
        let len = 3 * PIECE;
        for size in [1, 2, 4, 8] {
            let mut cuts = vec![0, 5, 5, PIECE + 7, PIECE + 8, 2 * PIECE, 2 * PIECE, len - 1];
            cuts.truncate(size);
            cuts.push(len);
            let leaves: Vec<_> = (0..size).map(|index| leaf(11, index, len)).collect();
            let expected = serial(leaves.clone());
            let results = on_group(size, |mut group| {
                let mut own = leaves[group.index()].clone();
                group.reduce_scatter(&mut own, &cuts).unwrap();
                let piece = cuts[group.piece()]..cuts[group.piece() + 1];
                let finished = bits(&own[piece.clone()]) == expected[piece.clone()];
                own[..piece.start].fill(f32::NAN);
                own[piece.end..].fill(f32::NAN);
                group.all_gather(&mut own, &cuts).unwrap();
                (finished, bits(&own) == expected, group.piece())
            });
            assert!(results.iter().all(|(finished, gathered, _)| *finished && *gathered), "{size}");
            let mut pieces: Vec<_> = results.iter().map(|(.., piece)| *piece).collect();
            pieces.sort_unstable();
            assert!(pieces.into_iter().eq(0..size));
        }
    }

    #[test]
    fn max_is_the_same_everywhere() {
        let results = on_group(8, |mut group| {
            let mut values = [group.index() as f32, -(group.index() as f32), -0.0];
            group.max(&mut values).unwrap();
            bits(&values)
        });
        assert!(results.iter().all(|result| *result == bits(&[7.0, -0.0, -0.0])));
    }

    #[test]
    fn broadcast_and_gather_are_by_index() {
        let results = on_group(8, |mut group| {
            let mut record = [group.index() as u8, 9];
            let gathered = group.gather(&record).unwrap();
            group.broadcast(&mut record).unwrap();
            (record, gathered)
        });
        assert!(results.iter().all(|(record, _)| *record == [0, 9]));
        let all: Vec<u8> = (0..8).flat_map(|index| [index, 9]).collect();
        assert_eq!(results[0].1.as_ref(), Some(&all));
        assert!(results[1..].iter().all(|(_, gathered)| gathered.is_none()));
    }

    #[test]
    fn a_member_that_leaves_is_an_error_for_its_partner() {
        let results =
            on_group(
                2,
                |mut group| {
                    if group.index() == 0 { None } else { Some(group.sum(&mut [1.0]).is_err()) }
                },
            );
        assert_eq!(results, [None, Some(true)]);
    }

    #[test]
    fn an_index_outside_of_the_group_is_refused() {
        assert!(matches!(
            TreeGroup::new(1, vec![]),
            Err(CollectiveError::Membership { index: 1, partners: 0 })
        ));
        assert_eq!(TreeGroup::partners_of(5, 8).collect::<Vec<_>>(), [4, 7, 1]);
    }
}
