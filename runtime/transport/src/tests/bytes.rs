//! Byte streams.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::OpenError;
use crate::identity::{Role, Roles};

#[tokio::test]
async fn bytes_and_header_arrive_and_an_answer_returns() {
    let pair = Pair::connect().await;
    let _served = pair.coordinator.register_streams("echo", Roles::ANY, |incoming| {
        tokio::spawn(async move {
            let times: u32 = incoming.header().unwrap();
            let mut stream = incoming.accept().await.unwrap();
            let mut content = Vec::new();
            stream.recv.read_to_end(&mut content).await.unwrap();
            for _ in 0..times {
                stream.send.write_all(&content).await.unwrap();
            }
            stream.send.finish().await.unwrap();
        });
    });
    let content: Vec<u8> = (0..300_000_u32).map(|index| index.to_le_bytes()[1]).collect();
    let mut stream = pair.at_node.open_stream("echo", &3_u32).await.unwrap();
    stream.send.write_all(&content).await.unwrap();
    stream.send.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.recv.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, content.repeat(3));
}

#[tokio::test]
async fn a_sender_that_goes_away_early_is_an_error_not_an_end() {
    let pair = Pair::connect().await;
    let (done, outcome) = oneshot::channel();
    let done = std::sync::Mutex::new(Some(done));
    let _served = pair.coordinator.register_streams("push", Roles::ANY, move |incoming| {
        let done = done.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            let mut stream = incoming.accept().await.unwrap();
            done.send(stream.recv.read_to_end(&mut Vec::new()).await).unwrap();
        });
    });
    let mut stream = pair.at_node.open_stream("push", &()).await.unwrap();
    stream.send.write_all(b"half of it").await.unwrap();
    drop(stream);
    assert!(outcome.await.unwrap().is_err());
}

#[tokio::test]
async fn streams_are_refused_by_kind_role_and_handler() {
    let pair = Pair::connect().await;
    let _users = pair.coordinator.register_streams("users", Role::User, |_| {});
    let _never = pair.coordinator.register_streams("never", Roles::ANY, |incoming| {
        tokio::spawn(async move { incoming.refuse("not today").await });
    });
    for (kind, reason) in [("nothing", "no `nothing`"), ("users", "role `node`"), ("never", "not today")] {
        let refused = pair.at_node.open_stream(kind, &()).await.unwrap_err();
        assert!(matches!(refused, OpenError::Refused { .. }));
        assert!(refused.to_string().contains(reason), "{refused}");
    }
}
