//! Who a process is: keys, certificates, names, roles and join tokens.
//!
//! A cluster has one certificate authority ([`Authority`]), made at the coordinator's first start.
//! Every process holds an [`Identity`]: a key, a certificate that carries its [`Peer`] name and
//! role, and the authority's certificate. A node's identity also lets it sign its workers'
//! ([`WorkerAuthority`]). A process without one joins with a [`JoinToken`].
//!
//! The time is always an argument, or a [`Clock`] where TLS asks for it.

mod authority;
mod certificate;
mod clock;
mod folder;
mod peer;
mod pem;
mod signing;
mod token;
mod worker;

pub(crate) mod tls;
pub(crate) mod verify;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sixfold_wire::id::ClusterId;

pub use authority::Authority;
pub use certificate::{CertificateError, cluster_of};
pub use clock::Clock;
pub use folder::write_private;
pub use peer::{Expected, Peer, PeerNameError, Role, Roles};
pub use signing::NewKey;
pub use token::{JoinToken, TokenError, TokenRecord};
pub use worker::WorkerAuthority;

pub(crate) use certificate::{Leaf, not_after};

/// How long the certificate of a node or a coordinator is valid. It renews itself after half of
/// this, so a node works on for at least 3.5 days while the coordinator is away.
pub const MEMBER_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// How long a user's certificate is valid.
pub const USER_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// How long a worker's certificate is valid, and at most as long as its node's.
pub const WORKER_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// Why an identity could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate is not one of ours.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A name cannot stand in a certificate.
    #[error(transparent)]
    Name(#[from] PeerNameError),
    /// Signing or key generation failed, or a signing request is malformed.
    #[error("signing: {0}")]
    Signing(#[from] rcgen::Error),
    /// The file is not an identity.
    #[error("not an identity: {0}")]
    Malformed(&'static str),
    /// The issuing certificate has expired.
    #[error("the issuer's certificate has expired")]
    IssuerExpired,
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What an authority answers to a signing request: everything but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The certificate, DER.
    pub leaf: Vec<u8>,
    /// For a node the certificate with which it signs its workers'; for a worker that of its node.
    pub intermediate: Option<Vec<u8>>,
    /// The cluster authority's certificate, DER.
    pub authority: Vec<u8>,
}

/// A process's key and certificates.
pub struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    leaf: CertificateDer<'static>,
    intermediate: Option<CertificateDer<'static>>,
    authority: CertificateDer<'static>,
    peer: Peer,
    cluster: ClusterId,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    /// Joins a key and what an authority issued for it.
    ///
    /// # Errors
    /// [`IdentityError`] if the certificates are not ours or are for another key.
    pub fn new(key: &NewKey, issued: Issued) -> Result<Self, IdentityError> {
        Self::assemble(PrivatePkcs8KeyDer::from(key.pair().serialize_der()), issued)
    }

    fn assemble(key: PrivatePkcs8KeyDer<'static>, issued: Issued) -> Result<Self, IdentityError> {
        let authority = CertificateDer::from(issued.authority);
        let leaf = CertificateDer::from(issued.leaf);
        let cluster = cluster_of(&authority);
        let read = Leaf::read(&leaf, &cluster)?;
        if read.public_key != KeyPair::try_from(&key)?.public_key_raw() {
            return Err(IdentityError::Malformed("the certificate is for another key"));
        }
        Ok(Self {
            key,
            intermediate: issued.intermediate.map(CertificateDer::from),
            authority,
            peer: read.peer,
            cluster,
            not_before: read.not_before,
            not_after: read.not_after,
            leaf,
        })
    }

    /// The name and role in the certificate.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.not_after
    }

    /// When to ask for a new certificate: after half of the lifetime.
    pub fn renew_after(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + lifetime / 2
    }

    /// For a node: the authority over its workers.
    ///
    /// # Errors
    /// [`IdentityError`] if this is no node's identity.
    pub fn worker_authority(&self) -> Result<WorkerAuthority, IdentityError> {
        WorkerAuthority::of(self)
    }

    /// The identity as text, key included: for a file that only its owner reads, or a worker's
    /// standard input.
    pub fn to_pem(&self) -> String {
        let mut text = pem::block("PRIVATE KEY", self.key.secret_pkcs8_der());
        let certificates = std::iter::once(&self.leaf).chain(&self.intermediate).chain([&self.authority]);
        for certificate in certificates {
            text.push_str(&pem::block("CERTIFICATE", certificate));
        }
        text
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`IdentityError`] if the text is anything else.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let (key, mut certificates) = pem::key_and_certificates(text)?;
        let authority = certificates.pop().ok_or(IdentityError::Malformed("no certificate"))?;
        let mut rest = certificates.into_iter().map(|certificate| certificate.to_vec());
        let leaf = rest.next().ok_or(IdentityError::Malformed("only one certificate"))?;
        let issued = Issued { leaf, intermediate: rest.next(), authority: authority.to_vec() };
        Self::assemble(key, issued)
    }

    /// Writes the identity to a file that only its owner can read, whole or not at all.
    ///
    /// # Errors
    /// [`IdentityError::File`] if that fails.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, self.to_pem().as_bytes())
    }

    /// Reads the identity from a file.
    ///
    /// # Errors
    /// [`IdentityError`] if the file is missing or something else.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&folder::read_private(path)?)
    }

    /// Certificates to present, leaf first. A coordinator adds the authority, for those who join
    /// and know only its fingerprint.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![self.leaf.clone()];
        match self.peer.role() {
            Role::Worker => chain.extend(self.intermediate.clone()),
            Role::Coordinator => chain.push(self.authority.clone()),
            Role::Node | Role::User => {}
        }
        chain
    }

    pub(crate) fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn intermediate(&self) -> Option<&CertificateDer<'static>> {
        self.intermediate.as_ref()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {}, key withheld)", self.peer, self.cluster)
    }
}
