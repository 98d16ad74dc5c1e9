//! How every wide tensor is cut into logical shards, the same for any number of machines.
//!
//! A logical shard is a unit of arithmetic, not a place: a rank owns a run of them, computes each
//! by itself, and partial results are added in one balanced tree over the logical index. So the
//! sums do not depend on how many ranks there are. Read [`Sharding`] first.

use std::ops::Range;

use crate::config::ModelConfig;

/// Most logical shards that a model may be cut into.
pub const LOGICAL_SHARDS_MAX: usize = 64;

/// What one logical shard holds of each layer, and of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Query heads.
    pub query_heads: Range<usize>,
    /// Key-value heads that those query heads read. Where there are fewer of them than shards,
    /// neighbouring shards hold copies of the same head.
    pub kv_heads: Range<usize>,
    /// Columns of the feed-forward layer.
    pub feed_forward: Range<usize>,
    /// Rows of the embedding and of the head.
    pub vocabulary: Range<usize>,
}

/// The cut of a model into `logical` shards (a power of two).
///
/// Shards are as even as whole heads, columns and rows allow, so the vocabulary needs no padding.
/// A shard that gets nothing of a tensor is skipped there; it does not add a zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharding {
    shards: Vec<Shard>,
}

/// The number of logical shards is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} logical shards: the number must be a power of two up to {LOGICAL_SHARDS_MAX}")]
pub struct ShardingError(pub usize);

impl Sharding {
    /// Cuts `config`'s tensors into `logical` shards.
    ///
    /// # Errors
    /// [`ShardingError`] unless `logical` is a power of two of at most [`LOGICAL_SHARDS_MAX`].
    pub fn new(config: &ModelConfig, logical: usize) -> Result<Self, ShardingError> {
        if !logical.is_power_of_two() || logical > LOGICAL_SHARDS_MAX {
            return Err(ShardingError(logical));
        }
        let shards = (0..logical)
            .map(|index| {
                let (query_heads, kv_heads) = heads_of(config, logical, index);
                Shard {
                    query_heads,
                    kv_heads,
                    feed_forward: even_part(config.intermediate_size, logical, index),
                    vocabulary: even_part(config.vocab_size, logical, index),
                }
            })
            .collect();
        Ok(Self { shards })
    }

    /// Number of logical shards, empty ones included.
    pub fn logical(&self) -> usize {
        self.shards.len()
    }

    /// What shard `index` holds.
    ///
    /// # Panics
    /// If `index` is not below [`Self::logical`].
    pub fn shard(&self, index: usize) -> &Shard {
        &self.shards[index]
    }

    /// The first shard that holds the same key-value heads as shard `index`: the one whose copy
    /// counts in the gradient norm and is written to files.
    pub fn kv_original(&self, index: usize) -> usize {
        let heads = &self.shards[index].kv_heads;
        self.shards.iter().position(|shard| shard.kv_heads == *heads).unwrap_or(index)
    }

    /// Whether other shards hold copies of shard `index`'s key-value heads.
    pub fn is_kv_copied(&self, index: usize) -> bool {
        let heads = &self.shards[index].kv_heads;
        !heads.is_empty() && self.shards.iter().filter(|shard| shard.kv_heads == *heads).count() > 1
    }

    /// Whether several shards hold copies of one key-value head.
    pub fn has_kv_copies(&self) -> bool {
        (0..self.logical()).any(|index| self.is_kv_copied(index))
    }
}

/// Part `index` of `total` things laid out over `parts`: lengths differ by at most one, and the
/// longer parts are spread, so that any aligned run of parts is even too.
///
/// # Panics
/// If `parts` is zero.
pub fn even_part(total: usize, parts: usize, index: usize) -> Range<usize> {
    total * index / parts..total * (index + 1) / parts
}

/// Query and key-value heads of one shard: whole groups while there are enough of them, else
/// whole query heads of a single group.
fn heads_of(config: &ModelConfig, logical: usize, index: usize) -> (Range<usize>, Range<usize>) {
    let (kv, group) = (config.num_key_value_heads, config.heads_per_group());
    if logical <= kv {
        let kv_heads = even_part(kv, logical, index);
        return (kv_heads.start * group..kv_heads.end * group, kv_heads);
    }
    let head = (0..kv).find(|&head| even_part(logical, kv, head).contains(&index)).unwrap_or(kv - 1);
    let shards = even_part(logical, kv, head);
    let part = even_part(group, shards.len(), index - shards.start);
    let query_heads = head * group + part.start..head * group + part.end;
    let kv_heads = if query_heads.is_empty() { head..head } else { head..head + 1 };
    (query_heads, kv_heads)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::tiny;

    proptest! {
        #[test]
        fn every_head_column_and_row_is_held_once(
            kv in 1_usize..9, group in 1_usize..5, ffn in 1_usize..50, vocab in 1_usize..200, log in 0_u32..5,
        ) {
            let config = ModelConfig {
                num_attention_heads: kv * group, num_key_value_heads: kv, intermediate_size: ffn,
                vocab_size: vocab, ..tiny()
            };
            let sharding = Sharding::new(&config, 1 << log).unwrap();
            let all = |of: fn(&Shard) -> Range<usize>| -> Vec<usize> {
                (0..sharding.logical()).flat_map(|index| of(sharding.shard(index))).collect()
            };
            prop_assert_eq!(all(|s| s.query_heads.clone()), (0..kv * group).collect::<Vec<_>>());
            prop_assert_eq!(all(|s| s.feed_forward.clone()), (0..ffn).collect::<Vec<_>>());
            prop_assert_eq!(all(|s| s.vocabulary.clone()), (0..vocab).collect::<Vec<_>>());
            let mut kv_heads = all(|s| s.kv_heads.clone());
            kv_heads.dedup();
            prop_assert_eq!(kv_heads, (0..kv).collect::<Vec<_>>());
            for index in 0..sharding.logical() {
                let shard = sharding.shard(index);
                for head in shard.query_heads.clone() {
                    prop_assert!(shard.kv_heads.contains(&(head / group)));
                }
                prop_assert!(shard.kv_heads.is_empty() == shard.query_heads.is_empty());
            }
        }
    }

    #[test]
    fn key_value_heads_are_copied_where_shards_outnumber_them() {
        let config = ModelConfig { num_attention_heads: 8, num_key_value_heads: 2, ..tiny() };
        let sharding = Sharding::new(&config, 4).unwrap();
        assert!(sharding.has_kv_copies());
        assert_eq!((0..4).map(|i| sharding.kv_original(i)).collect::<Vec<_>>(), [0, 0, 2, 2]);
        assert!(!Sharding::new(&config, 2).unwrap().has_kv_copies());
    }

    #[test]
    fn refuses_a_number_of_shards_that_has_no_balanced_tree() {
        assert_eq!(Sharding::new(&tiny(), 3), Err(ShardingError(3)));
        assert_eq!(Sharding::new(&tiny(), 0), Err(ShardingError(0)));
    }
}
