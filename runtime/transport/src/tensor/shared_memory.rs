//! A link between two processes of one host: a ring in shared memory for each direction.
//!
//! One end makes a file in `/dev/shm` that only its user can open and tells the other its random
//! name over an authenticated connection; the other opens it, which proves that both are on one
//! host, and removes the name. Then the two processes share the pages and nothing else. Waiting is
//! a futex after a short spin. Each end holds a lock on the file that the kernel drops when the
//! process dies, however it dies; a waiting end looks at the other's lock every 20 ms.
//!
//! Read [`SharedMemoryLink`] first, then `ring`. All unsafe code is in `region`.

mod region;
mod ring;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use self::region::{Region, Side};
use self::ring::{Ring, Wake};
use super::TensorOptions;
use super::local::{check_length, timeout};
use super::queue::{Next, Queue};
use crate::identity::Peer;
use crate::link::{LinkError, TensorLink};

/// A sender whose peer has taken nothing for so long hands the rest to a thread, so that it does not
/// wait for the peer to receive. While the peer does receive, waiting is cheaper than one more copy.
const SPILL_AFTER: Duration = Duration::from_millis(1);

/// What the other end needs to open the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    name: String,
    nonce: [u8; 16],
    ring_bytes: u64,
}

/// Memory that was made and not linked yet. Dropped, its name goes away.
#[derive(Debug)]
pub(super) struct Made {
    region: Region,
    offer: Offer,
}

/// Makes shared memory for one link.
pub(super) fn make(ring_bytes: usize) -> io::Result<Made> {
    let nonce = rand::random::<[u8; 16]>();
    let name = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let region = Region::make(&name, nonce, ring_bytes)?;
    Ok(Made { region, offer: Offer { name, nonce, ring_bytes: ring_bytes as u64 } })
}

/// Opens what the other end has made.
pub(super) fn open(offer: &Offer, peer: &Peer, options: &TensorOptions) -> io::Result<SharedMemoryLink> {
    let region = Region::open(&offer.name, offer.nonce, offer.ring_bytes)?;
    Ok(SharedMemoryLink::new(region, Side::Opener, peer, options))
}

impl Made {
    pub(super) fn offer(&self) -> Offer {
        self.offer.clone()
    }

    /// The link, once the other end has opened its side.
    pub(super) fn into_link(self, peer: &Peer, options: &TensorOptions) -> SharedMemoryLink {
        SharedMemoryLink::new(self.region, Side::Maker, peer, options)
    }
}

/// One end of a link over shared memory.
#[derive(Debug)]
pub struct SharedMemoryLink {
    end: Arc<End>,
    /// Messages, or the rest of one, that did not fit the ring.
    spilled: Arc<Queue>,
    spilling: bool,
    peer: String,
    silence: Duration,
    bytes_sent: u64,
    waited: Duration,
    /// Why the peer is gone, once this end knows.
    gone: Option<&'static str>,
}

/// One end of the memory. The other end is told when it is dropped, which is when the link has been
/// dropped and nothing is left to write.
#[derive(Debug)]
struct End {
    out: Ring,
    incoming: Ring,
}

impl Drop for End {
    fn drop(&mut self) {
        self.out.leave();
        self.incoming.leave();
    }
}

impl SharedMemoryLink {
    fn new(region: Region, side: Side, peer: &Peer, options: &TensorOptions) -> Self {
        let region = Arc::new(region);
        let end = End { out: Ring::writer(&region, side), incoming: Ring::reader(&region, side) };
        Self {
            end: Arc::new(end),
            spilled: Arc::new(Queue::new(options.window_bytes)),
            spilling: false,
            peer: peer.to_string(),
            silence: options.silence,
            bytes_sent: 0,
            waited: Duration::ZERO,
            gone: None,
        }
    }

    fn closed(&self, reason: impl ToString) -> LinkError {
        LinkError::Closed { peer: self.peer.clone(), reason: reason.to_string() }
    }

    fn has_gone(&mut self, reason: &'static str) -> LinkError {
        self.gone = Some(reason);
        self.closed(reason)
    }

