//! The cluster's certificate authority.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use sixfold_wire::id::ClusterId;

use super::certificate::{cluster_of, not_after};
use super::peer::{Peer, Role, worker_domain};
use super::signing::{self, NewKey, Validity};
use super::{Identity, IdentityError, Issued, folder, pem};

/// An authority is valid this long. Replacing it means a new cluster.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(20 * 365 * 24);

/// Signs the certificates of the members of one cluster.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    cluster: ClusterId,
    expires: SystemTime,
}

impl Authority {
    /// The authority kept in `file`, made now if there is none.
    ///
    /// # Errors
    /// [`IdentityError`] if the file cannot be read or written, or is something else.
    pub fn open_or_create(file: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        if file.exists() {
            let (key, certificates) = pem::key_and_certificates(&folder::read_private(file)?)?;
            let [certificate] = certificates.as_slice() else {
                return Err(IdentityError::Malformed("an authority's file holds one certificate"));
            };
            return Self::assemble(KeyPair::try_from(&key)?, certificate.clone());
        }
        let authority = Self::create(now)?;
        let key = pem::block("PRIVATE KEY", authority.issuer.key().serialized_der());
        let text = key + &pem::block("CERTIFICATE", &authority.certificate);
        folder::write_private(file, text.as_bytes())?;
        Ok(authority)
    }

    /// A new authority, kept nowhere: a new cluster.
    ///
    /// # Errors
    /// [`IdentityError::Signing`] if the system has no randomness.
    pub fn create(now: SystemTime) -> Result<Self, IdentityError> {
        let key = NewKey::generate()?;
        let validity = Validity::within(now, AUTHORITY_LIFETIME, now + AUTHORITY_LIFETIME)?;
        let certificate = signing::root_params(validity)?.self_signed(key.pair())?;
        let key = KeyPair::try_from(key.pair().serialized_der())?;
        Self::assemble(key, certificate.der().clone())
    }

    fn assemble(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, IdentityError> {
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            cluster: cluster_of(&certificate),
            expires: not_after(&certificate)?,
            certificate,
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Signs a certificate for `peer`. The key is the request's; nothing else in it counts. Also
    /// how a certificate is renewed: `peer` is then who asks.
    ///
    /// # Errors
    /// [`IdentityError`] if the request is malformed.
    pub fn issue(
        &self,
        request: &[u8],
        peer: &Peer,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, IdentityError> {
        self.issue_for(&signing::requested_key(request)?, peer, now, lifetime)
    }

    /// A key and certificate in one, for the coordinator itself and for tests.
    ///
    /// # Errors
    /// [`IdentityError`] if the system has no randomness.
    pub fn issue_identity(
        &self,
        peer: &Peer,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, IdentityError> {
        let key = NewKey::generate()?;
        let issued = self.issue_for(key.pair(), peer, now, lifetime)?;
        Identity::new(&key, issued)
    }

    fn issue_for(
        &self,
        key: &impl PublicKeyData,
        peer: &Peer,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, IdentityError> {
        let validity = Validity::within(now, lifetime, self.expires)?;
        let params = signing::leaf_params(&peer.dns_name(&self.cluster), validity)?;
        let leaf = signing::sign(&params, key, &self.issuer)?;
        let intermediate = match peer.role() {
            Role::Node => {
                let params =
                    signing::intermediate_params(&worker_domain(peer.name(), &self.cluster), validity)?;
                Some(signing::sign(&params, key, &self.issuer)?.der().to_vec())
            }
            Role::Coordinator | Role::Worker | Role::User => None,
        };
        Ok(Issued { leaf: leaf.der().to_vec(), intermediate, authority: self.certificate.to_vec() })
    }
}
