//! Messages of numbers between two ranks that do not wait for each other: [`PointToPoint`].
//!
//! Stages of a pipeline hand over what they compute and go on, so both ends of a link may be sending before either
//! receives, and around a ring of stages so may all of them; a message is posted and never waits for its receiver.
//! Activations and gradients cross each other on one link; each [`Kind`] is received in the order in which it was
//! sent, whatever comes between. A message is cut into pieces, and a frame on the link is
//!
//! ```text
//! header   u32 numbers of the piece | u32 kind
//! piece    f32 numbers
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use sixfold_transport::link::{LinkError, TensorLink};

use crate::exchange::{PIECE, pieces};

const HEADER_BYTES: usize = 8;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Activations on their way forward.
    Activations,
    /// Gradients of activations on their way back.
    Gradients,
    /// Figures that ranks exchange once all passes are done.
    Figures,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Activations, Self::Gradients, Self::Figures];
}

/// One end of a conversation with another rank.
///
/// What arrives before it is asked for is kept; the schedule of the two ranks bounds how much, on either end (as many
/// activations as the sender keeps for its own backward passes).
pub struct PointToPoint {
    link: Box<dyn TensorLink>,
    /// Pieces of each kind that arrived while another kind was asked for.
    inbox: [VecDeque<Vec<f32>>; Kind::ALL.len()],
}

impl PointToPoint {
    /// A conversation over `link`, whose other end must be one too.
    pub fn new(link: Box<dyn TensorLink>) -> Self {
        Self { link, inbox: Default::default() }
    }

    /// Bytes sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.link.bytes_sent()
    }

    /// How long this end has waited for the other so far.
    pub fn waited(&self) -> Duration {
        self.link.waited()
    }

    /// Hands over `values`, which leave beside whatever the caller does next.
    ///
    /// # Errors
    /// [`LinkError`] if the other rank is gone.
    pub fn send(&mut self, kind: Kind, values: Vec<f32>) -> Result<(), LinkError> {
        let len = values.len();
        let bytes = Bytes::from_owner(Numbers(values));
        for piece in pieces(0..len) {
            let mut header = [0; HEADER_BYTES];
            header[..4].copy_from_slice(&(piece.len() as u32).to_le_bytes());
            header[4..].copy_from_slice(&(kind as u32).to_le_bytes());
            self.link.post(Bytes::copy_from_slice(&header))?;
            let number = size_of::<f32>();
            self.link.post(bytes.slice(piece.start * number..piece.end * number))?;
        }
        Ok(())
    }

    /// Receives the next message of a kind, which must be as long as `values`. Waits only for what has not arrived yet.
    ///
    /// # Errors
    /// [`LinkError`] if the other rank is gone, silent, or sent another length.
    pub fn receive(&mut self, kind: Kind, values: &mut [f32]) -> Result<(), LinkError> {
        for piece in values.chunks_mut(PIECE) {
            match self.inbox[kind as usize].pop_front() {
                Some(arrived) if arrived.len() == piece.len() => piece.copy_from_slice(&arrived),
                Some(arrived) => return Err(wrong_length(piece.len(), arrived.len())),
                None => self.receive_piece(kind, piece)?,
            }
        }
        Ok(())
    }

    /// Takes frames from the link until one of `kind` comes, and keeps those of other kinds.
    fn receive_piece(&mut self, kind: Kind, piece: &mut [f32]) -> Result<(), LinkError> {
        loop {
            let mut header = [0; HEADER_BYTES];
            self.link.recv(&mut header)?;
            let [numbers, of] = [&header[..4], &header[4..]].map(|bytes| {
                bytes.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) as usize
            });
            if of == kind as usize {
                if numbers != piece.len() {
                    return Err(wrong_length(piece.len(), numbers));
                }
                return self.link.recv(bytemuck::cast_slice_mut(piece));
            }
            let Some(inbox) = self.inbox.get_mut(of).filter(|_| (1..=PIECE).contains(&numbers)) else {
                return Err(wrong_length(PIECE, numbers));
            };
            let mut other = vec![0.0_f32; numbers];
            self.link.recv(bytemuck::cast_slice_mut(&mut other))?;
            inbox.push_back(other);
        }
    }
}

/// Numbers as the bytes that they are.
struct Numbers(Vec<f32>);

