//! X-X1: who is let in, and who is not.

use std::time::SystemTime;

use super::*;
use crate::identity::{Expected, Role};
use crate::{ChannelOptions, ConnectError, Disconnect, OpenError, RenewalError, renew, serve_renewals};

#[tokio::test]
async fn both_ends_learn_the_name_in_the_others_certificate() {
    let pair = Pair::connect().await;
    assert_eq!(pair.at_node.peer(), &Peer::coordinator("main").unwrap());
    assert_eq!(pair.at_coordinator.peer(), &Peer::node("a").unwrap());
    assert_eq!(pair.at_node.version().to_string(), "1");
    let found = pair.coordinator.connection_to(&Peer::node("a").unwrap()).unwrap();
    assert!(found.same(&pair.at_coordinator));
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused_by_either_end() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = ours.coordinator();
    let stranger = theirs.node("a");
    let error = stranger.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap_err();
    assert!(matches!(error, ConnectError::Failed { .. }), "{error}");

    // A dialler that trusts our authority but holds a certificate of another one.
    let mut forged = theirs.identity(Peer::node("a").unwrap()).to_pem();
    let own_root = forged.rfind("-----BEGIN").unwrap();
    let ours_pem = ours.identity(Peer::node("a").unwrap()).to_pem();
    forged.replace_range(own_root.., &ours_pem[ours_pem.rfind("-----BEGIN").unwrap()..]);
    assert!(Identity::from_pem(&forged).is_err(), "the name is bound to the cluster");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_end() {
    let cluster = Cluster::new();
    let late = endpoint(cluster.identity(Peer::coordinator("late").unwrap()), clock_ahead(2 * HOUR));
    let node = cluster.node("a");
    let error = node.connect(late.local_address().unwrap(), Role::Coordinator).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("expired"), "{error}");
    assert!(late.connections().is_empty());

    let server = cluster.coordinator();
    let late = endpoint(cluster.identity(Peer::node("b").unwrap()), clock_ahead(2 * HOUR));
    let error = late.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("expired"), "{error}");
}

#[tokio::test]
async fn a_server_of_another_name_or_role_is_refused() {
    let cluster = Cluster::new();
    let (server, node) = (cluster.coordinator(), cluster.node("a"));
    let address = server.local_address().unwrap();
    let wrong: [Expected; 3] =
        [Role::Node.into(), Peer::coordinator("other").unwrap().into(), Expected::Host("main".into())];
    for expected in wrong {
        let error = node.connect(address, expected).await.unwrap_err();
        assert!(error.to_string().contains("found coordinator `main`"), "{error}");
    }
    assert!(node.connect(address, Role::Coordinator).await.is_ok());
}

#[tokio::test]
async fn a_worker_is_let_in_and_known_by_its_node() {
    let cluster = Cluster::new();
    let (server, node) = (cluster.coordinator(), cluster.identity(Peer::node("a").unwrap()));
    let worker = node.worker_authority().unwrap().issue_identity("rank-0", SystemTime::now(), HOUR).unwrap();
    // A worker gets its identity as text.
    let worker = endpoint(Identity::from_pem(&worker.to_pem()).unwrap(), Clock::system());
    worker.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    let seen = server.accept().await.unwrap();
    assert_eq!(seen.peer().host(), Some("a"));
    assert_eq!(seen.peer().role(), Role::Worker);
    let back = server.connect(worker.local_address().unwrap(), Expected::Host("a".into())).await.unwrap();
    assert_eq!(back.peer().name(), "rank-0");
}

#[tokio::test]
async fn a_node_cannot_sign_for_anyone_but_its_own_workers() {
    let cluster = Cluster::new();
    let server = cluster.coordinator();
    let signer = cluster.identity(Peer::node("a").unwrap()).worker_authority().unwrap();
    let forged = [
        Peer::worker("b", "rank-0").unwrap(),
        Peer::node("b").unwrap(),
        Peer::user("root").unwrap(),
        Peer::coordinator("main").unwrap(),
    ];
    for peer in forged {
        let identity = signer.issue_for_peer(&peer, SystemTime::now(), HOUR).unwrap();
        let liar = endpoint(identity, Clock::system());
        let refused = liar.connect(server.local_address().unwrap(), Role::Coordinator).await;
        assert!(refused.is_err(), "{peer} signed by node a was let in");
    }
    assert!(server.connections().is_empty());
}

#[tokio::test]
async fn a_connection_closes_when_its_peers_certificate_ends() {
    let cluster = Cluster::new();
    // The server's clock reaches the end of the certificates a moment after the handshake.
    let server = cluster.identity(Peer::coordinator("main").unwrap());
    let node = cluster.identity(Peer::node("a").unwrap());
    let moment = Duration::from_millis(500);
    let ends = node.expires().min(server.expires());
    let start = std::time::Instant::now();
    let server = endpoint(server, Clock::new(move || ends - moment + start.elapsed()));
    let node = endpoint(node, Clock::system());
    let connection = node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    assert_eq!(connection.closed().await, Disconnect::Expired);
}

#[tokio::test]
async fn a_role_that_may_not_use_an_actor_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.coordinator();
    let _actor = server.register::<Arithmetic>("numbers", Role::Node, |_| Ok(()));
    let user = cluster.endpoint(Peer::user("ada").unwrap());
    let connection = user.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    let refused = connection.actor::<Arithmetic>("numbers", ChannelOptions::default()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("`user`"), "{refused}");
}

#[tokio::test]
async fn a_renewed_identity_serves_new_connections() {
    let cluster = Cluster::new();
    let server = cluster.coordinator();
    let node = cluster.node("a");
    let first = node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    let renewed = cluster.identity(Peer::coordinator("renewed").unwrap());
    server.set_identity(renewed).unwrap();
    let second = node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    assert_eq!((first.peer().name(), second.peer().name()), ("main", "renewed"));
    assert_eq!(first.close_reason(), None);
}

#[tokio::test]
async fn a_node_renews_its_certificate_under_its_own_name() {
    let cluster = Cluster::new();
    let (server, node) = (cluster.coordinator(), cluster.node("a"));
    let user = cluster.endpoint(Peer::user("ada").unwrap());
    let _renewals = serve_renewals(&server, Role::Node, move |peer, request| {
        cluster.0.issue(request, peer, SystemTime::now(), HOUR).map_err(|error| error.to_string())
    });
    let first = node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    let renewed = renew(&first).await.unwrap();
    assert_eq!(renewed.peer(), node.identity().peer());
    assert_ne!(renewed.to_pem(), node.identity().to_pem(), "the key is new");
    node.set_identity(renewed).unwrap();
    node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();

    let connection = user.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    assert!(matches!(renew(&connection).await, Err(RenewalError::Open(_))));
}
