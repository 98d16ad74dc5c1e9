//! Actor channels: order, replies, credits, deadlines, death; and peers that break the rules.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sixfold_wire::channel::ChannelFrame;
use sixfold_wire::frame::FrameBuffer;
use sixfold_wire::limits::{CREDIT_BYTES, MESSAGE_BYTES_MAX};
use sixfold_wire::stream::{StreamAnswer, StreamOpening};
use tokio::sync::mpsc;

use super::*;
use crate::identity::{Identity, Role, Roles};
use crate::{
    ActorGone, CallError, ChannelOptions, Death, Delivery, Disconnect, OpenError, Registration, RemoteRef,
    TryCastError, framed,
};

const NAME: &str = "numbers";
const SOON: Duration = Duration::from_secs(10);

fn doubler(endpoint: &Endpoint) -> Registration {
    endpoint.register::<Arithmetic>(NAME, Roles::ANY, |delivery| {
        if let (Arithmetic::Double(number), Some(reply)) = (delivery.message, delivery.reply) {
            reply.send(&(2 * number));
        }
        Ok(())
    })
}

/// An actor whose messages wait until the test takes them.
fn mailbox(
    endpoint: &Endpoint,
    window: u32,
) -> (Registration, mpsc::UnboundedReceiver<Delivery<Arithmetic>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let registration = endpoint.register_with_window(NAME, Roles::ANY, window, move |delivery| {
        sender.send(delivery).map_err(|_| ActorGone)
    });
    (registration, receiver)
}

async fn open(pair: &Pair) -> RemoteRef<Arithmetic> {
    pair.at_node.actor(NAME, ChannelOptions::default()).await.unwrap()
}

#[tokio::test]
async fn calls_are_answered_in_both_directions_of_one_connection() {
    let pair = Pair::connect().await;
    let _there = doubler(&pair.coordinator);
    let _here = doubler(&pair.node);
    let up = open(&pair).await;
    let down = pair.at_coordinator.actor::<Arithmetic>(NAME, ChannelOptions::URGENT).await.unwrap();
    assert_eq!(up.call(Arithmetic::Double(21), SOON).await.unwrap(), 42);
    assert_eq!(down.call(Arithmetic::Double(4), SOON).await.unwrap(), 8);
}

#[tokio::test]
async fn many_calls_run_at_once_and_are_answered_in_any_order() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 1024);
    let numbers = open(&pair).await;
    let calls = (0..500).map(|number| {
        let numbers = numbers.clone();
        tokio::spawn(async move { (number, numbers.call(Arithmetic::Double(number), SOON).await.unwrap()) })
    });
    let calls: Vec<_> = calls.collect();
    let mut held = Vec::new();
    while held.len() < 500 {
        held.push(arrived.recv().await.unwrap());
    }
    for delivery in held.into_iter().rev() {
        let Arithmetic::Double(number) = delivery.message else { panic!("not a call") };
        delivery.reply.unwrap().send(&(2 * number));
    }
    for call in calls {
        let (number, reply) = call.await.unwrap();
        assert_eq!(reply, 2 * number);
    }
}

#[tokio::test]
async fn casts_arrive_in_order() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 16);
    let numbers = open(&pair).await;
    let sending = tokio::spawn(async move {
        for number in 0..2000 {
            numbers.cast(Arithmetic::Double(number)).await.unwrap();
        }
        numbers
    });
    for number in 0..2000 {
        assert_eq!(arrived.recv().await.unwrap().message, Arithmetic::Double(number));
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_slow_actor_holds_no_more_than_the_window() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 32);
    let numbers = open(&pair).await;
    for _ in 0..32 {
        numbers.try_cast(&Arithmetic::Ignore).unwrap();
    }
    assert!(matches!(numbers.try_cast(&Arithmetic::Ignore), Err(TryCastError::Full)));
    let waiting = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.cast(Arithmetic::Double(1)).await }
    });
    let mut held = Vec::new();
    while held.len() < 32 {
        held.push(arrived.recv().await.unwrap());
    }
    assert!(arrived.try_recv().is_err() && !waiting.is_finished());
    held.clear();
    waiting.await.unwrap().unwrap();
    assert_eq!(arrived.recv().await.unwrap().message, Arithmetic::Double(1));
}

