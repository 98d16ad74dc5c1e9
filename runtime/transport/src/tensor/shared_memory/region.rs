//! The shared pages: layout, mapping, locks and futexes. All unsafe code of this crate is here.
//!
//! Layout: a page of control words, then a ring for what the maker writes, then one for what the
//! opener writes. Every control word has a cache line of its own and is only ever accessed
//! atomically, by both processes.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

const FOLDER: &str = "/dev/shm";
const MAGIC: &[u8; 8] = b"sixfold1";
/// Magic, size of a ring, nonce.
const IDENTITY_BYTES: usize = 32;
const CONTROL_BYTES: usize = 4096;
const LINE_BYTES: usize = 128;
const RING_BYTES_MIN: usize = 4096;
const RING_BYTES_MAX: usize = 1 << 30;

/// The two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Maker = 0,
    Opener = 1,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Maker => Self::Opener,
            Self::Opener => Self::Maker,
        }
    }
}

/// Counters of a direction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    Head = 0,
    Tail = 1,
}

/// Futex words of a direction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flag {
    ReaderWaits = 2,
    WriterWaits = 3,
}

/// Lines of control words: the identity, four for each direction, one for each side's end.
const DIRECTION_LINES: usize = 4;
const FIRST_DIRECTION_LINE: usize = 1;
const FIRST_GONE_LINE: usize = FIRST_DIRECTION_LINE + 2 * DIRECTION_LINES;
const _: () = assert!((FIRST_GONE_LINE + 2) * LINE_BYTES <= CONTROL_BYTES && IDENTITY_BYTES <= LINE_BYTES);

/// One end's mapping of the shared pages.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapRaw,
    /// Holds this end's lock for as long as the process lives and keeps the region.
    file: File,
    ring_bytes: usize,
    /// The maker's.
    _name: Option<Name>,
}

/// Removes the file's name when dropped; the pages stay as long as someone maps them.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // Where there was an opener, it has removed the name already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Region {
    pub(super) fn make(name: &str, nonce: [u8; 16], ring_bytes: usize) -> io::Result<Self> {
        let total_bytes = total_bytes(ring_bytes)?;
        let path = path_of(name)?;
        let file = options().create_new(true).mode(0o600).open(&path)?;
        let name = Name(path);
        reserve(&file, total_bytes)?;
        file.write_all_at(&identity(nonce, ring_bytes as u64), 0)?;
        lock(&file, Side::Maker)?;
        let map = MmapOptions::new().len(total_bytes).map_raw(&file)?;
        Ok(Self { map, file, ring_bytes, _name: Some(name) })
    }

    pub(super) fn open(name: &str, nonce: [u8; 16], ring_bytes: u64) -> io::Result<Self> {
        let ring_bytes = usize::try_from(ring_bytes).map_err(|_| invalid("the ring is too long"))?;
        let total_bytes = total_bytes(ring_bytes)?;
        let path = path_of(name)?;
        let file = options().open(&path)?;
        let metadata = file.metadata()?;
        if metadata.len() != total_bytes as u64 || metadata.mode() & 0o777 != 0o600 {
            return Err(invalid("not the file that was offered"));
        }
        let mut found = [0; IDENTITY_BYTES];
        file.read_exact_at(&mut found, 0)?;
        if found != identity(nonce, ring_bytes as u64) {
            return Err(invalid("not the file that was offered"));
        }
        lock(&file, Side::Opener)?;
        // Both ends hold it: nobody else shall find it.
        std::fs::remove_file(&path)?;
        let map = MmapOptions::new().len(total_bytes).map_raw(&file)?;
        Ok(Self { map, file, ring_bytes, _name: None })
    }

    pub(super) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    pub(super) fn counter(&self, direction: Side, counter: Counter) -> &AtomicU64 {
        let line = FIRST_DIRECTION_LINE + direction as usize * DIRECTION_LINES + counter as usize;
        let word = self.line(line).cast::<u64>();
        // SAFETY: the line is inside the mapping (asserted above for all lines), aligned to a cache
        // line, lives as long as `self`, and both processes access it only as this atomic.
        unsafe { AtomicU64::from_ptr(word) }
    }

    pub(super) fn flag(&self, direction: Side, flag: Flag) -> &AtomicU32 {
        self.word(FIRST_DIRECTION_LINE + direction as usize * DIRECTION_LINES + flag as usize)
    }

    /// Whether that side has left.
    pub(super) fn gone(&self, side: Side) -> bool {
        self.word(FIRST_GONE_LINE + side as usize).load(Ordering::Acquire) != 0
    }

    pub(super) fn leave(&self, side: Side) {
        self.word(FIRST_GONE_LINE + side as usize).store(1, Ordering::Release);
    }

    fn word(&self, line: usize) -> &AtomicU32 {
        let word = self.line(line).cast::<u32>();
        // SAFETY: as for `counter`.
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn line(&self, line: usize) -> *mut u8 {
        debug_assert!((line + 1) * LINE_BYTES <= CONTROL_BYTES);
        self.map.as_mut_ptr().wrapping_add(line * LINE_BYTES)
    }

    /// Copies into a ring, from `offset` on and around its end.
    pub(super) fn copy_in(&self, direction: Side, offset: usize, bytes: &[u8]) {
        assert!(offset < self.ring_bytes && bytes.len() <= self.ring_bytes);
        let (first, second) = bytes.split_at(bytes.len().min(self.ring_bytes - offset));
        let ring = self.ring(direction);
        // SAFETY: both parts are inside the ring by the assertion. `bytes` is not part of the
        // mapping, to which no reference is ever made. The reader does not touch these bytes until
        // `head` says so; a process that breaks this rule garbles its own data.
        unsafe {
            std::ptr::copy_nonoverlapping(first.as_ptr(), ring.add(offset), first.len());
            std::ptr::copy_nonoverlapping(second.as_ptr(), ring, second.len());
        }
    }

    /// Copies out of a ring, from `offset` on and around its end.
    pub(super) fn copy_out(&self, direction: Side, offset: usize, bytes: &mut [u8]) {
        assert!(offset < self.ring_bytes && bytes.len() <= self.ring_bytes);
        let (first, second) = bytes.split_at_mut(bytes.len().min(self.ring_bytes - offset));
        let ring = self.ring(direction);
        // SAFETY: as for `copy_in`, with `tail` and the writer.
        unsafe {
            std::ptr::copy_nonoverlapping(ring.add(offset), first.as_mut_ptr(), first.len());
            std::ptr::copy_nonoverlapping(ring, second.as_mut_ptr(), second.len());
        }
    }

    fn ring(&self, direction: Side) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(CONTROL_BYTES + direction as usize * self.ring_bytes)
    }

    /// Sleeps while `word` is 1, `at_most` so long. May return early.
    pub(super) fn sleep(word: &AtomicU32, at_most: Duration) {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        // SAFETY: futex(2) reads one aligned u32 that outlives the call, and the timeout.
        // Any error (the word has changed, a signal, the timeout) means: look again.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 1, &raw const timeout) };
    }

    /// Wakes who sleeps on `word`.
    pub(super) fn wake(word: &AtomicU32) {
        // SAFETY: futex(2) with FUTEX_WAKE only uses the address.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
    }

    /// Whether the process of that side still holds its lock. An error counts as alive: the wait
    /// has a timeout too.
    pub(super) fn alive(&self, side: Side) -> bool {
        let mut probe = range_lock(side);
        // SAFETY: fcntl(2) with F_OFD_GETLK reads and writes one flock.
        let result = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut probe) };
        result != 0 || i32::from(probe.l_type) != libc::F_UNLCK
    }
}