impl AsRef<[u8]> for Numbers {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn wrong_length(expected: usize, got: usize) -> LinkError {
    let bytes = size_of::<f32>();
    LinkError::Length {
        peer: "a rank of the pipeline".to_owned(),
        expected: expected * bytes,
        got: (got * bytes) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Activations, Figures, Gradients};
    use super::*;
    use crate::testing::link_pair;

    fn pair() -> (PointToPoint, PointToPoint) {
        let (left, right) = link_pair();
        (PointToPoint::new(Box::new(left)), PointToPoint::new(Box::new(right)))
    }

    fn message(len: usize, from: f32) -> Vec<f32> {
        (0..len).map(|at| from + at as f32).collect()
    }

    fn receive(end: &mut PointToPoint, kind: Kind, len: usize) -> Result<Vec<f32>, LinkError> {
        let mut values = vec![f32::NAN; len];
        end.receive(kind, &mut values).map(|()| values)
    }

    #[test]
    fn sends_of_any_length_wait_for_nobody() {
        let (mut left, mut right) = pair();
        let len = 20 * PIECE + 7;
        for end in [&mut left, &mut right] {
            for at in 0..2 {
                end.send(Activations, message(len, at as f32)).unwrap();
            }
        }
        for end in [&mut left, &mut right] {
            for at in 0..2 {
                assert!(receive(end, Activations, len).unwrap() == message(len, at as f32));
            }
        }
        assert_eq!(left.waited(), Duration::ZERO);
    }

    #[test]
    fn each_kind_is_received_in_its_own_order() {
        let (mut left, mut right) = pair();
        for (kind, len, from) in
            [(Activations, PIECE + 1, 0.5), (Gradients, 3, 1.5), (Figures, 2, 2.5), (Activations, 4, 3.5)]
        {
            left.send(kind, message(len, from)).unwrap();
        }
        for (kind, len, from) in
            [(Figures, 2, 2.5), (Activations, PIECE + 1, 0.5), (Activations, 4, 3.5), (Gradients, 3, 1.5)]
        {
            assert_eq!(receive(&mut right, kind, len).unwrap(), message(len, from), "{kind:?}");
        }
    }

    #[test]
    fn messages_cost_their_bytes_and_headers() {
        let (mut left, mut right) = pair();
        for len in [1, PIECE, PIECE + 1] {
            left.send(Gradients, message(len, 0.5)).unwrap();
        }
        for len in [1, PIECE, PIECE + 1] {
            assert_eq!(receive(&mut right, Gradients, len).unwrap(), message(len, 0.5));
        }
        assert_eq!(left.bytes_sent() as usize, 4 * (2 * PIECE + 2) + 4 * HEADER_BYTES);
        assert_eq!(right.bytes_sent(), 0);
    }

    #[test]
    fn another_length_is_an_error_whether_it_was_kept_or_not() {
        let (mut left, mut right) = pair();
        left.send(Activations, vec![1.0, 2.0]).unwrap();
        left.send(Gradients, vec![1.0]).unwrap();
        receive(&mut right, Gradients, 1).unwrap();
        assert!(matches!(
            receive(&mut right, Activations, 3),
            Err(LinkError::Length { expected: 12, got: 8, .. })
        ));
        left.send(Activations, vec![1.0, 2.0]).unwrap();
        assert!(matches!(
            receive(&mut right, Activations, 3),
            Err(LinkError::Length { expected: 12, got: 8, .. })
        ));
    }

    #[test]
    fn a_header_that_announces_too_much_or_an_unknown_kind_is_refused() {
        for header in [[0xff; HEADER_BYTES], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0], [1, 0, 0, 0, 3, 0, 0, 0]] {
            let (mut left, right) = link_pair();
            left.send(&header).unwrap();
            let mut right = PointToPoint::new(Box::new(right));
            assert!(
                matches!(receive(&mut right, Activations, 1), Err(LinkError::Length { .. })),
                "{header:?}"
            );
        }
    }

    #[test]
    fn the_last_message_of_an_end_that_has_left_arrives() {
        let (mut left, mut right) = pair();
        left.send(Activations, message(PIECE + 1, 0.5)).unwrap();
        drop(left);
        assert_eq!(receive(&mut right, Activations, PIECE + 1).unwrap(), message(PIECE + 1, 0.5));
        assert!(receive(&mut right, Activations, 1).is_err());
    }

    #[test]
    fn an_end_that_leaves_is_an_error() {
        let (left, mut right) = pair();
        drop(left);
        assert!(receive(&mut right, Figures, 1).is_err());
    }
}
