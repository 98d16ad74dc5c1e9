//! Joining with tokens, and everything that must not work.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures::FutureExt;
use sixfold_wire::version::{ALPN_JOIN, Version};

use super::*;
use crate::identity::{JoinToken, MEMBER_LIFETIME, Role, TokenRecord, tls};
use crate::{Disconnect, join};

/// A coordinator that lets joiners in as its records say.
fn coordinator(cluster: Cluster, records: Vec<TokenRecord>) -> Endpoint {
    let endpoint = cluster.coordinator();
    let records = Arc::new(Mutex::new(records));
    let authority = Arc::new(cluster.0);
    endpoint
        .serve_joins(move |request| {
            let decide = || {
                let mut records = records.lock().unwrap();
                let record = records.iter_mut().find(|record| record.secret_hash == request.secret_hash);
                let record = record.ok_or("unknown token")?;
                *record =
                    record.redeem(request.role, SystemTime::now()).map_err(|error| error.to_string())?;
                let peer = Peer::joining(record.role, &request.name).map_err(|error| error.to_string())?;
                authority
                    .issue(&request.signing_request, &peer, SystemTime::now(), MEMBER_LIFETIME)
                    .map_err(|error| error.to_string())
            };
            std::future::ready(decide()).boxed()
        })
        .unwrap();
    endpoint
}

fn token(cluster: &Cluster, lifetime: Duration) -> (JoinToken, TokenRecord) {
    JoinToken::new(cluster.0.cluster(), Role::Node, 1, SystemTime::now(), lifetime).unwrap()
}

#[tokio::test]
async fn a_token_makes_a_member_once() {
    let cluster = Cluster::new();
    let (token, record) = token(&cluster, HOUR);
    let server = coordinator(cluster, vec![record]);
    let address = server.local_address().unwrap();

    let identity = join(address, &token, "newcomer", &Clock::system()).await.unwrap();
    assert_eq!(identity.peer(), &Peer::node("newcomer").unwrap());
    let node = endpoint(identity, Clock::system());
    node.connect(address, Role::Coordinator).await.unwrap();

    let again = join(address, &token, "second", &Clock::system()).await.unwrap_err();
    assert!(again.to_string().contains("has been used"), "{again}");
}

#[tokio::test]
async fn expired_unknown_and_misnamed_joiners_are_refused() {
    let cluster = Cluster::new();
    let (expired, expired_record) = token(&cluster, Duration::ZERO);
    let (forged, _) = token(&cluster, HOUR);
    let (good, good_record) = token(&cluster, HOUR);
    let server = coordinator(cluster, vec![expired_record, good_record]);
    let address = server.local_address().unwrap();
    let refusals =
        [(expired, "a", "expired"), (forged, "a", "unknown token"), (good, "../a", "cannot be a name")];
    for (token, name, reason) in refusals {
        let error = join(address, &token, name, &Clock::system()).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_joiner_talks_to_no_other_cluster_than_its_tokens() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (token, _) = token(&ours, HOUR);
    let impostor = coordinator(theirs, Vec::new());
    let error = join(impostor.local_address().unwrap(), &token, "a", &Clock::system()).await.unwrap_err();
    assert!(error.to_string().contains("the cluster that the token names"), "{error}");
}

#[tokio::test]
async fn without_a_certificate_nothing_but_joining_is_possible() {
    let cluster = Cluster::new();
    let (token, record) = token(&cluster, HOUR);
    let server = coordinator(cluster, vec![record]);
    let _actor = server.register::<Arithmetic>("numbers", crate::identity::Roles::ANY, |_| Ok(()));
    let client = quinn::Endpoint::client(loopback()).unwrap();
    let dial = |alpn: &[u8]| {
        let tls = tls::joiner(&token, &Clock::system(), alpn).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        client.connect_with(config, server.local_address().unwrap(), tls::SERVER_NAME).unwrap()
    };
    let connection = dial(&Version::NEWEST.alpn()).await.unwrap();
    let reason = Disconnect::from(connection.closed().await);
    assert_eq!(reason, Disconnect::ByPeer("a certificate is required".into()));

    // On a join connection, an actor's opening is no request to join.
    let connection = dial(ALPN_JOIN).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let opening = sixfold_wire::stream::StreamOpening::Hello;
    crate::framed::send(&mut send, &opening).await.unwrap();
    assert!(matches!(Disconnect::from(connection.closed().await), Disconnect::ByPeer(_)));
    assert!(server.connections().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_serves_no_joins_offers_none() {
    let cluster = Cluster::new();
    let (token, _) = token(&cluster, HOUR);
    let server = cluster.coordinator();
    let error = join(server.local_address().unwrap(), &token, "a", &Clock::system()).await.unwrap_err();
    assert!(matches!(error, crate::JoinError::Connect { .. }), "{error}");
}
