//! The operations of CUDA beside those of the CPU: the same bits, over random odd shapes. On the host in the place of a GPU, and on
//! the GPU where there is one. A line an operation tells what became of it.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod random;
mod rows;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sixfold_tensor::{CudaError, Device, Stream};

/// What an operation wrote.
type Outputs = Vec<Vec<f32>>;
/// An operation on the numbers of a seed.
type Case = (&'static str, fn(&Stream, u64) -> Outputs);

#[test]
fn every_operation_has_the_bits_of_the_cpu_on_an_emulated_gpu() {
    check(Device::emulated_cuda(), 0..8);
}

#[test]
fn every_operation_has_the_bits_of_the_cpu_on_a_gpu() {
    check(Device::cuda(0), 0..60);
}

fn check(device: Result<Device, CudaError>, seeds: std::ops::Range<u64>) {
    let device = match device {
        Ok(device) => device,
        Err(error) => return println!("skipped: {error}"),
    };
    let (cpu, stream) = (Device::cpu().stream(), device.stream());
    let failed = rows::CASES.iter().filter(|case| {
        let found = seeds.clone().find_map(|seed| difference(&cpu, &stream, case, seed));
        println!("{}: {}", case.0, found.as_deref().unwrap_or("the same bits"));
        found.is_some()
    });
    let failed: Vec<_> = failed.map(|case| case.0).collect();
    assert!(failed.is_empty(), "other bits than on the CPU: {failed:?}");
}

/// The first difference of an operation's results on two devices.
fn difference(cpu: &Stream, other: &Stream, (_, case): &Case, seed: u64) -> Option<String> {
    let expected = case(cpu, seed);
    let Ok(actual) = catch_unwind(AssertUnwindSafe(|| case(other, seed))) else {
        return Some(format!("seed {seed}: panics"));
    };
    for (output, (expected, actual)) in expected.iter().zip(&actual).enumerate() {
        let wrong = expected.iter().zip(actual).filter(|(a, b)| !is_same(**a, **b)).count();
        if let Some(at) = expected.iter().zip(actual).position(|(a, b)| !is_same(*a, *b)) {
            let (len, expected, actual) = (expected.len(), expected[at], actual[at]);
            return Some(format!(
                "seed {seed}: output {output}[{at}] is {actual:?}, not {expected:?}; {wrong} of {len} differ"
            ));
        }
    }
    let lens = |outputs: &Outputs| outputs.iter().map(Vec::len).collect::<Vec<_>>();
    (lens(&expected) != lens(&actual)).then(|| format!("seed {seed}: other lengths"))
}

/// The same bits, or a NaN each.
fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}
