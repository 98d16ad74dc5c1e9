//! A GPU by way of CUDA's driver, and NVRTC, which compiles for it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::{CUcontext, CUdevice_attribute, CUfunction, CUmodule, CUstream};
use cudarc::driver::{DriverError, result, sys};
use cudarc::nvrtc;

use super::CudaError;
use super::driver::Function;
use super::sources::source;

/// Where CUDA's toolkit puts NVRTC when it does not tell the loader.
const TOOLKIT: [&CStr; 3] = [
    c"/usr/local/cuda/lib64/libnvrtc.so",
    c"/usr/local/cuda/lib64/libnvrtc.so.13",
    c"/usr/local/cuda/targets/x86_64-linux/lib/libnvrtc.so.13",
];

/// One GPU with a queue of its own.
pub(super) struct Gpu {
    device: sys::CUdevice,
    context: CUcontext,
    stream: CUstream,
    /// As NVRTC names it, such as `sm_90`.
    architecture: String,
    modules: Mutex<HashMap<String, Module>>,
}

#[derive(Clone, Copy)]
struct Module(CUmodule);

// SAFETY: CUDA's handles may be used from any thread; each call makes the context current on its own.
unsafe impl Send for Gpu {}
// SAFETY: as above, and the driver locks what it changes.
unsafe impl Sync for Gpu {}
// SAFETY: as above.
unsafe impl Send for Module {}

/// Machine code of kernels, by source and architecture.
type Images = HashMap<(String, String), Arc<Vec<u8>>>;

/// What this process has compiled.
static COMPILED: LazyLock<Mutex<Images>> = LazyLock::new(Mutex::default);

impl Gpu {
    pub(super) fn new(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: this only tries to open the driver's library, whose initialisers are trusted like any system library's.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        if !compiler_is_present() {
            return Err(CudaError::NoCompiler);
        }
        // A driver that is older than cudarc's bindings lacks symbols, on which cudarc panics.
        catch_unwind(|| Self::open(ordinal)).unwrap_or(Err(CudaError::NoDriver))
    }