    /// Writes into the ring while the peer makes room; returns what is left.
    fn write_now<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], LinkError> {
        while !bytes.is_empty() {
            let written = self.end.out.write(bytes).map_err(|broken| self.closed(broken))?;
            bytes = &bytes[written..];
            if written == 0 {
                let since = Instant::now();
                let wake = self.end.out.wait_for_room(since + SPILL_AFTER);
                self.waited += since.elapsed();
                match wake {
                    Wake::Ready => {}
                    Wake::Timeout => break,
                    Wake::Gone(reason) => return Err(self.has_gone(reason)),
                }
            }
        }
        Ok(bytes)
    }

    /// Waits, as long as the peer takes what was spilled, until all of it is gone.
    fn ring_is_ours(&mut self) -> Result<bool, LinkError> {
        loop {
            let taken = self.end.out.taken();
            let since = Instant::now();
            let idle = self.spilled.wait_idle(since + SPILL_AFTER);
            self.waited += since.elapsed();
            if idle.map_err(|reason| self.closed(reason))? {
                return Ok(true);
            }
            if self.end.out.taken() == taken {
                return Ok(false);
            }
        }
    }

    /// Leaves bytes to the spilling thread.
    fn spill(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        if !bytes.is_empty() {
            self.start_spilling()?;
        }
        self.spilled.push_pieces(bytes).map_err(|reason| self.closed(reason))
    }

    /// As [`Self::spill`], without waiting for room.
    fn spill_now(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.start_spilling()?;
        self.spilled.push_now(bytes).map_err(|reason| self.closed(reason))
    }

    /// Starts the spilling thread when it is first needed.
    fn start_spilling(&mut self) -> Result<(), LinkError> {
        if !self.spilling {
            let (end, queue) = (self.end.clone(), self.spilled.clone());
            let thread = std::thread::Builder::new().name("sixfold-spill".into());
            thread.spawn(move || write_spilled(&end, &queue)).map_err(|error| self.closed(error))?;
            self.spilling = true;
        }
        Ok(())
    }

    /// Writes what the ring has room for; returns what is left.
    fn write_what_fits(&self, mut bytes: Bytes) -> Result<Bytes, LinkError> {
        while !bytes.is_empty() {
            match self.end.out.write(&bytes).map_err(|broken| self.closed(broken))? {
                0 => break,
                written => bytes.advance(written),
            }
        }
        Ok(bytes)
    }

    fn check_open(&mut self) -> Result<(), LinkError> {
        self.gone.or_else(|| self.end.out.peer_gone()).map_or(Ok(()), |reason| Err(self.has_gone(reason)))
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), LinkError> {
        while !buffer.is_empty() {
            let read = self.end.incoming.read(buffer).map_err(|broken| self.closed(broken))?;
            buffer = &mut buffer[read..];
            if read == 0 {
                let since = Instant::now();
                let wake = self.end.incoming.wait_for_data(since + self.silence);
                self.waited += since.elapsed();
                match wake {
                    Wake::Ready => {}
                    Wake::Timeout => return Err(timeout(&self.peer, self.silence)),
                    Wake::Gone(reason) => return Err(self.has_gone(reason)),
                }
            }
        }
        Ok(())
    }
}

impl Drop for SharedMemoryLink {
    fn drop(&mut self) {
        self.spilled.close();
    }
}

impl TensorLink for SharedMemoryLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.check_open()?;
        let length = (message.len() as u64).to_le_bytes();
        // Bytes that were spilled go first; while there are none, the ring is this thread's.
        if self.ring_is_ours()? {
            let length_left = self.write_now(&length)?;
            let left = if length_left.is_empty() { self.write_now(message)? } else { message };
            self.spill(length_left)?;
            self.spill(left)?;
        } else {
            self.spill(&length)?;
            self.spill(message)?;
        }
        self.bytes_sent += message.len() as u64;
        Ok(())
    }

    fn post(&mut self, message: Bytes) -> Result<(), LinkError> {
        self.check_open()?;
        let bytes = message.len() as u64;
        let mut length = Bytes::copy_from_slice(&bytes.to_le_bytes());
        let mut left = message;
        if self.spilled.is_idle() {
            length = self.write_what_fits(length)?;
            if length.is_empty() {
                left = self.write_what_fits(left)?;
            }
        }
        self.spill_now(length)?;
        self.spill_now(left)?;
        self.bytes_sent += bytes;
        Ok(())
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let mut length = [0; 8];
        self.read_exact(&mut length)?;
        check_length(&self.peer, message.len(), u64::from_le_bytes(length))?;
        self.read_exact(message)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn kind(&self) -> &'static str {
        "shared-memory"
    }
}

/// Writes what was spilled until the link has been dropped and all is written, or the peer is gone.
fn write_spilled(end: &End, queue: &Queue) {
    while let Next::Message(message) = queue.pop(None) {
        if let Err(reason) = write_all(&end.out, &message) {
            queue.fail(&reason);
            return;
        }
        queue.release(message.len());
    }
}

fn write_all(out: &Ring, mut bytes: &[u8]) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(1);
    while !bytes.is_empty() {
        let written = out.write(bytes).map_err(|broken| broken.to_string())?;
        bytes = &bytes[written..];
        if written == 0
            && let Wake::Gone(reason) = out.wait_for_room(Instant::now() + PATIENCE)
        {
            return Err(reason.to_owned());
        }
    }
    Ok(())
}