#[tokio::test]
async fn large_messages_take_credits_by_size_and_pass_even_if_larger_than_the_window() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 16);
    let numbers = open(&pair).await;
    numbers.try_cast(&Arithmetic::Bulk(vec![1; 12 * CREDIT_BYTES])).unwrap();
    let second = Arithmetic::Bulk(vec![2; 12 * CREDIT_BYTES]);
    assert!(matches!(numbers.try_cast(&second), Err(TryCastError::Full)));
    drop(arrived.recv().await.unwrap());
    let huge = Arithmetic::Bulk(vec![3; MESSAGE_BYTES_MAX - 64]);
    numbers.cast(huge.clone()).await.unwrap();
    assert_eq!(arrived.recv().await.unwrap().message, huge);
    let too_long = numbers.cast(Arithmetic::Bulk(vec![0; MESSAGE_BYTES_MAX])).await.unwrap_err();
    assert!(too_long.to_string().contains("limit") || too_long.to_string().contains("encode"), "{too_long}");
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_its_late_reply_is_dropped() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 4);
    let numbers = open(&pair).await;
    let late = numbers.call(Arithmetic::Double(1), Duration::from_millis(30)).await;
    assert!(matches!(late, Err(CallError::Deadline(_))));
    let reply = arrived.recv().await.unwrap().reply.unwrap();
    // The actor counts from the arrival, a little later than the caller.
    tokio::time::sleep_until(reply.deadline().into()).await;
    assert!(reply.abandoned());
    reply.send(&99);
    let second = tokio::spawn(async move { numbers.call(Arithmetic::Double(2), SOON).await });
    arrived.recv().await.unwrap().reply.unwrap().send(&4);
    assert_eq!(second.await.unwrap().unwrap(), 4);
}

#[tokio::test]
async fn a_dropped_reply_is_an_error_not_a_wait() {
    let pair = Pair::connect().await;
    let _actor = doubler(&pair.coordinator);
    let numbers = open(&pair).await;
    assert!(matches!(numbers.call(Arithmetic::Ignore, SOON).await, Err(CallError::Unanswered)));
}

#[tokio::test]
async fn an_actors_stop_reaches_its_remote_refs_with_the_reason() {
    let pair = Pair::connect().await;
    let (actor, mut arrived) = mailbox(&pair.coordinator, 4);
    let numbers = open(&pair).await;
    let pending = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.call(Arithmetic::Double(1), SOON).await }
    });
    let _held = arrived.recv().await.unwrap();
    actor.stop("panicked at the disco");
    let death = Death::Stopped("panicked at the disco".into());
    assert_eq!(numbers.closed().await, death);
    assert!(matches!(pending.await.unwrap(), Err(CallError::Cast(_))));
    assert!(numbers.cast(Arithmetic::Ignore).await.is_err());
    let reopened = pair.at_node.actor::<Arithmetic>(NAME, ChannelOptions::default()).await;
    assert!(matches!(reopened, Err(OpenError::Refused { .. })));
}

#[tokio::test]
async fn an_actor_that_takes_no_more_messages_ends_its_channel() {
    let pair = Pair::connect().await;
    let _actor = pair.coordinator.register::<Arithmetic>(NAME, Roles::ANY, |_| Err(ActorGone));
    let numbers = open(&pair).await;
    numbers.cast(Arithmetic::Ignore).await.unwrap();
    assert!(matches!(numbers.closed().await, Death::Stopped(_)));
}

