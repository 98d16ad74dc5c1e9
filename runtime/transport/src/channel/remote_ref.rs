//! The sending end of an actor channel.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sixfold_wire::channel::{ChannelFrame, write_call, write_cast};
use sixfold_wire::codec::{self, DecodeError, EncodeError};
use sixfold_wire::frame::{FRAME_HEAD_BYTES, FrameBuffer};
use sixfold_wire::limits::{FRAME_BYTES_MAX, credits_for};
use sixfold_wire::message::Message;
use sixfold_wire::version::{CapabilityError, Version};
use tokio::sync::{Semaphore, TryAcquireError, oneshot, watch};

use super::Death;
use super::outbox::Outbox;
use crate::connection::{Connection, Disconnect};
use crate::identity::Peer;

/// Bytes of a call's frame besides its payload; an upper bound for a cast's.
const CALL_HEAD_BYTES: usize = FRAME_HEAD_BYTES + 13;

/// A message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum CastError {
    /// The actor cannot be reached any more.
    #[error(transparent)]
    Dead(#[from] Death),
    /// The message cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The peer is too old for the message.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
}

/// A message was not sent at once.
#[derive(Debug, thiserror::Error)]
pub enum TryCastError {
    /// The actor is behind: the window is full.
    #[error("the actor is behind")]
    Full,
    /// It can never be sent.
    #[error(transparent)]
    Cast(#[from] CastError),
}

/// A call has no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was not sent.
    #[error(transparent)]
    Cast(#[from] CastError),
    /// The deadline passed. The actor may still do what was asked.
    #[error("no reply within {0:?}")]
    Deadline(Duration),
    /// The actor let the call go without a reply.
    #[error("the actor gave no reply")]
    Unanswered,
    /// The reply is of another type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// An actor of another process. Cheap to clone; the channel closes with the last clone.
pub struct RemoteRef<M> {
    handle: Arc<Handle>,
    message: PhantomData<fn(M)>,
}

impl<M> Clone for RemoteRef<M> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), message: PhantomData }
    }
}

impl<M> fmt::Debug for RemoteRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteRef(`{}` of {})", self.handle.0.actor, self.handle.0.peer)
    }
}

/// Ends the channel when the last `RemoteRef` goes; its tasks hold the channel alone.
struct Handle(Arc<Channel>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.outbox.end(None);
    }
}

struct Channel {
    peer: Peer,
    actor: String,
    version: Version,
    window: u32,
    outbox: Outbox,
    credits: Semaphore,
    calls: Mutex<Calls>,
    next_call: AtomicU64,
    death: watch::Sender<Option<Death>>,
}

type Answer = Result<Vec<u8>, CallError>;

/// Calls that wait for their answer; `None` once the channel is dead.
type Calls = Option<HashMap<u64, oneshot::Sender<Answer>>>;

impl<M: Message> RemoteRef<M> {
    pub(crate) fn open(
        connection: &Connection,
        actor: &str,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        window: u32,
    ) -> Self {
        let channel = Arc::new(Channel {
            peer: connection.peer().clone(),
            actor: actor.to_owned(),
            version: connection.version(),
            window,
            outbox: Outbox::default(),
            credits: Semaphore::new(usize::try_from(window).unwrap_or(Semaphore::MAX_PERMITS)),
            calls: Mutex::new(Some(HashMap::new())),
            next_call: AtomicU64::new(0),
            death: watch::Sender::new(None),
        });
        let (writer, reader) = (channel.clone(), channel.clone());
        // A failed write is a failed connection or a stopped stream: the reader sees why.
        connection.runtime().spawn(async move { writer.outbox.write_to(send).await });
        let quinn = connection.quinn().clone();
        connection.runtime().spawn(async move {
            let death = reader.read_from(recv, &quinn).await;
            reader.die(death);
        });
        Self { handle: Arc::new(Handle(channel)), message: PhantomData }
    }

    /// Who hosts the actor.
    pub fn peer(&self) -> &Peer {
        &self.channel().peer
    }

    /// The actor's name.
    pub fn actor(&self) -> &str {
        &self.channel().actor
    }

    /// Sends a message once the actor has room for it. Returns when it is on its way, not when it
    /// has arrived.
    ///
    /// # Errors
    /// [`CastError`] if it can never arrive.
    pub async fn cast(&self, message: M) -> Result<(), CastError> {
        message.check(self.channel().version)?;
        let mut frame = Vec::with_capacity(128);
        let payload_bytes = write_cast(&mut frame, &message)?;
        self.channel().send(&frame, payload_bytes).await
    }

    /// Sends a message if the actor has room for it now.
    ///
    /// # Errors
    /// [`TryCastError::Full`] if it has not; [`TryCastError::Cast`] if it can never arrive.
    pub fn try_cast(&self, message: &M) -> Result<(), TryCastError> {
        let channel = self.channel();
        message.check(channel.version).map_err(CastError::from)?;
        let mut frame = Vec::with_capacity(128);
        let payload_bytes = write_cast(&mut frame, message).map_err(CastError::from)?;
        match channel.credits.try_acquire_many(credits_for(payload_bytes, channel.window)) {
            Ok(credits) => credits.forget(),
            Err(TryAcquireError::NoPermits) => return Err(TryCastError::Full),
            Err(TryAcquireError::Closed) => return Err(CastError::from(channel.cause()).into()),
        }
        channel.outbox.push(&frame).map_err(|_| CastError::from(channel.cause()).into())
    }

