//! Making keys, signing requests and certificates. The only user of rcgen's parameters.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateSigningRequestDer;

use super::IdentityError;

/// Clocks of two hosts may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// A key without a certificate yet.
#[derive(Debug)]
pub struct NewKey(KeyPair);

impl NewKey {
    /// A new Ed25519 key.
    ///
    /// # Errors
    /// [`IdentityError::Signing`] if the system has no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ED25519)?))
    }

    /// A PKCS #10 request (DER) that proves possession of the key. It names nobody: the authority
    /// decides the name.
    ///
    /// # Errors
    /// [`IdentityError::Signing`] if signing fails.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

/// The key that a signing request proves possession of. Nothing else in the request counts.
pub(super) fn requested_key(request: &[u8]) -> Result<impl PublicKeyData, IdentityError> {
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
    Ok(request.public_key)
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Validity {
    /// From now (a little earlier, for clocks that differ) for `lifetime`, and never after `end`.
    pub(super) fn within(
        now: SystemTime,
        lifetime: Duration,
        end: SystemTime,
    ) -> Result<Self, IdentityError> {
        let until = (now + lifetime).min(end);
        if until <= now {
            return Err(IdentityError::IssuerExpired);
        }
        Ok(Self { from: now - CLOCK_SKEW, until })
    }
}

pub(super) fn leaf_params(dns_name: &str, validity: Validity) -> Result<CertificateParams, IdentityError> {
    let mut params = base_params(dns_name, validity)?;
    params.subject_alt_names = vec![SanType::DnsName(dns_name.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

pub(super) fn root_params(validity: Validity) -> Result<CertificateParams, IdentityError> {
    let mut params = base_params("sixfold cluster authority", validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// An authority that may sign leaves below `domain` and nothing else.
pub(super) fn intermediate_params(
    domain: &str,
    validity: Validity,
) -> Result<CertificateParams, IdentityError> {
    let mut params = base_params(&format!("authority of {domain}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

fn base_params(common_name: &str, validity: Validity) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&random::<16>()?));
    Ok(params)
}

pub(super) fn sign(
    params: &CertificateParams,
    key: &impl PublicKeyData,
    issuer: &Issuer<'_, impl SigningKey>,
) -> Result<Certificate, IdentityError> {
    Ok(params.signed_by(key, issuer)?)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| IdentityError::Malformed("no randomness"))?;
    Ok(bytes)
}