#[tokio::test]
async fn a_lost_connection_reaches_its_remote_refs() {
    let pair = Pair::connect().await;
    let _actor = doubler(&pair.coordinator);
    let numbers = open(&pair).await;
    pair.coordinator.shutdown("going down").await;
    let reason = Disconnect::ByPeer("going down".into());
    assert_eq!(numbers.closed().await, Death::Disconnected(reason));
    assert!(matches!(numbers.call(Arithmetic::Ignore, SOON).await, Err(CallError::Cast(_))));
    assert!(pair.coordinator.accept().await.is_none());
}

#[tokio::test]
async fn the_last_clone_closes_the_channel() {
    let pair = Pair::connect().await;
    let (_actor, mut arrived) = mailbox(&pair.coordinator, 4);
    let numbers = open(&pair).await;
    let clone = numbers.clone();
    numbers.cast(Arithmetic::Double(1)).await.unwrap();
    drop(numbers);
    let call = tokio::spawn(async move { clone.call(Arithmetic::Double(2), SOON).await });
    arrived.recv().await.unwrap();
    let reply = arrived.recv().await.unwrap().reply.unwrap();
    assert!(!reply.abandoned());
    reply.send(&4);
    assert_eq!(call.await.unwrap().unwrap(), 4);
}

#[tokio::test]
async fn more_channels_than_quic_allows_by_default_stay_usable() {
    let pair = Pair::connect().await;
    let _actor = doubler(&pair.coordinator);
    let mut open_channels = Vec::new();
    for number in 0..300 {
        let numbers = open(&pair).await;
        assert_eq!(numbers.call(Arithmetic::Double(number), SOON).await.unwrap(), 2 * number);
        open_channels.push(numbers);
    }
}

#[tokio::test]
async fn unknown_actors_and_other_protocols_are_refused() {
    let pair = Pair::connect().await;
    let _actor = doubler(&pair.coordinator);
    let missing = pair.at_node.actor::<Arithmetic>("nobody", ChannelOptions::default()).await.unwrap_err();
    assert!(missing.to_string().contains("`nobody`"), "{missing}");
    let other = pair.at_node.actor::<Other>(NAME, ChannelOptions::default()).await.unwrap_err();
    assert!(other.to_string().contains("`arithmetic`"), "{other}");
}

/// A channel on which the test sends what it likes; returns why the actor ended it.
async fn rude(pair: &Pair, bytes: &[u8]) -> String {
    let (mut send, mut recv) = pair.at_node.quinn().open_bi().await.unwrap();
    let opening = StreamOpening::Actor { actor: NAME.into(), protocol: Arithmetic::PROTOCOL.into() };
    framed::send(&mut send, &opening).await.unwrap();
    framed::receive::<StreamAnswer>(&mut recv).await.unwrap();
    send.write_all(bytes).await.unwrap();
    let answer = recv.read_to_end(4096).await.unwrap();
    let mut frames = FrameBuffer::new(4096);
    frames.push(&answer);
    let body = frames.next_frame().unwrap().unwrap();
    match ChannelFrame::parse(body).unwrap() {
        ChannelFrame::Stopped(reason) => reason.to_owned(),
        other => panic!("expected an end, got {other:?}"),
    }
}

