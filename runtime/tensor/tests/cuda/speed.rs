//! How fast products are on a GPU.

use std::time::Instant;

use sixfold_tensor::{Device, Dtype, Leaves, Mat, MatMut, Start};

/// Prints the speed of products of some shapes.
pub(crate) fn of_products(device: &Device) {
    let stream = device.stream();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for [m, n, k] in
            [[4096, 4096, 4096], [8192, 3072, 768], [8192, 768, 3072], [1024, 1024, 1024], [1, 4096, 4096]]
        {
            let (a, b) = (stream.filled(m * k, 0.5), stream.filled(n * k, 0.25));
            let mut c = stream.zeros(m * n);
            let a = Mat::row_major(a.view(), m, k);
            let panels = stream.pack(Mat::row_major(b.view(), n, k).transposed(), dtype);
            let leaves = Leaves::new((0..8).map(|leaf| Vec::from([leaf * k / 8..(leaf + 1) * k / 8])));
            let mut run = |repeats: usize, is_tree: bool| {
                let begin = Instant::now();
                for _ in 0..repeats {
                    let c = MatMut::row_major(c.view_mut(), m, n);
                    match is_tree {
                        false => stream.matmul_panels(a, &panels, c, Start::Zero),
                        true => stream.matmul_tree(a, &panels, &leaves, c, Start::Zero),
                    }
                }
                stream.to_host(c.slice(0..1), &mut [0.0]);
                begin.elapsed().as_secs_f64() / repeats as f64
            };
            let speed = [false, true].map(|is_tree| {
                run(2, is_tree);
                2.0 * (m * n * k) as f64 / run(20, is_tree) * 1e-12
            });
            println!(
                "{} {m}x{n}x{k}: {:.1} TFLOP/s, in eight leaves {:.1}",
                dtype.name(),
                speed[0],
                speed[1]
            );
        }
    }
}
