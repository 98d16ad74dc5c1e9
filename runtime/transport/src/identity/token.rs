//! Join tokens: what lets a process without a certificate get one.
//!
//! The token's text goes to the person who adds a node or a user. It pins the cluster's authority,
//! so that a joiner cannot be lured elsewhere, and holds a secret of which the coordinator keeps
//! only the hash, with the uses left ([`TokenRecord`]). Both are values: the coordinator's log
//! keeps the state.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use sixfold_wire::id::{ClusterId, ContentHash};

use super::IdentityError;
use super::peer::Role;
use super::signing::random;

const PREFIX: &str = "sfjoin1.";
const SECRET_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const BODY_BYTES: usize = 1 + 8 + 32 + SECRET_BYTES;

/// A token, secret included.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The role that the joiner will have: a node or a user.
    pub role: Role,
    /// When the token ends, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Hash of the cluster authority's certificate.
    authority: ContentHash,
    secret: [u8; SECRET_BYTES],
}

/// What the coordinator keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Hash of the secret; names the record.
    pub secret_hash: ContentHash,
    /// The role that it gives.
    pub role: Role,
    /// When it ends, in seconds since 1970.
    pub expires_unix_s: u64,
    /// How many may still join with it.
    pub uses_left: u32,
}

/// Why a token does not let anyone join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is no token, or was cut or mistyped.
    #[error("this is not a join token, or a part of it is missing")]
    Malformed,
    /// Its time is over.
    #[error("the join token has expired; make a new one with `sixfold token create`")]
    Expired,
    /// It has been used as often as it may be.
    #[error("the join token has been used; make a new one with `sixfold token create`")]
    Used,
    /// The coordinator has no record of it, or the record is for another role.
    #[error("the coordinator does not know this join token")]
    Unknown,
}

impl JoinToken {
    /// A new token for `uses` joiners, and the coordinator's record of it.
    ///
    /// # Errors
    /// [`IdentityError`] if the role cannot join (workers and coordinators do not) or the system
    /// has no randomness.
    pub fn new(
        cluster: &ClusterId,
        role: Role,
        uses: u32,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<(Self, TokenRecord), IdentityError> {
        if !matches!(role, Role::Node | Role::User) {
            return Err(IdentityError::Malformed("only nodes and users join with a token"));
        }
        let authority = cluster.as_str().parse().map_err(|_| IdentityError::Malformed("not a cluster id"))?;
        let token = Self { role, expires_unix_s: unix_s(now + lifetime), authority, secret: random()? };
        let record = TokenRecord {
            secret_hash: token.secret_hash(),
            role,
            expires_unix_s: token.expires_unix_s,
            uses_left: uses,
        };
        Ok((token, record))
    }

    /// The cluster that the token is for.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.authority.to_string())
    }

    /// What the coordinator knows the token by.
    pub fn secret_hash(&self) -> ContentHash {
        ContentHash::of(&self.secret)
    }

    /// Whether the token's time is over. The coordinator checks its own record; this spares a
    /// joiner the way.
    pub fn expired(&self, now: SystemTime) -> bool {
        unix_s(now) >= self.expires_unix_s
    }

    pub(crate) fn authority_hash(&self) -> ContentHash {
        self.authority
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl TokenRecord {
    /// The record after one more joiner of `role`.
    ///
    /// # Errors
    /// [`TokenError`] if the token is for another role, has ended or has no uses left.
    pub fn redeem(&self, role: Role, now: SystemTime) -> Result<Self, TokenError> {
        if role != self.role {
            return Err(TokenError::Unknown);
        }
        if unix_s(now) >= self.expires_unix_s {
            return Err(TokenError::Expired);
        }
        let uses_left = self.uses_left.checked_sub(1).ok_or(TokenError::Used)?;
        Ok(Self { uses_left, ..self.clone() })
    }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = Vec::with_capacity(BODY_BYTES + CHECK_BYTES);
        body.push(self.role as u8);
        body.extend_from_slice(&self.expires_unix_s.to_le_bytes());
        body.extend_from_slice(self.authority.as_bytes());
        body.extend_from_slice(&self.secret);
        let check = ContentHash::of(&body);
        body.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&body))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} for {}, secret withheld)", self.role, self.authority)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Malformed)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Malformed)?;
        let (body, check) = bytes.split_at_checked(BODY_BYTES).ok_or(TokenError::Malformed)?;
        if check != &ContentHash::of(body).as_bytes()[..CHECK_BYTES] {
            return Err(TokenError::Malformed);
        }
        Self::read(body).ok_or(TokenError::Malformed)
    }
}

impl JoinToken {
    fn read(body: &[u8]) -> Option<Self> {
        let (&role, rest) = body.split_first()?;
        let role = [Role::Node, Role::User].into_iter().find(|known| *known as u8 == role)?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (authority, secret) = rest.split_first_chunk::<32>()?;
        Some(Self {
            role,
            expires_unix_s: u64::from_le_bytes(*expires),
            authority: ContentHash::from_bytes(*authority),
            secret: secret.try_into().ok()?,
        })
    }
}
