//! Wire versions. A build speaks version N and, from the second version on, N-1; TLS picks the
//! newest that both ends offer (ALPN), so that a cluster can be upgraded one node at a time.

use std::fmt;

/// A version of the messages and frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u16);

impl Version {
    /// The first version.
    pub const V1: Self = Self(1);

    /// Versions that this build speaks, newest first: N and N-1.
    pub const SUPPORTED: &'static [Self] = &[Self::V1];

    /// The newest version of this build.
    pub const NEWEST: Self = Self::SUPPORTED[0];

    /// A version that this build does not speak yet.
    #[cfg(test)]
    pub(crate) fn after(version: Self) -> Self {
        Self(version.0 + 1)
    }

    /// The ALPN name of this version.
    pub fn alpn(self) -> Vec<u8> {
        format!("{ALPN_PREFIX}{}", self.0).into_bytes()
    }

    /// The supported version that an ALPN name stands for.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::SUPPORTED.iter().copied().find(|version| version.alpn() == name)
    }

    /// ALPN names to offer, newest first.
    pub fn offered() -> Vec<Vec<u8>> {
        Self::SUPPORTED.iter().map(|version| version.alpn()).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

const ALPN_PREFIX: &str = "sixfold/";

/// ALPN name of the join handshake, the only one without a client certificate.
pub const ALPN_JOIN: &[u8] = b"sixfold-join/1";

/// ALPN name of tensor links.
pub const ALPN_TENSOR: &[u8] = b"sixfold-tensor/1";

/// The peer speaks an older version that has no such message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer speaks wire version {spoken}; this {protocol} message needs version {needed}")]
pub struct CapabilityError {
    /// The actor protocol.
    pub protocol: &'static str,
    /// The version that has the message.
    pub needed: Version,
    /// The version agreed on with the peer.
    pub spoken: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_name_is_understood_and_no_other() {
        for version in Version::SUPPORTED {
            assert_eq!(Version::from_alpn(&version.alpn()), Some(*version));
        }
        assert_eq!(Version::offered()[0], b"sixfold/1");
        assert_eq!(Version::from_alpn(b"sixfold/9999"), None);
        assert_eq!(Version::from_alpn(ALPN_JOIN), None);
    }

    #[test]
    fn supports_two_versions_at_most_newest_first() {
        assert!(Version::SUPPORTED.len() <= 2);
        assert!(Version::SUPPORTED.is_sorted_by(|newer, older| newer > older));
    }
}
