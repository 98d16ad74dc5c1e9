//! Join tokens and HTTP keys, by their hashes.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_cluster::protocol::KeyRecord;

use crate::event::AccessEvent;
use crate::message::{RequestId, TokenRole};

/// Join tokens and HTTP keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Access {
    pub(crate) tokens: BTreeMap<[u8; 32], Token>,
    pub(crate) keys: BTreeMap<String, Key>,
}

/// A join token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) role: TokenRole,
    pub(crate) expires_ms: u64,
    pub(crate) uses: u32,
    /// The requests that used it up; a repeated one uses it once.
    pub(crate) used_by: BTreeSet<RequestId>,
}

/// An HTTP key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) hash: [u8; 32],
    pub(crate) created_ms: u64,
    pub(crate) revoked: bool,
}

impl Access {
    pub(super) fn apply(&mut self, at_ms: u64, event: &AccessEvent) {
        match event {
            AccessEvent::TokenCreated { hash, role, expires_ms, uses } => {
                let (role, expires_ms, uses) = (*role, *expires_ms, *uses);
                self.tokens.insert(*hash, Token { role, expires_ms, uses, used_by: BTreeSet::new() });
            }
            AccessEvent::TokenUsed { hash, request } => {
                if let Some(token) = self.tokens.get_mut(hash) {
                    token.used_by.insert(request.clone());
                }
            }
            AccessEvent::KeyCreated { name, hash } => {
                let key = Key { hash: *hash, created_ms: at_ms, revoked: false };
                self.keys.insert(name.clone(), key);
            }
            AccessEvent::KeyRevoked { name } => {
                if let Some(key) = self.keys.get_mut(name) {
                    key.revoked = true;
                }
            }
        }
    }

    /// Keys that open the gateways.
    pub(crate) fn valid_keys(&self) -> Vec<KeyRecord> {
        let valid = self.keys.iter().filter(|(_, key)| !key.revoked);
        valid.map(|(name, key)| KeyRecord { name: name.clone(), hash: key.hash }).collect()
    }
}
