//! Tests of `tensor`.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::identity::{Authority, Expected, Identity, Role};
use crate::link::{LinkError, TensorLink};

type Link = Box<dyn TensorLink>;

const SOON: Duration = Duration::from_secs(20);

fn options(policy: LinkPolicy) -> TensorOptions {
    let bind = (Ipv4Addr::LOCALHOST, 0).into();
    let defaults = TensorOptions::new(bind);
    TensorOptions {
        policy,
        ring_bytes: 64 << 10,
        silence: SOON,
        idle_timeout: Duration::from_millis(800),
        ..defaults
    }
}

fn key(epoch: u64) -> LinkKey {
    LinkKey { job: JobId(3), epoch: Epoch(epoch), from: 0, to: 1, purpose: "train".into() }
}

struct Ranks {
    authority: Authority,
    runtime: Runtime,
    /// What links take in, where a test does not leave it at the default.
    window_bytes: Option<usize>,
}

impl Ranks {
    fn new() -> Self {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { authority, runtime, window_bytes: None }
    }

    fn identity(&self, peer: Peer) -> Identity {
        self.authority.issue_identity(&peer, SystemTime::now(), Duration::from_hours(1)).unwrap()
    }

    fn endpoint(&self, name: &str, options: TensorOptions) -> TensorEndpoint {
        TensorEndpoint::bind(self.identity(Peer::node(name).unwrap()).into(), options).unwrap()
    }

    fn meet(&self, from: LinkPolicy, to: LinkPolicy) -> (Result<Link, SetupError>, Result<Link, SetupError>) {
        let of = |policy| {
            let defaults = options(policy);
            TensorOptions { window_bytes: self.window_bytes.unwrap_or(defaults.window_bytes), ..defaults }
        };
        let (a, b) = (self.endpoint("a", of(from)), self.endpoint("b", of(to)));
        self.runtime.block_on(async {
            tokio::join!(
                a.connect(b.local_address().unwrap(), Peer::node("b").unwrap(), key(1)),
                b.accept(Peer::node("a").unwrap(), key(1)),
            )
        })
    }

    fn pair(&self, policy: LinkPolicy) -> (Link, Link) {
        let (a, b) = self.meet(policy, LinkPolicy::Auto);
        (a.unwrap(), b.unwrap())
    }

    fn every_kind(&self) -> [(Link, Link); 3] {
        let (a, b) = local_pair(self.window_bytes.unwrap_or(64 << 20), SOON);
        let local: (Link, Link) = (Box::new(a), Box::new(b));
        [local, self.pair(LinkPolicy::SharedMemory), self.pair(LinkPolicy::Quic)]
    }
}

fn message(bytes: usize, seed: u64) -> Vec<u8> {
    (0..bytes as u64).map(|index| (index.wrapping_mul(31) ^ seed ^ (index >> 8)).to_le_bytes()[0]).collect()
}

#[test]
fn the_kind_is_shared_memory_on_one_host_unless_forced() {
    let ranks = Ranks::new();
    let kinds = ranks.every_kind().map(|(a, b)| (a.kind(), b.kind()));
    assert_eq!(kinds, [("local", "local"), ("shared-memory", "shared-memory"), ("quic", "quic")]);
    assert_eq!(ranks.pair(LinkPolicy::Auto).0.kind(), "shared-memory");
    let (a, b) = ranks.meet(LinkPolicy::SharedMemory, LinkPolicy::Quic);
    assert!(matches!(a, Err(SetupError::Refused { .. })) && b.is_err());
}

