//! Softmax and cross entropy on a GPU.

use super::{Cuda, Run};
use crate::VocabularyShard;

const SOURCE: &str = "loss";
/// Rows that a block of threads does, where sixteen threads do one.
const BLOCK_ROWS: usize = 16;
const THREADS: u32 = 256;

pub(crate) fn logit_maxima(cuda: &Cuda, logits: Run, shard: VocabularyShard, maxima: Run) {
    check(logits, shard, maxima.len);
    let launch = cuda.kernel(SOURCE, "logit_maxima").run(logits).count(shard.columns).count(shard.words);
    launch.count(maxima.len).run(maxima).launch(grid(maxima.len), [THREADS, 1]);
}

pub(crate) fn logit_exp_sums(cuda: &Cuda, logits: Run, shard: VocabularyShard, maxima: Run, sums: Run) {
    check(logits, shard, sums.len);
    assert_eq!(maxima.len, sums.len, "one maximum a row");
    let launch = cuda.kernel(SOURCE, "logit_exp_sums").run(logits).count(shard.columns).count(shard.words);
    launch.count(sums.len).run(maxima).run(sums).launch(grid(sums.len), [THREADS, 1]);
}

pub(crate) fn target_logits(cuda: &Cuda, logits: Run, shard: VocabularyShard, targets: Run, out: Run) {
    check(logits, shard, out.len);
    assert_eq!(targets.len, out.len, "one target a row");
    let launch = cuda.kernel(SOURCE, "target_logits").run(logits).count(shard.columns).count(shard.words);
    launch.size(shard.first_id).count(out.len).run(targets).run(out).over(out.len);
}

/// `of_rows` are each row's maximum, sum and target's logit.
pub(crate) fn cross_entropy_losses(cuda: &Cuda, of_rows: [Run; 3], targets: Run, losses: Run) {
    let rows = losses.len;
    assert_eq!((of_rows.map(|run| run.len), targets.len), ([rows; 3], rows), "rows of a loss");
    let launch =
        of_rows.into_iter().fold(cuda.kernel(SOURCE, "cross_entropy_losses"), |launch, run| launch.run(run));
    launch.run(targets).count(rows).run(losses).over(rows);
}

pub(crate) fn cross_entropy_gradient(
    cuda: &Cuda,
    logits: Run,
    shard: VocabularyShard,
    targets: Run,
    [maxima, sums]: [Run; 2],
    scale: f32,
) {
    let rows = targets.len;
    check(logits, shard, rows);
    assert_eq!((maxima.len, sums.len), (rows, rows), "one maximum and one sum a row");
    if shard.columns == 0 {
        return;
    }
    let launch =
        cuda.kernel(SOURCE, "cross_entropy_gradient").run(logits).count(shard.columns).count(shard.words);
    let launch = launch.size(shard.first_id).run(targets).run(maxima).run(sums).float(scale);
    launch.launch([rows, 1], [THREADS, 1]);
}

fn check(logits: Run, shard: VocabularyShard, rows: usize) {
    assert!(shard.words <= shard.columns, "{} words in {} columns", shard.words, shard.columns);
    assert_eq!(logits.len, rows * shard.columns, "shape of the logits");
}

fn grid(rows: usize) -> [usize; 2] {
    [rows.div_ceil(BLOCK_ROWS), 1]
}
