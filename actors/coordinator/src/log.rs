//! The append-only log: one SQLite file, opened by one coordinator at a time.
//!
//! ```text
//! meta(key, value)                     the cluster that the log belongs to
//! events(position, at_ms, body, chain) an Entry each; body is the event's JSON, and
//!                                      chain = BLAKE3(chain before, position, at_ms, body)
//! ```
//! Write-ahead journal, every transaction synced: after [`EventLog::append`] has returned, the
//! entries survive `kill -9` and power cuts; entries of one call are there all or not at all. SQLite
//! itself does not checksum its pages, so the chain tells damage from history.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use sixfold_wire::id::ClusterId;

use crate::event::{Entry, Event};

/// Marks the file as ours in SQLite's header: "SIXF".
const APPLICATION_ID: i32 = 0x5349_5846;
/// How long a lock of a process that is about to be gone is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Version of the tables.
const FORMAT: i32 = 1;

/// Why the log cannot be used. A coordinator that gets one while appending must end: what it
/// decided since is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened or made.
    #[error("cannot open the log {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another coordinator has it open.
    #[error("another coordinator has the log {} open", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is some other file.
    #[error("{} is not the log of a coordinator", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a version that this one does not know.
    #[error("the log {} has format {found}; this version reads format {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i32,
    },
    /// It belongs to another cluster.
    #[error("the log {} belongs to cluster {found}, not {expected}", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The coordinator's cluster.
        expected: ClusterId,
    },
    /// What it holds is not what was written.
    #[error("the log {} is damaged at position {position}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first entry that is wrong; 0 where it cannot be told.
        position: i64,
        /// What is wrong.
        reason: String,
    },
    /// SQLite failed: a full disk, a broken one.
    #[error("the log {} failed: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// The open log. While it is open, no other process can open it.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    connection: Connection,
    last: i64,
    chain: [u8; 32],
}

impl EventLog {
    /// Opens the log of a cluster, makes it where there is none, and reads all entries.
    ///
    /// # Errors
    /// [`LogError`]; the file is left as it is.
    pub fn open(path: &Path, cluster: &ClusterId) -> Result<(Self, Vec<Entry>), LogError> {
        let wrong = |source| classify(path, source);
        let mut connection = Connection::open(path).map_err(wrong)?;
        connection.busy_timeout(LOCK_PATIENCE).map_err(wrong)?;
        // The lock is taken with the first access and held until the process ends, however it ends.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(wrong)?;
        check_header(path, &connection)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(wrong)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(wrong)?;
        create_tables(&mut connection, cluster).map_err(wrong)?;
        check_cluster(path, &connection, cluster)?;
        sync_folder(path)?;
        let mut log = Self { path: path.to_owned(), connection, last: 0, chain: [0; 32] };
        log.check_pages()?;
        let entries = log.read()?;
        Ok((log, entries))
    }

    /// Appends entries, all or none, and returns when they are on disk.
    ///
    /// # Errors
    /// [`LogError::Sqlite`]; then nothing of what depends on the entries may be done.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        if entries.is_empty() {
            return Ok(());
        }
        let (last, chain) = insert(&mut self.connection, self.last, self.chain, entries)
            .map_err(|source| LogError::Sqlite { path: self.path.clone(), source })?;
        (self.last, self.chain) = (last, chain);
        Ok(())
    }

    fn check_pages(&self) -> Result<(), LogError> {
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| classify(&self.path, source))?;
        if verdict == "ok" { Ok(()) } else { Err(self.damaged(0, verdict)) }
    }

    fn read(&mut self) -> Result<Vec<Entry>, LogError> {
        let (mut entries, mut last, mut chain) = (Vec::new(), 0, [0; 32]);
        let wrong = |source| classify(&self.path, source);
        let mut statement = self
            .connection
            .prepare("SELECT position, at_ms, body, chain FROM events ORDER BY position")
            .map_err(wrong)?;
        let mut rows = statement.query([]).map_err(wrong)?;
        while let Some(row) = rows.next().map_err(wrong)? {
            let position: i64 = row.get(0).map_err(wrong)?;
            let at_ms: i64 = row.get(1).map_err(|error| self.damaged(position, error))?;
            let body: String = row.get(2).map_err(|error| self.damaged(position, error))?;
            let stored: Vec<u8> = row.get(3).map_err(|error| self.damaged(position, error))?;
            if position != last + 1 {
                return Err(self.damaged(last + 1, "the entry is missing"));
            }
            chain = link(&chain, position, at_ms, &body);
            if stored != chain {
                return Err(self.damaged(position, "the entry is not what was written"));
            }
            let event: Event = serde_json::from_str(&body).map_err(|error| self.damaged(position, error))?;
            entries.push(Entry { at_ms: at_ms.cast_unsigned(), event });
            last = position;
        }
        drop(rows);
        drop(statement);
        (self.last, self.chain) = (last, chain);
        Ok(entries)
    }

    fn damaged(&self, position: i64, reason: impl ToString) -> LogError {
        LogError::Damaged { path: self.path.clone(), position, reason: reason.to_string() }
    }
}

