//! A link between two ranks of one process: buffers change hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::queue::{Next, Queue};
use crate::link::{LinkError, TensorLink};

/// One end of a link within a process.
#[derive(Debug)]
pub struct LocalLink {
    out: Arc<Queue>,
    incoming: Arc<Queue>,
    silence: Duration,
    bytes_sent: u64,
    waited: Duration,
}

const PEER: &str = "the other rank of this process";

/// Both ends of a link within a process. `window_bytes` and `silence` are those of
/// [`TensorOptions`](super::TensorOptions).
pub fn local_pair(window_bytes: usize, silence: Duration) -> (LocalLink, LocalLink) {
    let (there, back) = (Arc::new(Queue::new(window_bytes)), Arc::new(Queue::new(window_bytes)));
    let end = |out: &Arc<Queue>, incoming: &Arc<Queue>| LocalLink {
        out: out.clone(),
        incoming: incoming.clone(),
        silence,
        bytes_sent: 0,
        waited: Duration::ZERO,
    };
    (end(&there, &back), end(&back, &there))
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.out.close();
        self.incoming.fail("it dropped the link");
    }
}

impl TensorLink for LocalLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        let message_bytes = Bytes::copy_from_slice(message);
        let since = Instant::now();
        let pushed = self.out.push(message_bytes);
        self.waited += since.elapsed();
        pushed.map_err(|reason| closed(&reason))?;
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        let bytes = message.len() as u64;
        self.out.push_now(message).map_err(|reason| closed(&reason))?;
        self.bytes_sent += bytes;
        Ok(())
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let since = Instant::now();
        let next = self.incoming.pop(Some(since + self.silence));
        self.waited += since.elapsed();
        match next {
            Next::Message(arrived) => {
                self.incoming.release(arrived.len());
                check_length(PEER, message.len(), arrived.len() as u64)?;
                message.copy_from_slice(&arrived);
                Ok(())
            }
            Next::Closed => Err(closed("it dropped the link")),
            Next::Timeout => Err(timeout(PEER, self.silence)),
        }
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn kind(&self) -> &'static str {
        "local"
    }
}

fn closed(reason: &str) -> LinkError {
    LinkError::Closed { peer: PEER.to_owned(), reason: reason.to_owned() }
}

/// Refuses a message of another length than the receiver asked for.
pub(super) fn check_length(peer: &str, expected: usize, got: u64) -> Result<(), LinkError> {
    if expected as u64 == got {
        return Ok(());
    }
    Err(LinkError::Length { peer: peer.to_owned(), expected, got })
}

pub(super) fn timeout(peer: &str, waited: Duration) -> LinkError {
    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    LinkError::Timeout { peer: peer.to_owned(), waited_ms }
}
