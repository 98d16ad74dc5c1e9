//! Cores of a process's own: [`CoreLease`].
//!
//! Processes of one user on one machine share out the cores by locks on files, one a core, in a folder of that user's. The
//! system drops a lock with the process that held it, however that ended.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// Cores that no other lease has, until it is dropped.
pub(super) struct CoreLease {
    cores: Vec<usize>,
    _locks: Vec<File>,
}

impl CoreLease {
    /// Takes `count` cores of those that the process could use when it first asked.
    ///
    /// # Errors
    /// Fewer are free, or the folder of locks is not the user's own.
    pub(super) fn take(count: usize) -> io::Result<Self> {
        Self::take_from(&folder(), usable()?, count)
    }

    fn take_from(folder: &Path, usable: &[usize], count: usize) -> io::Result<Self> {
        own(folder)?;
        let (mut cores, mut locks) = (Vec::new(), Vec::new());
        for &core in usable {
            if cores.len() == count {
                break;
            }
            let mut options = OpenOptions::new();
            options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let lock = options.open(folder.join(core.to_string()))?;
            match lock.try_lock() {
                Ok(()) => {
                    cores.push(core);
                    locks.push(lock);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        if cores.len() < count {
            let (free, all) = (cores.len(), usable.len());
            return Err(io::Error::other(format!("{count} are wanted, {free} of {all} cores are free")));
        }
        Ok(Self { cores, _locks: locks })
    }

    /// Keeps all threads of the process on the leased cores; threads that they start stay there too.
    pub(super) fn confine_process(&self) -> io::Result<()> {
        confine(set(&self.cores))
    }

    /// Keeps the calling thread on the leased core of this index.
    pub(super) fn pin_thread(&self, index: usize) -> io::Result<()> {
        Ok(sched_setaffinity(None, &set(&self.cores[index..=index]))?)
    }
}

/// Lets all threads of the process run wherever the process could when it first asked.
pub(super) fn unconfine_process() -> io::Result<()> {
    confine(set(usable()?))
}

fn confine(to: CpuSet) -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let Some(thread) = name.to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        match sched_setaffinity(Some(thread), &to) {
            // The thread has ended since it was listed.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    set
}

/// The cores that the process could use when this was first asked. Those that share a core with an earlier one, as
/// hardware threads do, come last.
fn usable() -> io::Result<&'static [usize]> {
    static USABLE: OnceLock<Vec<usize>> = OnceLock::new();
    if let Some(known) = USABLE.get() {
        return Ok(known);
    }
    let allowed = sched_getaffinity(None)?;
    let mut seen = BTreeSet::new();
    let (first, later): (Vec<_>, Vec<_>) = (0..CpuSet::MAX_CPU)
        .filter(|&core| allowed.is_set(core))
        .partition(|&core| seen.insert(physical(core)));
    Ok(USABLE.get_or_init(|| [first, later].concat()))
}

/// What is the same for hardware threads of one core only.
fn physical(core: usize) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    std::fs::read_to_string(path).unwrap_or_else(|_| core.to_string())
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("sixfold-cores-{}", rustix::process::getuid().as_raw()))
}

/// Makes the folder, or checks that what is there can be trusted: temporary folders are everybody's.
fn own(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == rustix::process::getuid().as_raw() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let why = format!("{} is not a folder that only this user can change", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder that is removed in the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("sixfold-cores-test-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn no_core_is_leased_twice_and_a_dropped_lease_is_free() {
        let scratch = Scratch::new("shared");
        let take = |count| CoreLease::take_from(&scratch.0, &[4, 2, 7], count);
        let first = take(2).unwrap();
        assert_eq!(first.cores, [4, 2]);
        let error = take(2).err().unwrap().to_string();
        assert_eq!(error, "2 are wanted, 1 of 3 cores are free");
        assert_eq!(take(1).unwrap().cores, [7], "the attempt that failed kept nothing");
        drop(first);
        assert_eq!(take(3).unwrap().cores, [4, 2, 7]);
    }

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        let scratch = Scratch::new("open");
        std::fs::create_dir(&scratch.0).unwrap();
        std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = CoreLease::take_from(&scratch.0, &[0], 1).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