/// Takes the side's lock. It belongs to the open file, so it ends with the process.
fn lock(file: &File, side: Side) -> io::Result<()> {
    let range = range_lock(side);
    // SAFETY: fcntl(2) with F_OFD_SETLK reads one flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn range_lock(side: Side) -> libc::flock {
    // SAFETY: flock is plain data for which zero is a value; some systems pad it.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = side as libc::off_t;
    range.l_len = 1;
    range
}

/// Reserves the pages now: later, a full /dev/shm would be a SIGBUS.
fn reserve(file: &File, bytes: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| invalid("the ring is too long"))?;
    // SAFETY: posix_fallocate(3) takes a descriptor that is open and two numbers.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// The name comes from the other process: nothing but 32 hex digits is accepted.
fn path_of(name: &str) -> io::Result<PathBuf> {
    if name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return Ok(PathBuf::from(format!("{FOLDER}/sixfold-{name}")));
    }
    Err(invalid("not the name of a shared ring"))
}

fn total_bytes(ring_bytes: usize) -> io::Result<usize> {
    if (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes) {
        return Ok(CONTROL_BYTES + 2 * ring_bytes);
    }
    Err(invalid("a ring has 4 KiB to 1 GiB"))
}

fn identity(nonce: [u8; 16], ring_bytes: u64) -> [u8; IDENTITY_BYTES] {
    let mut identity = [0; IDENTITY_BYTES];
    identity[..8].copy_from_slice(MAGIC);
    identity[8..16].copy_from_slice(&ring_bytes.to_le_bytes());
    identity[16..].copy_from_slice(&nonce);
    identity
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; 16] = [7; 16];

    fn name() -> String {
        data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>())
    }

    #[test]
    fn only_the_offered_file_is_opened_and_its_name_goes() {
        let name = name();
        let made = Region::make(&name, NONCE, 4096).unwrap();
        assert!(Region::open(&name, [8; 16], 4096).is_err(), "another nonce");
        assert!(Region::open(&name, NONCE, 8192).is_err(), "another size");
        let opened = Region::open(&name, NONCE, 4096).unwrap();
        assert!(!path_of(&name).unwrap().exists());
        assert!(made.alive(Side::Opener) && opened.alive(Side::Maker));
        drop(opened);
        assert!(!made.alive(Side::Opener), "a closed file is a dropped lock");
    }

    #[test]
    fn a_region_that_nobody_opened_leaves_no_name() {
        let name = name();
        drop(Region::make(&name, NONCE, 4096).unwrap());
        assert!(!path_of(&name).unwrap().exists());
    }

    #[test]
    fn a_name_is_no_path() {
        for name in
            ["", "../../etc/passwd", "0123456789abcdef0123456789abcde/", "0123456789ABCDEF0123456789ABCDEF"]
        {
            assert!(Region::open(name, NONCE, 4096).is_err(), "{name:?}");
        }
    }

    #[test]
    fn bytes_go_around_the_end() {
        let name = name();
        let made = Region::make(&name, NONCE, 4096).unwrap();
        let opened = Region::open(&name, NONCE, 4096).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        made.copy_in(Side::Maker, 4000, &bytes);
        made.copy_in(Side::Opener, 0, &[1; 4096]);
        let mut read = vec![0; 256];
        opened.copy_out(Side::Maker, 4000, &mut read);
        assert_eq!(read, bytes);
    }
}
