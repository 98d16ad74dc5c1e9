//! Which data groups go through the model together: [`passes`].

use sixfold_model::MicroBatch;

/// What goes through the pipeline, in order, and how many of them are one sum.
///
/// Where a group is one micro-batch, neighbouring groups go together: their products are larger, and their gradients
/// are added in the tree without a buffer each. Every stage is left with two micro-batches at least, where there are
/// as many groups.
pub(crate) fn passes(
    groups: Vec<Vec<MicroBatch>>,
    stages: usize,
    pass_tokens: usize,
) -> (Vec<MicroBatch>, usize) {
    let per_group = groups[0].len();
    let (count, rows) = (groups.len(), groups[0][0].tokens.len());
    let micro_batches: Vec<MicroBatch> = groups.into_iter().flatten().collect();
    let for_stages = if stages > 1 { count / (2 * stages) } else { count };
    let together = (pass_tokens / rows.max(1)).min(for_stages);
    let follow = micro_batches.windows(2).all(|pair| pair[0].is_followed_by(&pair[1]));
    if per_group > 1 || together < 2 || !follow {
        return (micro_batches, per_group);
    }
    let together = 1 << together.ilog2();
    let mut passes: Vec<MicroBatch> = Vec::with_capacity(count / together);
    for (index, micro_batch) in micro_batches.into_iter().enumerate() {
        match passes.last_mut().filter(|_| index % together != 0) {
            Some(pass) => pass.append(micro_batch),
            None => passes.push(micro_batch),
        }
    }
    (passes, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of so many micro-batches, each of two sequences of four tokens.
    fn groups(count: usize, per_group: usize) -> Vec<Vec<MicroBatch>> {
        let micro_batch = |index: usize| MicroBatch {
            first_sample: 2 * index as u64,
            ..MicroBatch::of_documents(vec![1; 8], vec![1; 8], 4)
        };
        let group = |group: usize| (0..per_group).map(|at| micro_batch(group * per_group + at)).collect();
        (0..count).map(group).collect()
    }

    /// Groups of each pass, and how many passes are one sum.
    fn shape(groups: Vec<Vec<MicroBatch>>, stages: usize, tokens: usize) -> (Vec<usize>, usize) {
        let (passes, per_sum) = passes(groups, stages, tokens);
        (passes.iter().map(|pass| pass.groups).collect(), per_sum)
    }

    #[test]
    fn neighbouring_groups_go_together_up_to_the_tokens_of_a_pass() {
        assert_eq!(shape(groups(8, 1), 1, 1 << 20), (vec![8], 1));
        assert_eq!(shape(groups(8, 1), 1, 31), (vec![2; 4], 1));
        assert_eq!(shape(groups(8, 1), 1, 15), (vec![1; 8], 1));
    }

    #[test]
    fn every_stage_is_left_with_two_micro_batches() {
        assert_eq!(shape(groups(8, 1), 2, 1 << 20), (vec![2; 4], 1));
        assert_eq!(shape(groups(8, 1), 4, 1 << 20), (vec![1; 8], 1));
    }

    #[test]
    fn groups_that_are_cut_or_do_not_follow_stay_apart() {
        assert_eq!(shape(groups(4, 2), 1, 1 << 20), (vec![1; 8], 2));
        let mut apart = groups(4, 1);
        apart[2][0].first_sample += 1;
        assert_eq!(shape(apart, 1, 1 << 20), (vec![1; 4], 1));
    }
}
