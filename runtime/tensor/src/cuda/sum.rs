//! Sums in the tree and in lanes on a GPU.

use super::{Cuda, Run};
use crate::NORM_BLOCK;

const SOURCE: &str = "sum";
/// Blocks of a search: enough for all of a GPU.
const SEARCH_BLOCKS: usize = 1024;

pub(crate) fn tree_sum(cuda: &Cuda, parts: Run, len: usize) {
    cuda.kernel(SOURCE, "tree_sum").run(parts).size(len).size(parts.len / len).over(len);
}

pub(crate) fn sum_of_squares_blocks(cuda: &Cuda, values: Run, sums: Run) {
    assert_eq!(sums.len, values.len.div_ceil(NORM_BLOCK), "sums of squares, one a block");
    let launch = cuda.kernel(SOURCE, "sum_of_squares").run(values).size(values.len).run(sums).size(sums.len);
    launch.launch([sums.len.div_ceil(16), 1], [256, 1]);
}

pub(crate) fn are_finite(cuda: &Cuda, values: Run) -> bool {
    let found = cuda.upload(&[0_u32]);
    let launch = cuda.kernel(SOURCE, "find_not_finite").run(values).size(values.len).run(found.run());
    launch.launch([values.len.div_ceil(256).min(SEARCH_BLOCKS), 1], [256, 1]);
    let mut wrong = [0_u32];
    cuda.copy_out(found.run(), &mut wrong);
    wrong == [0]
}
