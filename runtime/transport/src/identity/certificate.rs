//! Reads our certificates.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use sixfold_wire::id::{ClusterId, ContentHash};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::peer::{Peer, PeerNameError};

/// The certificate is not one of this cluster's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("malformed certificate")]
    Malformed,
    /// It names no peer, or several.
    #[error("the certificate must hold exactly one name")]
    Names,
    /// The name is not a member's.
    #[error(transparent)]
    Name(#[from] PeerNameError),
    /// It is a peer's, but not the one that was asked for.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// Who was asked for.
        expected: String,
        /// Who answered.
        found: String,
    },
    /// The join token pins another cluster's authority.
    #[error("the server does not hold a certificate of the cluster that the token names")]
    WrongCluster,
}

/// The id of the cluster whose authority this is: the BLAKE3 hash of its certificate.
pub fn cluster_of(authority: &CertificateDer<'_>) -> ClusterId {
    ClusterId(ContentHash::of(authority).to_string())
}

/// What we need of a leaf certificate.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) peer: Peer,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) public_key: Vec<u8>,
}

impl Leaf {
    /// Reads a leaf. Verifies nothing: TLS has, or the caller made it.
    pub(crate) fn read(der: &CertificateDer<'_>, cluster: &ClusterId) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let [GeneralName::DNSName(name)] = names else { return Err(CertificateError::Names) };
        Ok(Self {
            peer: Peer::from_dns_name(name, cluster)?,
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// When a certificate ends.
pub(crate) fn not_after(der: &CertificateDer<'_>) -> Result<SystemTime, CertificateError> {
    Ok(system_time(parse(der)?.validity().not_after))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    if rest.is_empty() { Ok(certificate) } else { Err(CertificateError::Malformed) }
}

/// A time before 1970 counts as 1970: such a certificate has ended either way.
fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
