//! How a member gets its next certificate: it asks over a connection that its present one opened.
//!
//! The name and the role stay those of the connection; only the key is new. Who lets its
//! certificate expire has to join again with a token.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sixfold_wire::message::Message;
use tokio::runtime::Handle;

use crate::channel::{CallError, ChannelOptions, Delivery};
use crate::connection::{Connection, OpenError};
use crate::endpoint::{Endpoint, Registration};
use crate::identity::{Identity, IdentityError, Issued, NewKey, Peer, Roles};

/// Name of the actor that renews certificates.
const RENEWALS_ACTOR: &str = "renewals";
/// How long the answer may take.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a certificate for the key of this signing request (PKCS #10, DER).
#[derive(Debug, Serialize, Deserialize)]
struct Renew(Vec<u8>);

impl Message for Renew {
    type Reply = Result<Issued, String>;
    const PROTOCOL: &'static str = "sixfold.renewal";
}

/// A certificate could not be renewed; the present one stays.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The coordinator does not renew certificates of this role.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It did not answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// Keys or certificates failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Asks the coordinator at the other end for a new certificate; the identity is not yet saved.
///
/// # Errors
/// [`RenewalError`]; the present certificate goes on for as long as it is valid.
pub async fn renew(connection: &Connection) -> Result<Identity, RenewalError> {
    let key = NewKey::generate()?;
    let renewals = connection.actor::<Renew>(RENEWALS_ACTOR, ChannelOptions::default()).await?;
    let issued = renewals.call(Renew(key.signing_request()?), RENEWAL_TIMEOUT).await?;
    Ok(Identity::new(&key, issued.map_err(RenewalError::Refused)?)?)
}

/// Lets members of these roles renew their certificates; `sign` makes one for the peer who asks.
pub fn serve_renewals(
    endpoint: &Endpoint,
    roles: impl Into<Roles>,
    sign: impl Fn(&Peer, &[u8]) -> Result<Issued, String> + Send + Sync + 'static,
) -> Registration {
    let (sign, runtime) = (Arc::new(sign), Handle::current());
    endpoint.register(RENEWALS_ACTOR, roles, move |delivery: Delivery<Renew>| {
        let sign = Arc::clone(&sign);
        runtime.spawn_blocking(move || {
            let Delivery { from, message, reply, .. } = delivery;
            if let Some(reply) = reply {
                reply.send(&sign(&from, &message.0));
            }
        });
        Ok(())
    })
}
