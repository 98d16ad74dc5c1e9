//! How a process without a certificate gets one.
//!
//! It connects with an ALPN name of its own, presents no certificate and trusts only the authority
//! whose hash the token holds. Then it sends the token's secret, a name and a signing request, and
//! gets its certificate. Nothing else is possible on such a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sixfold_wire::id::ContentHash;
use sixfold_wire::version::ALPN_JOIN;

use crate::connection::{Disconnect, close_code};
use crate::framed::{self, FramedError};
use crate::identity::{Clock, Identity, IdentityError, Issued, JoinToken, NewKey, Role, tls};

/// How long the whole handshake may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a joiner asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Names the coordinator's record of the token.
    pub secret_hash: ContentHash,
    /// The role that the token is for, as the joiner says; the record decides.
    pub role: Role,
    /// The name that it wants.
    pub name: String,
    /// Its signing request (PKCS #10, DER). The same request again is the same joiner, whose
    /// answer got lost.
    pub signing_request: Vec<u8>,
}

/// A process could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answered, or whoever did is not the token's cluster.
    #[error("{address}: {reason}")]
    Connect {
        /// The coordinator's address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The coordinator said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// Keys or certificates failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

#[derive(Serialize, Deserialize)]
struct Asking {
    secret: Vec<u8>,
    role: Role,
    name: String,
    signing_request: Vec<u8>,
}

type Answer = Result<Issued, String>;

/// Joins the token's cluster as `name` and returns the identity, not yet saved.
///
/// # Errors
/// [`JoinError`] if the coordinator cannot be reached or refuses.
pub async fn join(
    address: SocketAddr,
    token: &JoinToken,
    name: &str,
    clock: &Clock,
) -> Result<Identity, JoinError> {
    let key = NewKey::generate()?;
    let asking = Asking {
        secret: token.secret().to_vec(),
        role: token.role,
        name: name.to_owned(),
        signing_request: key.signing_request()?,
    };
    let failed = |reason: String| JoinError::Connect { address, reason };
    let answer = tokio::time::timeout(JOIN_TIMEOUT, ask(address, token, &asking, clock)).await;
    let answer = answer.map_err(|_| failed("no answer".to_owned()))?.map_err(failed)?;
    let identity = Identity::new(&key, answer.map_err(JoinError::Refused)?)?;
    if *identity.cluster() == token.cluster() {
        Ok(identity)
    } else {
        Err(failed("the certificate is of another cluster".to_owned()))
    }
}

async fn ask(
    address: SocketAddr,
    token: &JoinToken,
    asking: &Asking,
    clock: &Clock,
) -> Result<Answer, String> {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let any = any.parse().map_err(|_| "no local address".to_owned())?;
    let endpoint = quinn::Endpoint::client(any).map_err(|error| error.to_string())?;
    let tls = tls::joiner(token, clock, ALPN_JOIN).map_err(|error| error.to_string())?;
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting =
        endpoint.connect_with(config, address, tls::SERVER_NAME).map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| Disconnect::from(error).to_string())?;
    let answer = exchange(&connection, asking).await.map_err(|error| match connection.close_reason() {
        Some(reason) => Disconnect::from(reason).to_string(),
        None => error.to_string(),
    });
    connection.close(close_code::ENDED.into(), b"");
    endpoint.wait_idle().await;
    answer
}

async fn exchange(connection: &quinn::Connection, asking: &Asking) -> Result<Answer, FramedError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(quinn::WriteError::from)?;
    framed::send(&mut send, asking).await?;
    framed::receive(&mut recv).await
}

/// Decides about those who join.
type Handler = Arc<dyn Fn(JoinRequest) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Serves one joiner: one stream, one request, one answer.
pub(crate) async fn serve(connection: &quinn::Connection, decide: Handler) -> Result<(), FramedError> {
    let answering = async {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(quinn::WriteError::from)?;
        let asking: Asking = framed::receive(&mut recv).await?;
        let request = JoinRequest {
            secret_hash: ContentHash::of(&asking.secret),
            role: asking.role,
            name: asking.name,
            signing_request: asking.signing_request,
        };
        framed::send(&mut send, &decide(request).await).await
    };
    let answered = tokio::time::timeout(JOIN_TIMEOUT, answering).await;
    answered.unwrap_or(Err(FramedError::Timeout))?;
    // The joiner closes when it has read the answer.
    let _ = tokio::time::timeout(JOIN_TIMEOUT, connection.closed()).await;
    Ok(())
}
