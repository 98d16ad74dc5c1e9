//! The text form of keys and certificates (RFC 7468).

use data_encoding::BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::IdentityError;

/// One block.
pub(super) fn block(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        block.push_str(line);
        block.push('\n');
        rest = after;
    }
    block.push_str(&format!("-----END {label}-----\n"));
    block
}

/// The only key and the certificates (three at most) of a file.
pub(super) fn key_and_certificates(
    text: &str,
) -> Result<(PrivatePkcs8KeyDer<'static>, Vec<CertificateDer<'static>>), IdentityError> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| IdentityError::Malformed("no private key"))?;
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(4)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| IdentityError::Malformed("a broken certificate"))?;
    if certificates.len() > 3 {
        return Err(IdentityError::Malformed("too many certificates"));
    }
    Ok((key, certificates))
}