#[test]
fn messages_of_any_size_arrive_whole_and_in_order_both_ways() {
    let ranks = Ranks::new();
    let strategy = proptest::collection::vec(prop_oneof![0..100_usize, 0..300_000_usize], 1..12);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(8));
    for pair in ranks.every_kind() {
        let pair = std::cell::RefCell::new(pair);
        runner
            .run(&strategy, |sizes| {
                let (a, b) = &mut *pair.borrow_mut();
                std::thread::scope(|scope| {
                    scope.spawn(|| exchange(&mut **b, &sizes, 1, 0));
                    exchange(&mut **a, &sizes, 0, 1);
                });
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn what_is_posted_does_not_wait_for_the_peer_and_stays_in_order() {
    const BYTES: usize = 1 << 20;
    const WINDOW_BYTES: usize = 8 << 20;
    let ranks = Ranks { window_bytes: Some(WINDOW_BYTES), ..Ranks::new() };
    for (mut a, mut b) in ranks.every_kind() {
        let posted = 2 * WINDOW_BYTES / BYTES;
        a.send(&[7]).unwrap();
        let waited = a.waited();
        for seed in 0..posted as u64 {
            a.post(message(BYTES, seed).into()).unwrap();
        }
        a.post(Bytes::new()).unwrap();
        assert_eq!(a.bytes_sent(), (posted * BYTES) as u64 + 1);
        assert_eq!(a.waited(), waited, "{}", a.kind());
        let mut received = vec![0; BYTES];
        b.recv(&mut received[..1]).unwrap();
        for seed in 0..posted as u64 {
            b.recv(&mut received).unwrap();
            assert!(received == message(BYTES, seed), "{} {seed}", b.kind());
        }
        b.recv(&mut []).unwrap();
        // Nothing is left under way, so the thread may write itself again.
        a.send(&[8]).unwrap();
        b.recv(&mut received[..1]).unwrap();
        assert_eq!(received[0], 8);
        drop(b);
        let until = Instant::now() + SOON;
        while a.post(message(BYTES, 0).into()).is_ok() {
            assert!(Instant::now() < until, "a peer that has gone is noticed");
        }
    }
}

/// Sends everything, then receives everything.
fn exchange(link: &mut dyn TensorLink, sizes: &[usize], own: u64, others: u64) {
    let before = link.bytes_sent();
    for size in sizes {
        link.send(&message(*size, own)).unwrap();
    }
    assert_eq!(link.bytes_sent() - before, sizes.iter().sum::<usize>() as u64);
    for size in sizes {
        let mut received = vec![0; *size];
        link.recv(&mut received).unwrap();
        assert!(received == message(*size, others), "{size} bytes differ");
    }
}

#[test]
fn both_ends_may_send_much_before_either_receives() {
    for (mut a, mut b) in Ranks::new().every_kind() {
        let large = [24 << 20, 100, 8 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| exchange(&mut *b, &large, 1, 0));
            exchange(&mut *a, &large, 0, 1);
        });
    }
}

#[test]
fn one_thread_may_send_a_window_to_itself() {
    for (mut a, mut b) in Ranks::new().every_kind() {
        let sent = message(10 << 20, 5);
        a.send(&sent).unwrap();
        a.send(b"tail").unwrap();
        let (mut received, mut tail) = (vec![0; sent.len()], [0; 4]);
        b.recv(&mut received).unwrap();
        b.recv(&mut tail).unwrap();
        assert!(received == sent && &tail == b"tail");
        a.send(b"more").unwrap();
        b.recv(&mut tail).unwrap();
        assert_eq!(&tail, b"more");
    }
}

#[test]
fn another_length_is_an_error() {
    for (mut a, mut b) in Ranks::new().every_kind() {
        a.send(&[1, 2, 3]).unwrap();
        assert!(matches!(b.recv(&mut [0; 4]), Err(LinkError::Length { expected: 4, got: 3, .. })));
    }
}

#[test]
fn what_was_sent_before_a_drop_still_arrives_and_then_the_end() {
    for (mut a, mut b) in Ranks::new().every_kind() {
        let sent = message(3 << 20, 9);
        a.send(&sent).unwrap();
        drop(a);
        let mut received = vec![0; sent.len()];
        b.recv(&mut received).unwrap();
        assert!(received == sent);
        assert!(matches!(b.recv(&mut [0; 1]), Err(LinkError::Closed { .. })), "{}", b.kind());
        let refused = (0..1000).find_map(|_| b.send(&sent).err());
        assert!(matches!(refused, Some(LinkError::Closed { .. })), "{}", b.kind());
    }
}

#[test]
fn a_silent_peer_is_a_timeout() {
    let (_a, mut b) = local_pair(1 << 20, Duration::from_millis(20));
    assert!(matches!(b.recv(&mut [0; 1]), Err(LinkError::Timeout { waited_ms: 20, .. })));
    let ranks = Ranks::new();
    for policy in [LinkPolicy::SharedMemory, LinkPolicy::Quic] {
        let impatient = TensorOptions { silence: Duration::from_millis(50), ..options(policy) };
        let (a, b) = (ranks.endpoint("a", impatient), ranks.endpoint("b", options(policy)));
        let (mut a, _b) = ranks.runtime.block_on(async {
            let (a, b) = tokio::join!(
                a.connect(b.local_address().unwrap(), Role::Node, key(1)),
                b.accept(Role::Node, key(1)),
            );
            (a.unwrap(), b.unwrap())
        });
        assert!(matches!(a.recv(&mut [0; 1]), Err(LinkError::Timeout { waited_ms: 50, .. })));
    }
}

#[test]
fn strangers_stale_epochs_and_roles_that_are_no_ranks_get_no_link() {
    let ranks = Ranks::new();
    let host = ranks.endpoint("b", options(LinkPolicy::Auto));
    let rank = ranks.endpoint("a", options(LinkPolicy::Auto));
    let address = host.local_address().unwrap();
    host.begin_epoch(JobId(3), Epoch(2));
    ranks.runtime.block_on(async {
        let stale = rank.connect(address, Role::Node, key(1)).await.err().unwrap();
        assert!(stale.to_string().contains("a newer epoch has begun"), "{stale}");
        assert!(matches!(host.accept(Role::Node, key(1)).await, Err(SetupError::Stale(_))));

        let other = rank.connect(address, Peer::node("c").unwrap(), key(2)).await.err().unwrap();
        assert!(other.to_string().contains("found node `b`"), "{other}");

        let user = ranks.identity(Peer::user("ada").unwrap());
        let user = TensorEndpoint::bind(user.into(), options(LinkPolicy::Auto)).unwrap();
        let refused = user.connect(address, Role::Node, key(2)).await.err().unwrap();
        assert!(refused.to_string().contains("only ranks"), "{refused}");

        let stranger = Ranks::new();
        let stranger_endpoint = stranger.endpoint("a", options(LinkPolicy::Auto));
        assert!(stranger_endpoint.connect(address, Role::Node, key(2)).await.is_err());
        tokio::task::block_in_place(|| drop(stranger));
    });
}

#[test]
fn a_quic_link_ends_with_its_peers_certificate() {
    let ranks = Ranks::new();
    let identity = ranks.identity(Peer::node("a").unwrap());
    let (ends, start) = (identity.expires(), Instant::now());
    // This rank's clock reaches the end of the certificates soon after the handshake.
    let clock = Clock::new(move || ends - Duration::from_millis(500) + start.elapsed());
    let late = ranks.endpoint("b", TensorOptions { clock, ..options(LinkPolicy::Quic) });
    let rank = TensorEndpoint::bind(identity.into(), options(LinkPolicy::Quic)).unwrap();
    let (mut a, mut b) = ranks.runtime.block_on(async {
        let (a, b) = tokio::join!(
            rank.connect(late.local_address().unwrap(), Role::Node, key(1)),
            late.accept(Role::Node, key(1)),
        );
        (a.unwrap(), b.unwrap())
    });
    for link in [&mut a, &mut b] {
        let end = link.recv(&mut [0; 1]).unwrap_err().to_string();
        assert!(end.contains("expired") || end.contains("closed here"), "{end}");
    }
}

#[test]
fn links_outlive_the_endpoints_that_made_them() {
    let ranks = Ranks::new();
    for policy in [LinkPolicy::SharedMemory, LinkPolicy::Quic] {
        let (a, b) = (ranks.endpoint("a", options(policy)), ranks.endpoint("b", options(LinkPolicy::Auto)));
        let address = b.local_address().unwrap();
        let accepting = async move { b.accept(Role::Node, key(1)).await };
        let connecting = async move { a.connect(address, Role::Node, key(1)).await };
        let accepting = ranks.runtime.spawn(accepting);
        let mut a = ranks.runtime.block_on(connecting).unwrap();
        let mut b = ranks.runtime.block_on(accepting).unwrap().unwrap();
        a.send(b"still here").unwrap();
        let mut received = [0; 10];
        b.recv(&mut received).unwrap();
        assert_eq!(&received, b"still here");
    }
}

#[test]
fn an_impostor_is_refused_and_the_expected_rank_still_gets_its_link() {
    let ranks = Ranks::new();
    let [host, rank, impostor] = ["b", "a", "x"].map(|name| ranks.endpoint(name, options(LinkPolicy::Auto)));
    let address = host.local_address().unwrap();
    ranks.runtime.block_on(async {
        let accepting = host.accept(Expected::Host("a".into()), key(1));
        let connecting = async {
            let refused = impostor.connect(address, Role::Node, key(1)).await.err().unwrap();
            assert!(refused.to_string().contains("found node `x`"), "{refused}");
            rank.connect(address, Role::Node, key(1)).await
        };
        let (accepted, connected) = tokio::join!(accepting, connecting);
        assert!(accepted.is_ok() && connected.is_ok());
    });
}

/// A child process that connects a link, sends one byte and then does nothing until it is killed.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn child_rank() {
    let mut input = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut input).unwrap();
    let (first, pem) = input.split_once('\n').unwrap();
    let (address, policy) = first.split_once(' ').unwrap();
    let endpoint =
        TensorEndpoint::bind(Identity::from_pem(pem).unwrap().into(), options(policy.parse().unwrap()))
            .unwrap();
    let runtime = Runtime::new().unwrap();
    let link = runtime.block_on(endpoint.connect(address.parse().unwrap(), Role::Node, key(1)));
    let mut link = link.unwrap();
    link.send(&[42]).unwrap();
    link.recv(&mut [0; 1]).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_kill_of_a_peers_process_is_noticed() {
    let ranks = Ranks::new();
    for policy in ["shared-memory", "quic"] {
        let host = ranks.endpoint("b", options(LinkPolicy::Auto));
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tensor::tests::child_rank", "--ignored", "--nocapture"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let pem = ranks.identity(Peer::node("a").unwrap()).to_pem();
        let input = format!("{} {policy}\n{pem}", host.local_address().unwrap());
        std::io::Write::write_all(&mut child.0.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let mut link = ranks.runtime.block_on(host.accept(Role::Node, key(1))).unwrap();
        assert_eq!(link.kind(), policy);
        let mut byte = [0];
        link.recv(&mut byte).unwrap();
        assert_eq!(byte, [42]);
        child.0.kill().unwrap();
        let killed = Instant::now();
        assert!(matches!(link.recv(&mut byte), Err(LinkError::Closed { .. })));
        let noticed = killed.elapsed();
        // QUIC's idle timeout is at least three probe timeouts, which grow on a loaded machine.
        assert!(noticed < Duration::from_secs(8), "{policy}: {noticed:?}");
        assert!(matches!(link.send(&byte), Err(LinkError::Closed { .. })));
    }
}