#[tokio::test]
async fn peers_that_break_the_rules_lose_their_channel_and_nothing_is_applied() {
    let pair = Pair::connect().await;
    let applied = Arc::new(AtomicUsize::new(0));
    let counter = applied.clone();
    let _actor = pair.coordinator.register::<Arithmetic>(NAME, Roles::ANY, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let four_gib = rude(&pair, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await;
    assert!(four_gib.contains("4294967295 bytes"), "{four_gib}");

    let mut corrupt = Vec::new();
    ChannelFrame::Cast(&[1, 0, 0, 0]).write(&mut corrupt);
    *corrupt.last_mut().unwrap() ^= 1;
    assert!(rude(&pair, &corrupt).await.contains("checksum"));

    let mut malformed = Vec::new();
    ChannelFrame::Cast(&[9, 9, 9, 9]).write(&mut malformed);
    assert!(rude(&pair, &malformed).await.contains("malformed"));

    let mut reply = Vec::new();
    ChannelFrame::Credit(5).write(&mut reply);
    assert!(rude(&pair, &reply).await.contains("reply"));
    assert_eq!(applied.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_sender_that_ignores_credits_is_cut_off_at_the_window() {
    let pair = Pair::connect().await;
    let held = Arc::new(Mutex::new(Vec::new()));
    let keep = held.clone();
    let _actor = pair.coordinator.register_with_window::<Arithmetic>(NAME, Roles::ANY, 8, move |delivery| {
        keep.lock().unwrap().push(delivery);
        Ok(())
    });
    let mut flood = Vec::new();
    for _ in 0..1000 {
        ChannelFrame::Cast(&[1, 0, 0, 0]).write(&mut flood);
    }
    assert!(rude(&pair, &flood).await.contains("credits"));
    assert_eq!(held.lock().unwrap().len(), 8);
}

/// A child process with an actor, which serves until it is killed.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn child_with_an_actor() {
    let mut pem = String::new();
    std::io::Read::read_to_string(&mut std::io::stdin(), &mut pem).unwrap();
    let child = endpoint(Identity::from_pem(&pem).unwrap(), Clock::system());
    let _actor = doubler(&child);
    eprintln!("listens at {}", child.local_address().unwrap());
    std::thread::park();
}

#[tokio::test]
async fn the_kill_of_an_actors_process_is_noticed() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let cluster = Cluster::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::channels::child_with_an_actor", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pem = cluster.identity(Peer::node("b").unwrap()).to_pem();
    child.stdin.take().unwrap().write_all(pem.as_bytes()).unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address =
        lines.filter_map(|line| line.strip_prefix("listens at ").map(str::to_owned)).next().unwrap();
    let options =
        EndpointOptions { idle_timeout: Duration::from_millis(800), ..EndpointOptions::new(loopback()) };
    let node = Endpoint::bind(cluster.identity(Peer::node("a").unwrap()), &options).unwrap();
    let connection = node.connect(address.parse().unwrap(), Role::Node).await.unwrap();
    let numbers = connection.actor::<Arithmetic>(NAME, ChannelOptions::default()).await.unwrap();
    assert_eq!(numbers.call(Arithmetic::Double(5), SOON).await.unwrap(), 10);
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = std::time::Instant::now();
    assert_eq!(numbers.closed().await, Death::Disconnected(Disconnect::Silent));
    let noticed = killed.elapsed();
    // The idle timeout is at least three probe timeouts, which grow on a loaded machine.
    assert!(noticed < Duration::from_secs(8), "{noticed:?}");
}

#[tokio::test]
async fn a_busy_runtime_loses_no_peer() {
    let cluster = Cluster::new();
    let options = EndpointOptions {
        idle_timeout: Duration::from_millis(300),
        keep_alive: Duration::from_millis(50),
        ..EndpointOptions::new(loopback())
    };
    let bind = |peer| Endpoint::bind(cluster.identity(peer), &options).unwrap();
    let (server, node) = (bind(Peer::coordinator("main").unwrap()), bind(Peer::node("a").unwrap()));
    let _actor = doubler(&server);
    let connection = node.connect(server.local_address().unwrap(), Role::Coordinator).await.unwrap();
    let numbers = connection.actor::<Arithmetic>(NAME, ChannelOptions::default()).await.unwrap();
    let before = connection.activity().datagrams_received;
    // The only thread of this test's runtime computes for several idle timeouts.
    let busy = std::time::Instant::now();
    while busy.elapsed() < Duration::from_millis(900) {
        std::hint::black_box(busy.elapsed());
    }
    assert_eq!(connection.close_reason(), None);
    assert!(connection.activity().datagrams_received > before);
    assert_eq!(numbers.call(Arithmetic::Double(5), SOON).await.unwrap(), 10);
}
