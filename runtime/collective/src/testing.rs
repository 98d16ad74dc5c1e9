//! Links within a test, as narrow as a link may be, and groups of threads over them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sixfold_transport::link::{LinkError, TensorLink};

use crate::exchange::IN_FLIGHT_BYTES_MAX;
use crate::group::TreeGroup;

/// One direction of a link.
#[derive(Default)]
struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Default)]
struct PipeState {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

impl PipeState {
    fn push(&mut self, message: &[u8]) -> Result<(), LinkError> {
        if self.closed {
            return Err(closed());
        }
        self.bytes += message.len();
        self.messages.push_back(message.to_vec());
        Ok(())
    }
}

/// A link that takes [`IN_FLIGHT_BYTES_MAX`] without its peer receiving, and not a byte more.
pub(crate) struct NarrowLink {
    outgoing: Arc<Pipe>,
    incoming: Arc<Pipe>,
    bytes_sent: u64,
    waited: Duration,
}

pub(crate) fn link_pair() -> (NarrowLink, NarrowLink) {
    let (a, b) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
    let end = |outgoing, incoming| NarrowLink { outgoing, incoming, bytes_sent: 0, waited: Duration::ZERO };
    (end(a.clone(), b.clone()), end(b, a))
}

fn closed() -> LinkError {
    LinkError::Closed { peer: "peer".into(), reason: "dropped".into() }
}

impl TensorLink for NarrowLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        let fits = |state: &mut PipeState| !state.closed && state.bytes + message.len() > IN_FLIGHT_BYTES_MAX;
        let mut state = self.outgoing.changed.wait_while(self.outgoing.state.lock().unwrap(), fits).unwrap();
        state.push(message)?;
        drop(state);
        self.outgoing.changed.notify_all();
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        self.outgoing.state.lock().unwrap().push(&message)?;
        self.outgoing.changed.notify_all();
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let empty = |state: &mut PipeState| !state.closed && state.messages.is_empty();
        let since = Instant::now();
        let arrived = !self.incoming.state.lock().unwrap().messages.is_empty();
        let mut state = self.incoming.changed.wait_while(self.incoming.state.lock().unwrap(), empty).unwrap();
        if !arrived {
            self.waited += since.elapsed();
        }
        let arrived = state.messages.pop_front().ok_or_else(closed)?;
        state.bytes -= arrived.len();
        self.incoming.changed.notify_all();
        if arrived.len() != message.len() {
            let got = arrived.len() as u64;
            return Err(LinkError::Length { peer: "peer".into(), expected: message.len(), got });
        }
        message.copy_from_slice(&arrived);
        Ok(())
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

impl Drop for NarrowLink {
    fn drop(&mut self) {
        for pipe in [&self.outgoing, &self.incoming] {
            pipe.state.lock().unwrap().closed = true;
            pipe.changed.notify_all();
        }
    }
}

/// Runs `member` on a thread for each member of a group and returns the results by index.
pub(crate) fn on_group<T: Send>(size: usize, member: impl Fn(TreeGroup) -> T + Sync) -> Vec<T> {
    let mut links: HashMap<(usize, usize), Box<dyn TensorLink>> = HashMap::new();
    for index in 0..size {
        for partner in TreeGroup::partners_of(index, size).filter(|partner| *partner > index) {
            let (left, right) = link_pair();
            links.insert((index, partner), Box::new(left));
            links.insert((partner, index), Box::new(right));
        }
    }
    let mut member_of = |index| {
        let partners = TreeGroup::partners_of(index, size);
        TreeGroup::new(index, partners.map(|partner| links.remove(&(index, partner)).unwrap()).collect())
    };
    let groups: Vec<_> = (0..size).map(|index| member_of(index).unwrap()).collect();
    thread::scope(|scope| {
        let member = &member;
        let threads: Vec<_> = groups.into_iter().map(|group| scope.spawn(move || member(group))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
