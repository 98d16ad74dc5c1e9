//! What the machine can do at best, beside which a training's speed is set: [`Peak`].
//!
//! A CPU has no data-sheet peak that a program could reach whatever else the machine does, so the peak is *measured*: by
//! the fastest of a few products of square matrices, with the job's dtype and threads, by the kernel that the training
//! itself uses. A utilization is thus relative to the best that this program does here.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sixfold_model::Dtype;
use sixfold_tensor::{Counter, Device, Mat, MatMut, Purpose, Start};

/// Rows, columns and depth of the product: large enough for the kernel's best, small enough for a cache.
pub(crate) const SIZE: usize = 384;
/// How long products are repeated ...
const BUDGET: Duration = Duration::from_millis(60);
/// ... and how often at most.
const RUNS_MAX: usize = 40;

/// A rank's peak, which may still be measured.
pub(crate) enum Peak {
    Known(f64),
    Measuring(JoinHandle<f64>),
}

impl Peak {
    /// `told_gflops` if it is more than 0; else it is measured on a thread, beside what a rank does before its first step.
    pub(crate) fn start(told_gflops: f64, device: Device, dtype: Dtype) -> Self {
        if told_gflops > 0.0 {
            return Self::Known(told_gflops);
        }
        let measuring =
            thread::Builder::new().name("peak".to_owned()).spawn(move || measure_gflops(&device, dtype));
        measuring.map_or(Self::Known(0.0), Self::Measuring)
    }

    /// GFLOP/s; 0 where nothing is known.
    pub(crate) fn gflops(self) -> f64 {
        match self {
            Self::Known(gflops) => gflops,
            Self::Measuring(thread) => thread.join().unwrap_or(0.0),
        }
    }
}

/// The best of some products, in GFLOP/s. The first one, which takes the memory, counts only if there is no other.
fn measure_gflops(device: &Device, dtype: Dtype) -> f64 {
    let stream = device.stream();
    let random = |layer| {
        let mut values = vec![0.0; SIZE * SIZE];
        Counter::new(1, 0, 0, layer, Purpose::INITIALISATION).fill_normal(0, &mut values);
        stream.upload(&values)
    };
    let (a, b, mut c) = (random(0), random(1), stream.uninit(SIZE * SIZE));
    let panels = stream.pack(Mat::row_major(b.view(), SIZE, SIZE).transposed(), dtype);
    let mut product = || {
        let since = Instant::now();
        let to = MatMut::row_major(c.view_mut(), SIZE, SIZE);
        stream.matmul_panels(Mat::row_major(a.view(), SIZE, SIZE), &panels, to, Start::Zero);
        // A number that is on the host was computed before.
        stream.to_vec(c.slice(0..1));
        since.elapsed()
    };
    let (since, first) = (Instant::now(), product());
    let mut best: Option<Duration> = None;
    for _ in 0..RUNS_MAX {
        if since.elapsed() >= BUDGET {
            break;
        }
        let took = product();
        best = Some(best.map_or(took, |best| best.min(took)));
    }
    let flop = 2.0 * (SIZE * SIZE * SIZE) as f64;
    flop / best.unwrap_or(first).as_secs_f64().max(f64::MIN_POSITIVE) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_believed_and_else_it_is_measured() {
        assert_eq!(Peak::start(12.5, Device::cpu(), Dtype::F32).gflops(), 12.5);
        let since = Instant::now();
        let measured = Peak::start(0.0, Device::cpu(), Dtype::F32).gflops();
        assert!(measured > 0.01 && measured < 1e5, "{measured} GFLOP/s");
        assert!(since.elapsed() < Duration::from_secs(10));
    }
}
