//! Memory, copies, and operations element by element.

use sixfold_tensor::{Compression, Mat, MatMut};

use crate::rig::Rig;

pub(crate) fn compare(rig: &mut Rig) {
    let most = if rig.is_fast { 3_000_000 } else { 3000 };
    rig.operation("filled, zeros, fill", 3, |stream, random| {
        let len = random.dim(most);
        let mut values = stream.filled(len, -1.5);
        stream.fill(values.slice_mut(len / 3..len / 2), f32::MIN_POSITIVE);
        vec![stream.to_vec(values.view()), stream.to_vec(stream.zeros(len).view())]
    });
    rig.operation("copy, from_host, to_host", 3, |stream, random| {
        let len = random.dim(most) + 8;
        let from = stream.upload(&random.any(len));
        let mut to = stream.copy_of(from.view());
        stream.copy(from.slice(0..len / 2), to.slice_mut(len - len / 2..len));
        stream.from_host(&[1.0, 2.0, 3.0], to.slice_mut(2..5));
        stream.with_host(to.slice_mut(1..4), |some| some[1] = -7.0);
        let mut some = [0.0; 5];
        stream.to_host(to.slice(3..8), &mut some);
        vec![stream.to_vec(to.view()), some.to_vec(), stream.mirror(from).host().to_vec()]
    });
    rig.operation("copy_matrix, add_matrix", 6, |stream, random| {
        let side = if most > 3000 { 1500 } else { 60 };
        let (rows, cols) = (random.dim(side), random.dim(side));
        let (before, after) = (random.below(5), random.below(5));
        let from = stream.upload(&random.any_finite(rows * (cols + 3)));
        let wide = before + cols + after;
        let mut to = stream.upload(&random.any_finite(rows * wide));
        let mat = Mat::row_major(from.view(), rows, cols + 3).columns(2..2 + cols);
        let columns = before..before + cols;
        stream.add_matrix(MatMut::row_major(to.view_mut(), rows, wide).columns(columns.clone()), mat);
        let sum = stream.to_vec(to.view());
        stream.copy_matrix(mat, MatMut::row_major(to.view_mut(), rows, wide).columns(columns));
        vec![sum, stream.to_vec(to.view())]
    });
    rig.operation("add_assign, scale", 4, |stream, random| {
        let len = random.dim(most);
        let mut sum = stream.upload(&random.any(len));
        stream.add_assign(sum.view_mut(), stream.upload(&random.any(len)).view());
        let added = stream.to_vec(sum.view());
        stream.scale(sum.view_mut(), 0.3);
        vec![added, stream.to_vec(sum.view())]
    });
    rig.operation("max_assign", 4, |stream, random| {
        let len = random.dim(most);
        let mut max = stream.upload(&random.any(len));
        stream.max_assign(max.view_mut(), stream.upload(&random.any(len)).view());
        vec![stream.to_vec(max.view())]
    });
    for compression in [Compression::Bf16, Compression::Int8, Compression::Nf4] {
        rig.operation(&format!("compress, expand, embed_compressed {compression:?}"), 4, |stream, random| {
            let (rows, width) = (random.dim(most / 100), random.dim(90));
            let table = stream.compress(&random.normal(rows * width), compression);
            let mut all = stream.zeros(rows * width);
            stream.expand(&table, all.view_mut());
            let ids: Vec<u32> = (0..40).map(|_| random.below(rows + 20) as u32).collect();
            let mut out = stream.upload(&random.normal(40 * width));
            stream.embed_compressed(
                &table,
                width,
                10,
                stream.upload_indices(&ids).slice(0..40),
                out.view_mut(),
            );
            let sizes = vec![table.len() as f32, table.bytes() as f32];
            vec![stream.to_vec(all.view()), stream.to_vec(out.view()), sizes]
        });
    }
}
