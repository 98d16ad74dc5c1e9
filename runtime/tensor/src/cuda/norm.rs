//! Norms on a GPU.

use super::rows::{columns_by_leaf, parts};
use super::{Cuda, Run};
use crate::Segment;

const SOURCE: &str = "norm";
/// Rows that a block of threads does.
const BLOCK_ROWS: usize = 16;
const THREADS: u32 = 256;

pub(crate) fn rms_norm(cuda: &Cuda, x: Run, w: Run, eps: f32, out: Run, rstd: Run) {
    assert_eq!((x.len, out.len), (rstd.len * w.len, x.len), "shapes of a norm");
    if w.len == 0 {
        return;
    }
    let launch = cuda.kernel(SOURCE, "rms_norm").run(x).run(w).count(w.len).count(rstd.len);
    launch.float(eps).run(out).run(rstd).launch(grid(rstd.len), [THREADS, 1]);
}

/// `saved` are the input, the weight and each row's reciprocal root mean square.
pub(crate) fn rms_norm_backward(
    cuda: &Cuda,
    dy: Run,
    [x, w, rstd]: [Run; 3],
    segments: &[Segment],
    dx: Run,
    dw: Run,
) {
    let (width, rows) = (w.len, rstd.len);
    let Some(leaves) = check_backward(dy, x, [width, rows], segments, dx, dw) else { return };
    let launch = cuda.kernel(SOURCE, "rms_norm_backward_x").run(dy).run(x).run(w).run(rstd);
    launch.count(width).count(rows).run(dx).launch(grid(rows), [THREADS, 1]);
    let parts = parts(cuda, segments, leaves, rows);
    let launch = cuda.kernel(SOURCE, "rms_norm_backward_w").run(dy).run(x).run(rstd);
    let (grid, block) = columns_by_leaf(width, leaves);
    launch.count(width).run(parts.run()).run(dw).launch(grid, block);
}

/// `parameters` are the weight and the bias, `found` takes means and reciprocal standard deviations.
pub(crate) fn layer_norm(
    cuda: &Cuda,
    x: Run,
    [w, bias]: [Run; 2],
    eps: f32,
    out: Run,
    [mean, rstd]: [Run; 2],
) {
    assert_eq!((x.len, out.len), (rstd.len * w.len, x.len), "shapes of a norm");
    assert_eq!((bias.len, mean.len), (w.len, rstd.len), "shapes of a norm");
    if w.len == 0 {
        return;
    }
    let launch = cuda.kernel(SOURCE, "layer_norm").run(x).run(w).run(bias).count(w.len).count(rstd.len);
    launch.float(eps).run(out).run(mean).run(rstd).launch(grid(rstd.len), [THREADS, 1]);
}

/// `saved` are the input, the weight, means and reciprocal standard deviations.
pub(crate) fn layer_norm_backward(
    cuda: &Cuda,
    dy: Run,
    [x, w, mean, rstd]: [Run; 4],
    segments: &[Segment],
    dx: Run,
    [dw, d_bias]: [Run; 2],
) {
    let (width, rows) = (w.len, rstd.len);
    assert_eq!((mean.len, d_bias.len), (rows, dw.len), "shapes of a norm");
    let Some(leaves) = check_backward(dy, x, [width, rows], segments, dx, dw) else { return };
    let launch = cuda.kernel(SOURCE, "layer_norm_backward_x").run(dy).run(x).run(w).run(mean).run(rstd);
    launch.count(width).count(rows).run(dx).launch(grid(rows), [THREADS, 1]);
    let parts = parts(cuda, segments, leaves, rows);
    let launch = cuda.kernel(SOURCE, "layer_norm_backward_w").run(dy).run(x).run(mean).run(rstd);
    let (grid, block) = columns_by_leaf(width, leaves);
    launch.count(width).run(parts.run()).run(dw).run(d_bias).launch(grid, block);
}

fn grid(rows: usize) -> [usize; 2] {
    [rows.div_ceil(BLOCK_ROWS), 1]
}

/// The number of leaves; None where there is nothing to do.
fn check_backward(
    dy: Run,
    x: Run,
    [width, rows]: [usize; 2],
    segments: &[Segment],
    dx: Run,
    dw: Run,
) -> Option<usize> {
    assert_eq!(x.len, rows * width, "shapes of a norm");
    assert_eq!((dy.len, dx.len), (x.len, x.len), "shapes of a norm's gradients");
    if width == 0 {
        return None;
    }
    assert_eq!(dw.len % width, 0, "a norm's leaves");
    assert_eq!(segments.last().map_or(0, |last| last.end), rows, "rows of the segments of a sum");
    Some(dw.len / width)
}