    fn open(ordinal: usize) -> Result<Self, CudaError> {
        result::init().map_err(failed("start"))?;
        let count = result::device::get_count().map_err(failed("count GPUs"))?;
        let number = i32::try_from(ordinal).ok().filter(|number| *number < count);
        let Some(number) = number else {
            return Err(CudaError::NoSuchGpu { ordinal, count: usize::try_from(count).unwrap_or(0) });
        };
        let device = result::device::get(number).map_err(failed("name a GPU"))?;
        // SAFETY: the device comes from `get`, and its context from `retain`.
        let (context, major, minor) = unsafe {
            let attribute = |one| result::device::get_attribute(device, one);
            let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
            let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
            let context = result::primary_ctx::retain(device).map_err(failed("make a context"))?;
            result::ctx::set_current(context).map_err(failed("enter a context"))?;
            (
                context,
                major.map_err(failed("tell what a GPU can"))?,
                minor.map_err(failed("tell what a GPU can"))?,
            )
        };
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("make a queue"))?;
        let architecture = format!("sm_{major}{minor}");
        Ok(Self { device, context, stream, architecture, modules: Mutex::default() })
    }

    pub(super) fn function(&self, kernels: &str, name: &str) -> Result<Function, CudaError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(kernels) {
            Some(module) => *module,
            None => {
                let module = self.load(kernels)?;
                modules.insert(kernels.to_owned(), module);
                module
            }
        };
        let symbol = CString::new(name).unwrap_or_default();
        self.enter();
        // SAFETY: the module is loaded and stays so while the GPU lives.
        let function = unsafe { result::module::get_function(module.0, symbol) };
        Ok(Function(function.map_err(failed("find a kernel"))? as usize))
    }

    fn load(&self, kernels: &str) -> Result<Module, CudaError> {
        let key = (kernels.to_owned(), self.architecture.clone());
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let image = match compiled.get(&key) {
            Some(image) => image.clone(),
            None => {
                let image = Arc::new(compile(kernels, &self.architecture)?);
                compiled.insert(key, image.clone());
                image
            }
        };
        drop(compiled);
        self.enter();
        // SAFETY: the image is one that NVRTC made.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        module.map(Module).map_err(failed("load kernels"))
    }

    /// Makes this GPU the one that the calling thread speaks to.
    fn enter(&self) {
        // SAFETY: the context is retained while `self` lives.
        done("enter a context", unsafe { result::ctx::set_current(self.context) });
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.enter();
        // SAFETY: who gets the memory treats it as holding anything.
        unsafe { result::malloc_sync(bytes) }.map_err(failed("give memory"))
    }

    pub(super) fn free(&self, pointer: u64) {
        self.synchronize();
        // SAFETY: the pointer comes from `allocate`, its one owner gives it back, and nothing is enqueued that uses it.
        done("take memory back", unsafe { result::free_sync(pointer) });
    }

    pub(super) fn copy_in(&self, from: &[u8], to: u64) {
        self.enter();
        // SAFETY: `to` has the room, as the caller checked. The host's memory is pageable, so that it has been staged when
        // the call returns.
        done("copy to a GPU", unsafe { result::memcpy_htod_async(to, from, self.stream) });
    }

    pub(super) fn copy_out(&self, from: u64, to: &mut [u8]) {
        self.enter();
        // SAFETY: `from` has the elements, as the caller checked, and `to` is borrowed until the copy is done.
        done("copy from a GPU", unsafe { result::memcpy_dtoh_async(to, from, self.stream) });
        self.synchronize();
    }

    pub(super) fn synchronize(&self) {
        self.enter();
        // SAFETY: the queue is alive.
        done("finish its work", unsafe { result::stream::synchronize(self.stream) });
    }

    pub(super) fn launch(
        &self,
        name: &str,
        function: Function,
        grid: [u32; 2],
        block: [u32; 2],
        arguments: &mut [u64],
    ) {
        self.enter();
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
        let ([x, y], [width, height]) = (grid, block);
        // SAFETY: the function is a kernel of a loaded module, and the arguments are those of its parameters, whose pointers
        // are to memory of this GPU that outlives what is enqueued.
        let launched = unsafe {
            let function = function.0 as CUfunction;
            result::launch_kernel(function, (x, y, 1), (width, height, 1), 0, self.stream, &mut pointers)
        };
        if let Err(error) = launched {
            panic!("CUDA's driver fails to start `{name}` with {grid:?} blocks of {block:?}: {error}");
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let modules = std::mem::take(&mut *self.modules.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: all of them were made by `self`, which nobody uses any more. What fails here has failed before.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            modules.into_values().for_each(|module| {
                let _ = result::module::unload(module.0);
            });
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

fn failed(action: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { action, message: format!("{error}") }
}

fn done(action: &'static str, result: Result<(), DriverError>) {
    if let Err(error) = result {
        panic!("{}", failed(action)(error));
    }
}

/// Whether NVRTC is where the loader looks, or where CUDA's toolkit puts it.
fn compiler_is_present() -> bool {
    // SAFETY: this only tries to open a library, whose initialisers are trusted like any system library's.
    let present = || unsafe { nvrtc::sys::is_culib_present() };
    present()
        || TOOLKIT.iter().any(|path| {
            // SAFETY: as above. It stays open, and the loader then finds it by its name.
            let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            !opened.is_null() && present()
        })
}

/// The machine code of kernels for an architecture.
fn compile(kernels: &str, architecture: &str) -> Result<Vec<u8>, CudaError> {
    let broken = |log: String| CudaError::Compile {
        kernels: kernels.to_owned(),
        target: architecture.to_owned(),
        log,
    };
    let source = CString::new(source(kernels)).map_err(|error| broken(error.to_string()))?;
    // An NVRTC that is older than cudarc's bindings lacks symbols, on which cudarc panics.
    catch_unwind(AssertUnwindSafe(|| compile_source(&source, architecture)))
        .unwrap_or_else(|_| Err("NVRTC lacks functions".to_owned()))
        .map_err(broken)
}

fn compile_source(source: &CStr, architecture: &str) -> Result<Vec<u8>, String> {
    let told = |error: nvrtc::result::NvrtcError| error.to_string();
    // No fused operation that the source does not have, and every operation as IEEE 754 defines it.
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        "--fmad=false".to_owned(),
        "--ftz=false".to_owned(),
        "--prec-div=true".to_owned(),
        "--prec-sqrt=true".to_owned(),
    ];
    let program = nvrtc::result::create_program(source, None).map_err(told)?;
    // SAFETY: the program is alive until the end, the buffers are as long as NVRTC says.
    unsafe {
        let compiled = nvrtc::result::compile_program(program, &options).map_err(|error| {
            let log = nvrtc::result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.iter().map(|&byte| byte as u8).take_while(|byte| *byte != 0).collect();
            format!("{error}\n{}", String::from_utf8_lossy(&log))
        });
        let image = compiled.and_then(|()| {
            let mut len = 0;
            nvrtc::sys::nvrtcGetCUBINSize(program, &mut len).result().map_err(told)?;
            let mut image = vec![0_u8; len];
            nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast::<c_char>()).result().map_err(told)?;
            Ok(image)
        });
        nvrtc::result::destroy_program(program).map_err(told)?;
        image
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources::SOURCES;
    use super::*;

    #[test]
    fn all_kernels_compile_for_a_gpu() {
        if !compiler_is_present() {
            println!("skipped: there is no NVRTC");
            return;
        }
        for architecture in ["sm_80", "sm_90"] {
            for (name, _) in SOURCES {
                let image = compile(name, architecture).unwrap_or_else(|error| panic!("{error}"));
                assert!(image.starts_with(b"\x7fELF"), "{name} for {architecture}");
            }
        }
    }
}
