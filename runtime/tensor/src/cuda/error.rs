//! Why there is no GPU to compute on.

/// A GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// CUDA's driver library is missing, or lacks functions.
    #[error(
        "there is no CUDA driver (libcuda.so.1), or it is too old; install NVIDIA's driver, or compute on the CPU"
    )]
    NoDriver,
    /// The library that compiles kernels is missing.
    #[error(
        "there is no NVRTC (libnvrtc.so.13 or .12), which compiles the kernels; install CUDA's toolkit, or its package for NVRTC alone, \
         and put the library's folder into LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// The driver knows fewer GPUs.
    #[error(
        "there is no GPU {ordinal}: CUDA's driver reports {count}; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    )]
    NoSuchGpu {
        /// The number asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The kernels do not compile: NVRTC is too old for the GPU, or the kernels are wrong.
    #[error("the kernels `{kernels}` do not compile for {target}: {log}")]
    Compile {
        /// The source file.
        kernels: String,
        /// What they were compiled for.
        target: String,
        /// What the compiler says.
        log: String,
    },
    /// The driver refuses something.
    #[error("CUDA's driver fails to {action}: {message}")]
    Driver {
        /// What it was asked for.
        action: &'static str,
        /// What it says.
        message: String,
    },
    /// The host cannot take the place of a GPU.
    #[error("kernels for GPUs cannot run on this host: {0}")]
    NotEmulated(String),
}
