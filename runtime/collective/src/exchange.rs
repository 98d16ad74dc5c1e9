//! A simultaneous exchange of two long messages over one link, in pieces, without a deadlock.

use std::ops::Range;

use sixfold_transport::link::{LinkError, TensorLink};

/// Numbers in a piece of a long message.
pub(crate) const PIECE: usize = 32 << 10;

/// Pieces that are sent before the first is received.
const AHEAD: usize = 3;

/// Bytes that this crate may have under way on a link in one direction. A link that takes fewer
/// before its peer receives may block both ends for ever.
///
/// Both ends run at most `AHEAD` pieces ahead of what they have received, so one end is at most
/// twice that ahead of the other's receiving.
pub const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(2 * AHEAD * PIECE * size_of::<f32>() < IN_FLIGHT_BYTES_MAX);

/// Sends the numbers of `buffer` at `outgoing` while receiving as many as `incoming` is long, and
/// hands each piece that arrives to `take` together with its place in `buffer`.
///
/// Where the two ranges overlap, a piece leaves before the numbers in its place are handed to `take`.
pub(crate) fn exchange(
    link: &mut dyn TensorLink,
    buffer: &mut [f32],
    outgoing: Range<usize>,
    incoming: Range<usize>,
    mut take: impl FnMut(&mut [f32], &[f32]),
) -> Result<(), LinkError> {
    let mut arrived = vec![0.0_f32; incoming.len().min(PIECE)];
    let mut to_send = pieces(outgoing);
    for piece in to_send.by_ref().take(AHEAD) {
        link.send(bytemuck::cast_slice(&buffer[piece]))?;
    }
    for piece in pieces(incoming) {
        let arrived = &mut arrived[..piece.len()];
        link.recv(bytemuck::cast_slice_mut(arrived))?;
        take(&mut buffer[piece], arrived);
        if let Some(next) = to_send.next() {
            link.send(bytemuck::cast_slice(&buffer[next]))?;
        }
    }
    to_send.try_for_each(|piece| link.send(bytemuck::cast_slice(&buffer[piece])))
}

/// Cuts `range` into pieces.
pub(crate) fn pieces(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(PIECE).map(move |start| start..(start + PIECE).min(range.end))
}
