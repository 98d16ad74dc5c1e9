//! Element by element on a GPU.

use super::{Cuda, Matrix, Run};

const SOURCE: &str = "elementwise";

pub(crate) fn fill(cuda: &Cuda, to: Run, value: f32) {
    cuda.kernel(SOURCE, "fill").run(to).size(to.len).float(value).over(to.len);
}

pub(crate) fn copy(cuda: &Cuda, from: Run, to: Run) {
    assert_eq!(from.len, to.len, "lengths of a copy");
    cuda.kernel(SOURCE, "copy").run(from).run(to).size(to.len).over(to.len);
}

pub(crate) fn copy_matrix(cuda: &Cuda, from: Matrix, to: Matrix) {
    assert_eq!((from.rows, from.cols), (to.rows, to.cols), "shapes of two matrices");
    let launch = cuda.kernel(SOURCE, "copy_matrix").rows(from).rows(to);
    launch.size(to.rows).size(to.cols).over(to.rows * to.cols);
}

pub(crate) fn add_matrix(cuda: &Cuda, sum: Matrix, term: Matrix) {
    assert_eq!((term.rows, term.cols), (sum.rows, sum.cols), "shapes of two matrices");
    let launch = cuda.kernel(SOURCE, "add_matrix").rows(sum).rows(term);
    launch.size(sum.rows).size(sum.cols).over(sum.rows * sum.cols);
}

pub(crate) fn add_assign(cuda: &Cuda, sum: Run, term: Run) {
    assert_eq!(sum.len, term.len, "lengths of a sum");
    cuda.kernel(SOURCE, "add_assign").run(sum).run(term).size(sum.len).over(sum.len);
}

pub(crate) fn max_assign(cuda: &Cuda, max: Run, other: Run) {
    assert_eq!(max.len, other.len, "lengths of a maximum");
    cuda.kernel(SOURCE, "max_assign").run(max).run(other).size(max.len).over(max.len);
}

pub(crate) fn scale(cuda: &Cuda, values: Run, factor: f32) {
    cuda.kernel(SOURCE, "scale").run(values).size(values.len).float(factor).over(values.len);
}
