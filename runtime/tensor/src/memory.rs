//! Keeping freed memory in the process, because a training step frees and asks for the same megabytes again and again.
#![allow(unsafe_code)]

/// Tells the C library's allocator to keep freed memory instead of returning it to the system; a worker calls this once
/// at its start.
///
/// Without it, each kernel's scratch is faulted in page by page on every step: attention over short documents took a third
/// longer. (Buffers of a [`Device`](crate::Device) have a pool of their own.) The process stays as large as it once was. Only glibc
/// has this switch; elsewhere nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest size glibc accepts below which blocks come from the heap and not from a mapping of their own.
        const HEAP_BLOCK_BYTES_MAX: libc::c_int = 32 << 20;
        // SAFETY: these parameters change where later blocks come from and when memory is returned, never the blocks in use;
        // glibc locks its state meanwhile.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES_MAX);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    const BYTES: usize = 16 << 20;

    /// Page faults of this thread so far.
    fn faults() -> i64 {
        // SAFETY: `getrusage` fills the structure that it is given, and zero is a valid value for each of its integers.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
            usage.ru_minflt
        }
    }

    fn touch() -> i64 {
        let before = faults();
        std::hint::black_box(vec![1u8; BYTES]);
        faults() - before
    }

    #[test]
    fn memory_that_was_freed_is_not_faulted_in_again() {
        keep_freed_memory();
        touch();
        let again = touch();
        assert!(again < (BYTES / 4096 / 10) as i64, "{again} page faults for memory that was there");
    }
}
