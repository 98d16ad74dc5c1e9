//! HTTPS, where a certificate is configured.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{GatewayError, TlsFiles};

/// Reads certificate and key.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, GatewayError> {
    let refused = |path: &std::path::Path, error: &dyn std::fmt::Display| {
        GatewayError::Certificate(format!("{}: {error}", path.display()))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| refused(&files.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| refused(&files.key, &error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&files.certificate, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| refused(&files.certificate, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