fn classify(path: &Path, source: rusqlite::Error) -> LogError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LogError::Locked { path },
        Some(ErrorCode::NotADatabase) => LogError::Foreign { path },
        Some(ErrorCode::DatabaseCorrupt) => {
            LogError::Damaged { path, position: 0, reason: source.to_string() }
        }
        Some(ErrorCode::CannotOpen) => LogError::Open { path, source: std::io::Error::other(source) },
        _ => LogError::Sqlite { path, source },
    }
}

fn check_header(path: &Path, connection: &Connection) -> Result<(), LogError> {
    let wrong = |source| classify(path, source);
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application = pragma("application_id").map_err(wrong)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(wrong)?;
    if application == 0 && tables == 0 {
        return Ok(());
    }
    if application != APPLICATION_ID {
        return Err(LogError::Foreign { path: path.to_owned() });
    }
    match pragma("user_version").map_err(wrong)? {
        FORMAT => Ok(()),
        found => Err(LogError::Format { path: path.to_owned(), found }),
    }
}

fn create_tables(connection: &mut Connection, cluster: &ClusterId) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS events (
             position INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body TEXT NOT NULL, chain BLOB NOT NULL
         ) STRICT;",
    )?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction
        .execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('cluster', ?1)", [cluster.as_str()])?;
    transaction.commit()
}

fn check_cluster(path: &Path, connection: &Connection, cluster: &ClusterId) -> Result<(), LogError> {
    let found: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'cluster'", [], |row| row.get(0))
        .optional()
        .map_err(|source| classify(path, source))?;
    let found = found.unwrap_or_default();
    if found == cluster.as_str() {
        return Ok(());
    }
    Err(LogError::OtherCluster { path: path.to_owned(), found, expected: cluster.clone() })
}

/// SQLite syncs what is in the file, not the folder that names it.
fn sync_folder(path: &Path) -> Result<(), LogError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(|source| LogError::Open { path: path.to_owned(), source })
}

fn link(chain: &[u8; 32], position: i64, at_ms: i64, body: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain).update(&position.to_le_bytes()).update(&at_ms.to_le_bytes());
    *hasher.update(body.as_bytes()).finalize().as_bytes()
}

fn insert(
    connection: &mut Connection,
    mut last: i64,
    mut chain: [u8; 32],
    entries: &[Entry],
) -> rusqlite::Result<(i64, [u8; 32])> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut statement = transaction
            .prepare_cached("INSERT INTO events (position, at_ms, body, chain) VALUES (?1, ?2, ?3, ?4)")?;
        for entry in entries {
            let body = serde_json::to_string(&entry.event)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            let at_ms = entry.at_ms.cast_signed();
            last += 1;
            chain = link(&chain, last, at_ms, &body);
            statement.execute(params![last, at_ms, body, &chain[..]])?;
        }
    }
    transaction.commit()?;
    Ok((last, chain))
}

#[cfg(test)]
mod tests;
