//! A node's authority over its workers.

use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use sixfold_wire::id::ClusterId;

use super::certificate::not_after;
use super::peer::{Peer, Role};
use super::signing::{self, NewKey, Validity};
use super::{Identity, IdentityError, Issued};

/// Signs the certificates of one node's workers. Its own certificate has path length 0 and a name
/// constraint, so that whatever else it signs is refused by every peer.
#[derive(Debug)]
pub struct WorkerAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    cluster: ClusterId,
    node: String,
    expires: SystemTime,
}

impl WorkerAuthority {
    pub(super) fn of(node: &Identity) -> Result<Self, IdentityError> {
        let certificate = match (node.peer().role(), node.intermediate()) {
            (Role::Node, Some(certificate)) => certificate.clone(),
            _ => return Err(IdentityError::Malformed("only a node signs its workers' certificates")),
        };
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(node.key())?)?,
            expires: not_after(&certificate)?.min(node.expires()),
            certificate,
            root: node.authority().clone(),
            cluster: node.cluster().clone(),
            node: node.peer().name().to_owned(),
        })
    }

    /// A key and certificate for the worker `name`, valid for `lifetime` but not longer than the
    /// node's own.
    ///
    /// # Errors
    /// [`IdentityError`] if `name` is no DNS label or the node's certificate has expired.
    pub fn issue_identity(
        &self,
        name: &str,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, IdentityError> {
        self.issue_for_peer(&Peer::worker(&self.node, name)?, now, lifetime)
    }

    /// Signs any name: peers refuse those outside the name constraint.
    pub(crate) fn issue_for_peer(
        &self,
        peer: &Peer,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, IdentityError> {
        let key = NewKey::generate()?;
        let validity = Validity::within(now, lifetime, self.expires)?;
        let params = signing::leaf_params(&peer.dns_name(&self.cluster), validity)?;
        let leaf = signing::sign(&params, key.pair(), &self.issuer)?;
        let issued = Issued {
            leaf: leaf.der().to_vec(),
            intermediate: Some(self.certificate.to_vec()),
            authority: self.root.to_vec(),
        };
        Identity::new(&key, issued)
    }
}
