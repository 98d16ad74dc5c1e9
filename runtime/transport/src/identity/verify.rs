//! What a dialler demands of a server's certificate, on top of what TLS verifies.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sixfold_wire::id::{ClusterId, ContentHash};

use super::certificate::{CertificateError, Leaf, cluster_of};
use super::peer::{Expected, Role};

/// The server must hold a certificate of our cluster that names whom we expect.
#[derive(Debug)]
pub(crate) struct MemberVerifier {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    pub(super) cluster: ClusterId,
    pub(super) expected: Expected,
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let check = (&self.cluster, &self.expected);
        verify(&self.chain, check, end_entity, intermediates, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The server must be a coordinator of the cluster whose authority's hash we know.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) authority: ContentHash,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|certificate| ContentHash::of(certificate) == self.authority);
        let pinned = pinned.ok_or_else(|| refuse(CertificateError::WrongCluster))?;
        let chain = chain_verifier(&self.provider, pinned)?;
        let check = (&cluster_of(pinned), &Expected::Role(Role::Coordinator));
        verify(&chain, check, end_entity, intermediates, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies chains that end in `authority`.
pub(super) fn chain_verifier(
    provider: &Arc<CryptoProvider>,
    authority: &CertificateDer<'_>,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// The chain is verified for the name that the leaf itself claims; who that is, is ours to judge.
fn verify(
    chain: &WebPkiServerVerifier,
    (cluster, expected): (&ClusterId, &Expected),
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ocsp_response: &[u8],
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let peer = Leaf::read(end_entity, cluster).map_err(refuse)?.peer;
    let name = ServerName::try_from(peer.dns_name(cluster)).map_err(|_| refuse(CertificateError::Names))?;
    let verified = chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)?;
    if expected.admits(&peer) {
        return Ok(verified);
    }
    Err(refuse(CertificateError::Unexpected { expected: expected.to_string(), found: peer.to_string() }))
}

/// As text: rustls prints other errors by their `Debug`, and a person will read this.
fn refuse(error: CertificateError) -> Error {
    Error::General(error.to_string())
}
