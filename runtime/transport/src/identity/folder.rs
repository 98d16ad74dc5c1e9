//! Files that only their owner reads, written whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::IdentityError;

/// No identity file is longer.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Writes `content` to `path` with mode 0600: a new file beside it, fsync, rename, fsync of the
/// folder, which is made with mode 0700 if it is missing.
///
/// # Errors
/// [`IdentityError::File`] if any of that fails; `path` is then as before.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    write(path, content).map_err(|source| file_error(path, source))
}

pub(super) fn read_private(path: &Path) -> Result<String, IdentityError> {
    let read = || {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for an identity"));
        }
        fs::read_to_string(path)
    };
    read().map_err(|source| file_error(path, source))
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

fn file_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File { path: path.display().to_string(), source }
}