    /// Sends a message and waits for its reply, `deadline` at most, the wait for room included.
    ///
    /// # Errors
    /// [`CallError`] if there is no reply. After [`CallError::Deadline`] the actor may still act.
    pub async fn call(&self, message: M, deadline: Duration) -> Result<M::Reply, CallError> {
        let channel = self.channel();
        message.check(channel.version).map_err(CastError::from)?;
        let (id, answer) = channel.expect_answer().map_err(CastError::from)?;
        let expecting = Expecting { channel, id };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let mut frame = Vec::with_capacity(128);
        let payload_bytes = write_call(&mut frame, id, deadline_ms, &message).map_err(CastError::from)?;
        let exchange = async {
            channel.send(&frame, payload_bytes).await?;
            answer.await.map_err(|_| CallError::Unanswered)?
        };
        let answer = tokio::time::timeout(deadline, exchange).await;
        drop(expecting);
        let payload = answer.map_err(|_| CallError::Deadline(deadline))??;
        Ok(codec::decode(&payload)?)
    }

    /// Waits until the actor can no longer be reached, and says why.
    pub async fn closed(&self) -> Death {
        let mut death = self.channel().death.subscribe();
        match death.wait_for(Option::is_some).await {
            Ok(death) => death.clone().unwrap_or_else(unknown_death),
            Err(_) => unknown_death(),
        }
    }

    fn channel(&self) -> &Channel {
        &self.handle.0
    }
}

fn unknown_death() -> Death {
    Death::Disconnected(Disconnect::Here)
}

/// Forgets a call when its caller stops waiting, by deadline or by being dropped.
struct Expecting<'a> {
    channel: &'a Channel,
    id: u64,
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        if let Some(calls) = self.channel.lock_calls().as_mut() {
            calls.remove(&self.id);
        }
    }
}

impl Channel {
    async fn send(&self, frame: &[u8], payload_bytes: usize) -> Result<(), CastError> {
        debug_assert!(frame.len() <= payload_bytes + CALL_HEAD_BYTES);
        let credits = self.credits.acquire_many(credits_for(payload_bytes, self.window)).await;
        credits.map_err(|_| self.cause())?.forget();
        self.outbox.push(frame).map_err(|_| self.cause().into())
    }

    fn expect_answer(&self) -> Result<(u64, oneshot::Receiver<Answer>), Death> {
        let (sender, receiver) = oneshot::channel();
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        self.lock_calls().as_mut().ok_or_else(|| self.cause())?.insert(id, sender);
        Ok((id, receiver))
    }

    fn cause(&self) -> Death {
        self.death.borrow().clone().unwrap_or_else(unknown_death)
    }

    fn lock_calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_from(&self, mut recv: quinn::RecvStream, quinn: &quinn::Connection) -> Death {
        let mut frames = FrameBuffer::new(FRAME_BYTES_MAX);
        loop {
            match recv.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => frames.push(&chunk.bytes),
                Ok(None) => return Death::Stopped("its channel was closed".into()),
                Err(error) => return cause_of(&error, quinn),
            }
            loop {
                match frames.next_frame() {
                    Ok(Some(body)) => {
                        if let Err(death) = self.handle(body) {
                            return death;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Death::Protocol(error.to_string()),
                }
            }
        }
    }

    fn handle(&self, body: &[u8]) -> Result<(), Death> {
        match ChannelFrame::parse(body).map_err(|error| Death::Protocol(error.to_string()))? {
            ChannelFrame::Reply { id, payload } => self.answer(id, Ok(payload.to_vec())),
            ChannelFrame::Unanswered { id } => self.answer(id, Err(CallError::Unanswered)),
            ChannelFrame::Credit(count) => self.take_credits(count)?,
            ChannelFrame::Stopped(reason) => return Err(Death::Stopped(reason.to_owned())),
            ChannelFrame::Cast(_) | ChannelFrame::Call { .. } => {
                return Err(Death::Protocol("a message where a reply was due".into()));
            }
        }
        Ok(())
    }

    /// A call that is no longer known has been given up: its answer is dropped.
    fn answer(&self, id: u64, answer: Answer) {
        let waiting = self.lock_calls().as_mut().and_then(|calls| calls.remove(&id));
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    fn take_credits(&self, count: u32) -> Result<(), Death> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let window = usize::try_from(self.window).unwrap_or(usize::MAX);
        if self.credits.available_permits().saturating_add(count) > window {
            return Err(Death::Protocol("more credits than the window".into()));
        }
        self.credits.add_permits(count);
        Ok(())
    }

    fn die(&self, death: Death) {
        self.death.send_replace(Some(death.clone()));
        self.outbox.end(None);
        self.credits.close();
        for waiting in self.lock_calls().take().into_iter().flatten().map(|(_, waiting)| waiting) {
            let _ = waiting.send(Err(CastError::from(death.clone()).into()));
        }
    }
}

fn cause_of(error: &quinn::ReadError, quinn: &quinn::Connection) -> Death {
    match quinn.close_reason() {
        Some(reason) => Death::Disconnected(reason.into()),
        None => Death::Protocol(error.to_string()),
    }
}
