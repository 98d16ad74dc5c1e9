//! TLS settings: 1.3 only, both ends authenticated, no resumption, no tickets, no early data.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientCertVerifierBuilder, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;

use super::verify::{MemberVerifier, PinnedVerifier, chain_verifier};
use super::{Clock, Expected, Identity, JoinToken};

/// The name that diallers send in the clear. It says nothing about whom they dial.
pub(crate) const SERVER_NAME: &str = "cluster.sixfold";

/// Who may connect to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Members of the cluster only.
    Members,
    /// Also those who join; the endpoint lets them do that and nothing else.
    MembersAndJoiners,
}

/// AES-128-GCM first: it costs least where the CPU has AES instructions, which is everywhere we run.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Settings of a server that presents `identity`.
pub(crate) fn server(
    identity: &Identity,
    clock: &Clock,
    alpn: Vec<Vec<u8>>,
    admission: Admission,
) -> Result<QuicServerConfig, Error> {
    let provider = provider();
    let verifier = client_verifier(&provider, identity, admission)?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), private_key(identity))?;
    config.alpn_protocols = alpn;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    identity: &Identity,
    admission: Admission,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority().clone())?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = match admission {
        Admission::Members => builder,
        Admission::MembersAndJoiners => ClientCertVerifierBuilder::allow_unauthenticated(builder),
    };
    builder.build().map_err(|error| Error::General(error.to_string()))
}

/// Settings of a dialler that presents `identity` and talks only to whom it expects.
pub(crate) fn client(
    identity: &Identity,
    clock: &Clock,
    alpn: Vec<Vec<u8>>,
    expected: Expected,
) -> Result<QuicClientConfig, Error> {
    let provider = provider();
    let chain = chain_verifier(&provider, identity.authority())?;
    let verifier = MemberVerifier { chain, cluster: identity.cluster().clone(), expected };
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain(), private_key(identity))?;
    config.alpn_protocols = alpn;
    finish_client(config)
}

/// Settings of one without a certificate yet, who trusts only the token's authority.
pub(crate) fn joiner(token: &JoinToken, clock: &Clock, alpn: &[u8]) -> Result<QuicClientConfig, Error> {
    let provider = provider();
    let verifier = PinnedVerifier { provider: provider.clone(), authority: token.authority_hash() };
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    finish_client(config)
}

fn finish_client(mut config: ClientConfig) -> Result<QuicClientConfig, Error> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

fn private_key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(identity.key().clone_key())
}
