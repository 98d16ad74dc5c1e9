//! Sums in the tree and in lanes.

use sixfold_tensor::NORM_BLOCK;

use crate::rig::Rig;

pub(crate) fn compare(rig: &mut Rig) {
    let most = if rig.is_fast { 100_000 } else { 500 };
    rig.operation("tree_sum", 12, |stream, random| {
        let (parts, len) = (random.dim(20), random.dim(most));
        let mut values = stream.upload(&random.any_finite(parts * len));
        stream.tree_sum(values.view_mut(), len);
        vec![stream.to_vec(values.view())]
    });
    let blocks = if rig.is_fast { 700 } else { 20 };
    rig.operation("sum_of_squares_blocks", 6, |stream, random| {
        let len = random.dim(blocks * NORM_BLOCK);
        let values = stream.upload(&random.any_finite(len));
        let mut sums = stream.zeros(len.div_ceil(NORM_BLOCK));
        stream.sum_of_squares_blocks(values.view(), sums.view_mut());
        vec![stream.to_vec(sums.view())]
    });
    rig.operation("are_finite", 6, |stream, random| {
        let len = random.dim(most * 10);
        let mut values = random.any_finite(len);
        let finite = stream.are_finite(stream.upload(&values).view());
        values[len - 1 - random.below(len)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
        let not = stream.are_finite(stream.upload(&values).view());
        vec![vec![f32::from(u8::from(finite)), f32::from(u8::from(not))]]
    });
}
