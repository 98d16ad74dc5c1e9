//! Every operation on a GPU, and on the host in its place, has the bits that it has on the CPU. A number that is none has any
//! payload.
//!
//! Where there is a GPU, `cargo test --release -p sixfold-tensor --test cuda -- --nocapture` prints a line an operation, and how
//! fast products, attention and operations over rows are.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod elementwise;
mod product;
mod rig;
mod rows;
mod speed;
mod sum;

use rig::Rig;
use sixfold_tensor::{CudaError, Device};

/// All operations over random odd shapes, larger ones where the device is fast.
fn compare(device: &Device, is_fast: bool) {
    let mut rig = Rig::new(device, is_fast);
    elementwise::compare(&mut rig);
    sum::compare(&mut rig);
    product::compare(&mut rig);
    rows::compare(&mut rig);
    rig.finish();
}

#[test]
fn a_gpu_has_the_bits_of_the_cpu() {
    match Device::cuda(0) {
        Ok(device) => {
            speed::of_products(&device);
            speed::of_attention(&device);
            speed::of_rows(&device);
            compare(&device, true);
        }
        Err(error @ (CudaError::NoDriver | CudaError::NoCompiler | CudaError::NoSuchGpu { .. })) => {
            println!("skipped: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn kernels_of_gpus_have_the_bits_of_the_cpu_on_the_host() {
    match Device::emulated_cuda() {
        Ok(device) => compare(&device, false),
        Err(CudaError::NotEmulated(why))
            if why.starts_with("it is no x86-64") || why.contains("No such file") =>
        {
            println!("skipped: {why}");
        }
        Err(error) => panic!("{error}"),
    }
}
