//! What a TLS handshake has proven about the other end.

use std::any::Any;
use std::time::SystemTime;

use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use sixfold_wire::id::ClusterId;

use crate::identity::{CertificateError, Leaf, Peer, cluster_of, not_after};

/// A verified peer.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) peer: Peer,
    /// When the first certificate of its chain ends.
    pub(crate) expires: SystemTime,
}

/// Reads the peer from the chain that TLS has verified; `None` if it presented no certificate.
pub(crate) fn verified(
    connection: &quinn::Connection,
    cluster: &ClusterId,
) -> Result<Option<Verified>, CertificateError> {
    let Some(chain) = connection.peer_identity().and_then(downcast::<Vec<CertificateDer<'static>>>) else {
        return Ok(None);
    };
    let Some(first) = chain.first() else { return Ok(None) };
    let leaf = Leaf::read(first, cluster)?;
    let mut expires = leaf.not_after;
    for issuer in chain.iter().skip(1).filter(|issuer| cluster_of(issuer) != *cluster) {
        expires = expires.min(not_after(issuer)?);
    }
    Ok(Some(Verified { peer: leaf.peer, expires }))
}

/// The ALPN name that both ends agreed on.
pub(crate) fn alpn(connection: &quinn::Connection) -> Vec<u8> {
    let data = connection.handshake_data().and_then(downcast::<HandshakeData>);
    data.and_then(|data| data.protocol).unwrap_or_default()
}

fn downcast<T: 'static>(any: Box<dyn Any>) -> Option<T> {
    any.downcast().ok().map(|boxed| *boxed)
}
