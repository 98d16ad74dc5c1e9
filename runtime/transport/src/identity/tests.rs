//! Tests of `identity`.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

#[test]
fn names_stand_in_certificates_and_come_back() {
    let cluster = ClusterId("0123456789abcdef0123456789abcdef".into());
    let peers = [
        Peer::coordinator("main").unwrap(),
        Peer::node("node-3").unwrap(),
        Peer::user("ada").unwrap(),
        Peer::worker("node-3", "rank-0").unwrap(),
    ];
    for peer in peers {
        assert_eq!(Peer::from_dns_name(&peer.dns_name(&cluster), &cluster).unwrap(), peer);
    }
    let worker = Peer::worker("node-3", "rank-0").unwrap();
    assert_eq!(worker.dns_name(&cluster), "rank-0.node-3.worker.0123456789abcdef.sixfold");
}

#[test]
fn odd_names_are_refused() {
    let cluster = ClusterId("0123456789abcdef".into());
    for text in ["", "-a", "a-", "A", "a.b", "a b", "../x", &"a".repeat(64)] {
        assert!(Peer::node(text).is_err(), "{text:?}");
    }
    let forms = [
        "node-3.worker.0123456789abcdef.sixfold",
        "a.b.node.0123456789abcdef.sixfold",
        "a.boss.0123456789abcdef.sixfold",
        "a.node.fedcba9876543210.sixfold",
        "a.nodex0123456789abcdef.sixfold",
        "0123456789abcdef.sixfold",
        "",
    ];
    for form in forms {
        assert!(Peer::from_dns_name(form, &cluster).is_err(), "{form:?}");
    }
}

#[test]
fn roles_are_sets() {
    let both = Roles::from([Role::Node, Role::User]);
    assert!(both.contains(Role::User) && both.contains(Role::Node));
    assert!(!both.contains(Role::Worker) && !both.contains(Role::Coordinator));
}

#[test]
fn an_authority_and_an_identity_survive_in_private_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys/authority.pem");
    let first = Authority::open_or_create(&file, now()).unwrap();
    let again = Authority::open_or_create(&file, now()).unwrap();
    assert_eq!(first.cluster(), again.cluster());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let identity = again.issue_identity(&Peer::node("a").unwrap(), now(), HOUR).unwrap();
    let path = folder.path().join("identity.pem");
    identity.save(&path).unwrap();
    let loaded = Identity::load(&path).unwrap();
    assert_eq!(loaded.peer(), identity.peer());
    assert_eq!(loaded.expires(), now() + HOUR);
    assert_eq!(loaded.to_pem(), identity.to_pem());
}

#[test]
fn a_request_gets_the_name_that_the_authority_decides() {
    let authority = Authority::create(now()).unwrap();
    let key = NewKey::generate().unwrap();
    let peer = Peer::node("given").unwrap();
    let issued = authority.issue(&key.signing_request().unwrap(), &peer, now(), HOUR).unwrap();
    let identity = Identity::new(&key, issued.clone()).unwrap();
    assert_eq!(identity.peer(), &peer);
    let other = NewKey::generate().unwrap();
    assert!(Identity::new(&other, issued).is_err(), "a certificate for another key");
    let mut forged = key.signing_request().unwrap();
    *forged.last_mut().unwrap() ^= 1;
    assert!(authority.issue(&forged, &peer, now(), HOUR).is_err(), "no proof of possession");
}

#[test]
fn a_worker_does_not_outlive_its_nodes_certificate() {
    let authority = Authority::create(now()).unwrap();
    let node = authority.issue_identity(&Peer::node("a").unwrap(), now(), HOUR).unwrap();
    let workers = node.worker_authority().unwrap();
    let worker = workers.issue_identity("w", now(), WORKER_LIFETIME).unwrap();
    assert_eq!(worker.expires(), node.expires());
    assert!(matches!(workers.issue_identity("w", now() + 2 * HOUR, HOUR), Err(IdentityError::IssuerExpired)));
    let user = authority.issue_identity(&Peer::user("u").unwrap(), now(), HOUR).unwrap();
    assert!(user.worker_authority().is_err());
}

#[test]
fn renewal_is_due_after_half_of_the_lifetime() {
    let authority = Authority::create(now()).unwrap();
    let node = authority.issue_identity(&Peer::node("a").unwrap(), now(), MEMBER_LIFETIME).unwrap();
    let due = node.renew_after().duration_since(now()).unwrap();
    assert!(due > MEMBER_LIFETIME / 2 - Duration::from_mins(10) && due <= MEMBER_LIFETIME / 2);
}

#[test]
fn a_token_counts_its_uses_and_ends() {
    let authority = Authority::create(now()).unwrap();
    let (token, record) = JoinToken::new(authority.cluster(), Role::Node, 2, now(), HOUR).unwrap();
    assert_eq!(record.secret_hash, token.secret_hash());
    let once = record.redeem(Role::Node, now()).unwrap();
    let twice = once.redeem(Role::Node, now()).unwrap();
    assert_eq!(twice.redeem(Role::Node, now()), Err(TokenError::Used));
    assert_eq!(record.redeem(Role::User, now()), Err(TokenError::Unknown));
    assert_eq!(record.redeem(Role::Node, now() + HOUR), Err(TokenError::Expired));
    assert!(token.expired(now() + HOUR) && !token.expired(now()));
    assert!(JoinToken::new(authority.cluster(), Role::Coordinator, 1, now(), HOUR).is_err());
}

#[test]
fn a_token_survives_its_text_and_a_mistyped_one_is_noticed() {
    let authority = Authority::create(now()).unwrap();
    let (token, _) = JoinToken::new(authority.cluster(), Role::User, 1, now(), HOUR).unwrap();
    let text = token.to_string();
    assert_eq!(text.parse::<JoinToken>().unwrap(), token);
    assert_eq!(&token.cluster(), authority.cluster());
    for index in 0..text.len() {
        let mut wrong = text.clone().into_bytes();
        wrong[index] = if wrong[index] == b'A' { b'B' } else { b'A' };
        assert!(String::from_utf8(wrong).unwrap().parse::<JoinToken>().is_err(), "byte {index}");
        assert!(text[..index].parse::<JoinToken>().is_err());
    }
    assert!(!format!("{token:?}").contains(&text[60..]));
}

proptest! {
    #[test]
    fn arbitrary_text_is_no_token_and_no_identity(text in "\\PC{0,200}") {
        prop_assert!(text.parse::<JoinToken>().is_err());
        prop_assert!(Identity::from_pem(&text).is_err());
    }
}
