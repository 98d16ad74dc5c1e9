//! The host in the place of a GPU, for tests: the same sources, compiled by the host's C++ compiler, and the same launches.
//!
//! Threads of a block take turns between barriers, in an order that changes from one to the next; blocks run one after the other.
//! So it is slow, and finds a missing barrier only where the order of threads shows it.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::CudaError;
use super::driver::Function;
use super::sources::{SOURCES, headers, without_includes};

/// CUDA's keywords and functions, in the host's words, and how a block's threads take turns.
const SHIM: &str = include_str!("kernels/emulated.cuh");
/// No fused operation that the source does not have.
const OPTIONS: [&str; 7] = ["-std=c++17", "-O2", "-ffp-contract=off", "-mfma", "-fPIC", "-shared", "-w"];
/// What the host protects at once.
const PAGE: usize = 4096;

/// The compiled kernels, and the sizes of what is allocated.
pub(super) struct Emulated {
    library: usize,
    sizes: Mutex<HashMap<u64, usize>>,
}

type Kernel = unsafe extern "C" fn(dims: *const u32, arguments: *mut *mut c_void);

impl Emulated {
    pub(super) fn new() -> Result<Self, CudaError> {
        // One library a process.
        static LIBRARY: OnceLock<Result<usize, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(library).clone().map_err(CudaError::NotEmulated)?;
        Ok(Self { library, sizes: Mutex::default() })
    }

    pub(super) fn function(&self, name: &str) -> Result<Function, CudaError> {
        let symbol = CString::new(format!("run_{name}")).unwrap_or_default();
        // SAFETY: the library stays open.
        let found = unsafe { libc::dlsym(self.library as *mut c_void, symbol.as_ptr()) };
        if found.is_null() {
            return Err(CudaError::NotEmulated(format!("there is no kernel `{name}`")));
        }
        Ok(Function(found as usize))
    }

    /// Memory that ends where the host's memory may not be touched, so that a kernel that reads or writes beyond is found out.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        // Of loads of four numbers.
        let bytes = bytes.next_multiple_of(16);
        let (pages, all) = whole_pages(bytes);
        // SAFETY: new memory of nobody, of which the last page is made inaccessible.
        let start = unsafe {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), all, access, kind, -1, 0);
            if start == libc::MAP_FAILED || libc::mprotect(start.byte_add(pages), PAGE, libc::PROT_NONE) != 0
            {
                return Err(CudaError::NotEmulated("out of memory".to_owned()));
            }
            start as u64
        };
        let pointer = start + (pages - bytes) as u64;
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(pointer, bytes);
        Ok(pointer)
    }

    pub(super) fn free(&self, pointer: u64) {
        let bytes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(&pointer);
        if let Some(bytes) = bytes {
            let (pages, all) = whole_pages(bytes);
            let start = pointer - (pages - bytes) as u64;
            // SAFETY: it was mapped so, and its one owner frees it once.
            unsafe { libc::munmap(start as *mut c_void, all) };
        }
    }

    pub(super) fn copy_in(&self, from: &[u8], to: u64) {
        // SAFETY: the caller checked that `to` has the room; memory of the device is none that Rust lends out.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
    }

    pub(super) fn copy_out(&self, from: u64, to: &mut [u8]) {
        // SAFETY: as above, for `from`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
    }

    pub(super) fn launch(&self, function: Function, grid: [u32; 2], block: [u32; 2], arguments: &mut [u64]) {
        let dims = [grid[0], grid[1], block[0], block[1]];
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
        // SAFETY: `function` is a symbol of the library, all of which have this type, and the arguments are those of its kernel.
        unsafe {
            let kernel: Kernel = std::mem::transmute(function.0);
            kernel(dims.as_ptr(), pointers.as_mut_ptr());
        }
    }
}

/// The bytes of whole pages, without and with one more.
fn whole_pages(bytes: usize) -> (usize, usize) {
    let pages = bytes.next_multiple_of(PAGE);
    (pages, pages + PAGE)
}

/// Compiles all kernels, unless this was done before, and opens the library.
fn library() -> Result<usize, String> {
    if !has_fused_operations() {
        return Err("it is no x86-64 with fused multiply-add".to_owned());
    }
    let source = source();
    let mut hasher = DefaultHasher::new();
    (&source, OPTIONS).hash(&mut hasher);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = program.with_file_name(format!("emulated-cuda-{:016x}.so", hasher.finish()));
    if !path.exists() {
        compile(&source, &path)?;
    }
    let file = CString::new(path.into_os_string().into_vec()).map_err(|error| error.to_string())?;
    // SAFETY: the library is the one that was made from our sources.
    unsafe {
        let library = libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        match library.is_null() {
            true => Err(CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned()),
            false => Ok(library as usize),
        }
    }
}

fn has_fused_operations() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// All kernels, each with a function that takes its arguments as CUDA's driver does, and each source in a namespace of its own.
fn source() -> String {
    let kernels = SOURCES.map(|(name, source)| {
        let source = without_includes(source);
        let entries: String = kernels(&source).map(|name| format!("EMULATED_KERNEL({name})\n")).collect();
        format!("namespace kernels_{name} {{\n{source}\n{entries}}}\n")
    });
    format!("{SHIM}\n{}\n{}", headers(), kernels.concat())
}

/// The names of a source's kernels: what stands between `__global__`, `void` and a parenthesis.
fn kernels(source: &str) -> impl Iterator<Item = &str> {
    let after = source.split("__global__ ").skip(1);
    after.filter_map(|after| Some(after.split_once("void ")?.1.split_once('(')?.0.trim()))
}

fn compile(source: &str, path: &Path) -> Result<(), String> {
    let own = |ending: &str| -> PathBuf { path.with_extension(format!("{}.{ending}", std::process::id())) };
    let (text, made) = (own("cpp"), own("so"));
    fs::write(&text, source).map_err(|error| error.to_string())?;
    let output = Command::new("g++").args(OPTIONS).arg(&text).arg("-o").arg(&made).output();
    let output = output.map_err(|error| format!("g++: {error}"));
    let _ = fs::remove_file(&text);
    let output = output?;
    if !output.status.success() {
        return Err(format!("g++: {}", String::from_utf8_lossy(&output.stderr)));
    }
    // Whole or not at all, also where other processes do the same.
    fs::rename(&made, path).map_err(|error| error.to_string())
}
