//! The folder of a person or program: its identity, and where the coordinator is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sixfold_transport::identity::{Identity, write_private};

/// The identity, key included.
const IDENTITY_FILE: &str = "user.pem";
/// The coordinator's address, as text.
const ADDRESS_FILE: &str = "coordinator.txt";
/// The coordinator's own folder, where its first user's identity lies.
pub(crate) const COORDINATOR_DIR: &str = "sixfold-coordinator";

/// An opened home.
pub(crate) struct Home {
    pub(crate) identity: Identity,
    pub(crate) coordinator: SocketAddr,
}

impl Home {
    /// Reads the home in `dir`, or where one is usually found.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self> {
        let dir = dir.map_or_else(find, |dir| Ok(dir.to_owned()))?;
        let identity = Identity::load(&dir.join(IDENTITY_FILE))
            .with_context(|| format!("no usable identity in {}; {LOGIN_HINT}", dir.display()))?;
        let file = dir.join(ADDRESS_FILE);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let coordinator =
            text.trim().parse().with_context(|| format!("{} holds no address", file.display()))?;
        Ok(Self { identity, coordinator })
    }

    /// Writes a home.
    pub(crate) fn save(dir: &Path, identity: &Identity, coordinator: SocketAddr) -> Result<()> {
        identity.save(&dir.join(IDENTITY_FILE))?;
        Ok(write_private(&dir.join(ADDRESS_FILE), format!("{coordinator}\n").as_bytes())?)
    }
}

const LOGIN_HINT: &str = "`sixfold login ADDR --token T` makes one, on the coordinator's machine \
                          `--home DIR` names the coordinator's own folder";

/// `~/.sixfold`, where `sixfold login` writes.
pub(crate) fn default_dir() -> Result<PathBuf> {
    let home =
        std::env::var_os("HOME").context("the environment has no HOME; name a folder with `--home DIR`")?;
    Ok(Path::new(&home).join(".sixfold"))
}

/// The first usual place that holds an identity.
fn find() -> Result<PathBuf> {
    let places = [PathBuf::from(COORDINATOR_DIR), default_dir()?];
    let found = places.iter().find(|dir| dir.join(IDENTITY_FILE).exists());
    let Some(found) = found else {
        bail!("no identity in {} or {}; {LOGIN_HINT}", places[0].display(), places[1].display());
    };
    Ok(found.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sixfold_transport::identity::{Authority, Peer, USER_LIFETIME};
    use std::time::SystemTime;

    #[test]
    fn what_was_saved_is_opened_and_a_missing_home_says_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let error = Home::open(Some(folder.path())).err().unwrap();
        assert!(format!("{error:#}").contains("sixfold login"), "{error:#}");
        let authority = Authority::create(SystemTime::now()).unwrap();
        let user =
            authority.issue_identity(&Peer::user("ada").unwrap(), SystemTime::now(), USER_LIFETIME).unwrap();
        let address = "127.0.0.1:6160".parse().unwrap();
        Home::save(folder.path(), &user, address).unwrap();
        let home = Home::open(Some(folder.path())).unwrap();
        assert_eq!((home.identity.to_pem(), home.coordinator), (user.to_pem(), address));
    }
}
