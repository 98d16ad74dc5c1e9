//! The receiving end of an actor channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sixfold_wire::channel::ChannelFrame;
use sixfold_wire::codec;
use sixfold_wire::frame::FrameBuffer;
use sixfold_wire::limits::{FRAME_BYTES_MAX, credits_for};
use sixfold_wire::message::Message;
use tokio::sync::watch;

use super::delivery::{ActorGone, Credit, Delivery, ReplyTo};
use super::outbox::Outbox;
use crate::identity::{Peer, Roles};

/// An actor that peers may open channels to, whatever its messages.
pub(crate) trait AnyActor: Send + Sync {
    fn protocol(&self) -> &'static str;
    fn roles(&self) -> Roles;
    fn window(&self) -> u32;
    /// Turns `Some` with the reason when the actor stops.
    fn stopped(&self) -> watch::Receiver<Option<String>>;
    /// Decodes a message and hands it over. An error ends the channel.
    fn deliver(&self, arrival: Arrival<'_>) -> Result<(), String>;
}

/// A message as it arrived.
pub(crate) struct Arrival<'a> {
    from: &'a Arc<Peer>,
    payload: &'a [u8],
    /// Id and deadline, for a call.
    call: Option<(u64, Instant)>,
    credit: Credit,
}

/// An actor whose messages are `M`.
pub(crate) struct ActorEntry<M: Message, H> {
    pub(crate) roles: Roles,
    pub(crate) window: u32,
    pub(crate) stopped: watch::Sender<Option<String>>,
    pub(crate) handler: H,
    pub(crate) message: std::marker::PhantomData<fn(M)>,
}

impl<M, H> AnyActor for ActorEntry<M, H>
where
    M: Message,
    H: Fn(Delivery<M>) -> Result<(), ActorGone> + Send + Sync + 'static,
{
    fn protocol(&self) -> &'static str {
        M::PROTOCOL
    }

    fn roles(&self) -> Roles {
        self.roles
    }

    fn window(&self) -> u32 {
        self.window
    }

    fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.stopped.subscribe()
    }

    fn deliver(&self, arrival: Arrival<'_>) -> Result<(), String> {
        let message = codec::decode(arrival.payload).map_err(|error| error.to_string())?;
        let (reply, credit) = match arrival.call {
            Some((id, deadline)) => (Some(ReplyTo::new(arrival.credit, id, deadline)), None),
            None => (None, Some(arrival.credit)),
        };
        let delivery = Delivery { from: arrival.from.clone(), message, reply, _credit: credit };
        (self.handler)(delivery).map_err(|gone| gone.to_string())
    }
}

/// Serves one channel until its opener closes it, the connection ends or the actor stops.
pub(crate) async fn serve(
    actor: Arc<dyn AnyActor>,
    from: Arc<Peer>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
) {
    let outbox = Arc::new(Outbox::default());
    let writer = outbox.clone();
    let writing = tokio::spawn(async move { writer.write_to(send).await });
    let mut stopped = actor.stopped();
    let reason = tokio::select! {
        reason = read(&*actor, &from, recv, &outbox) => reason,
        stopped = stopped.wait_for(Option::is_some) => Some(match stopped {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "it was dropped".to_owned(),
        }),
    };
    outbox.end(reason.as_deref().map(ChannelFrame::Stopped));
    // A failed write has ended the stream already.
    let _ = writing.await;
}

/// Reads messages; returns why the channel must end, or `None` if the opener has ended it.
async fn read(
    actor: &dyn AnyActor,
    from: &Arc<Peer>,
    mut recv: quinn::RecvStream,
    outbox: &Arc<Outbox>,
) -> Option<String> {
    let mut frames = FrameBuffer::new(FRAME_BYTES_MAX);
    while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
        frames.push(&chunk.bytes);
        loop {
            match frames.next_frame() {
                Ok(Some(body)) => {
                    if let Err(reason) = handle(actor, from, body, outbox) {
                        return Some(reason);
                    }
                }
                Ok(None) => break,
                Err(error) => return Some(error.to_string()),
            }
        }
        if outbox.ended() {
            return None;
        }
    }
    None
}

fn handle(actor: &dyn AnyActor, from: &Arc<Peer>, body: &[u8], outbox: &Arc<Outbox>) -> Result<(), String> {
    let (payload, call) = match ChannelFrame::parse(body).map_err(|error| error.to_string())? {
        ChannelFrame::Cast(payload) => (payload, None),
        ChannelFrame::Call { id, deadline_ms, payload } => {
            (payload, Some((id, Instant::now() + Duration::from_millis(deadline_ms.into()))))
        }
        _ => return Err("a reply where a message was due".to_owned()),
    };
    let window = actor.window();
    let credits = credits_for(payload.len(), window);
    if !outbox.spend(credits, window) {
        return Err("more messages than credits".to_owned());
    }
    let credit = Credit { outbox: outbox.clone(), credits, window };
    actor.deliver(Arrival { from, payload, call, credit })
}
