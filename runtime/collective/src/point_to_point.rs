//! Messages of numbers between two ranks that do not wait for each other: [`PointToPoint`].
//!
//! Under 1F1B two neighbouring stages may both be sending, activations one way and gradients the
//! other, before either receives. So a message is cut into pieces, and a sender that has too many
//! pieces under way takes in what arrives while it waits. Frames on the link are a header of eight
//! bytes, followed by the numbers if it announces any:
//!
//! ```text
//! header   u32 numbers that follow, 0 for an acknowledgement | u32 zero
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use sixfold_transport::link::{LinkError, TensorLink};

use crate::exchange::{PIECE, pieces};

/// Pieces sent and not yet acknowledged. Their bytes stay within
/// [`IN_FLIGHT_BYTES_MAX`](crate::IN_FLIGHT_BYTES_MAX).
const UNACKNOWLEDGED_MAX: usize = 6;

const HEADER_BYTES: usize = 8;

/// One end of a conversation with another rank.
///
/// What arrives before it is asked for is kept; the schedule of the two ranks bounds how much (as
/// many activations as there are pipeline stages).
pub struct PointToPoint {
    link: Box<dyn TensorLink>,
    /// Numbers that arrived while this end was sending.
    inbox: VecDeque<Vec<f32>>,
    unacknowledged: usize,
}

impl PointToPoint {
    /// A conversation over `link`, whose other end must be one too.
    pub fn new(link: Box<dyn TensorLink>) -> Self {
        Self { link, inbox: VecDeque::new(), unacknowledged: 0 }
    }

    /// Bytes sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.link.bytes_sent()
    }

    /// How long this end has waited for the other so far.
    pub fn waited(&self) -> Duration {
        self.link.waited()
    }

    /// Sends `values`. Waits only while many bytes are under way.
    ///
    /// # Errors
    /// [`LinkError`] if the other rank is gone or silent.
    pub fn send(&mut self, values: &[f32]) -> Result<(), LinkError> {
        for piece in pieces(0..values.len()) {
            while self.unacknowledged == UNACKNOWLEDGED_MAX {
                self.take_in()?;
            }
            self.send_header(piece.len())?;
            self.link.send(bytemuck::cast_slice(&values[piece]))?;
            self.unacknowledged += 1;
        }
        Ok(())
    }

    /// Receives the next message, which must be as long as `values`.
    ///
    /// # Errors
    /// [`LinkError`] if the other rank is gone, silent, or sent another length.
    pub fn receive(&mut self, values: &mut [f32]) -> Result<(), LinkError> {
        for to in values.chunks_mut(PIECE) {
            let piece = loop {
                match self.inbox.pop_front() {
                    Some(piece) => break piece,
                    None => self.take_in()?,
                }
            };
            if piece.len() != to.len() {
                return Err(wrong_length(to.len(), piece.len()));
            }
            to.copy_from_slice(&piece);
        }
        Ok(())
    }

    fn send_header(&mut self, numbers: usize) -> Result<(), LinkError> {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(numbers as u32).to_le_bytes());
        self.link.send(&header)
    }

    /// Takes one frame from the link.
    fn take_in(&mut self) -> Result<(), LinkError> {
        let mut header = [0; HEADER_BYTES];
        self.link.recv(&mut header)?;
        let numbers = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if numbers == 0 {
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
            return Ok(());
        }
        if numbers > PIECE {
            return Err(wrong_length(PIECE, numbers));
        }
        let mut piece = vec![0.0_f32; numbers];
        self.link.recv(bytemuck::cast_slice_mut(&mut piece))?;
        self.inbox.push_back(piece);
        // A sender that has left needs no acknowledgement of its last message; one that is lost is missed when
        // something is wanted from it.
        let _ = self.send_header(0);
        Ok(())
    }
}

fn wrong_length(expected: usize, got: usize) -> LinkError {
    let bytes = size_of::<f32>();
    LinkError::Length {
        peer: "the neighbouring pipeline stage".to_owned(),
        expected: expected * bytes,
        got: (got * bytes) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::link_pair;

    fn pair() -> (PointToPoint, PointToPoint) {
        let (left, right) = link_pair();
        (PointToPoint::new(Box::new(left)), PointToPoint::new(Box::new(right)))
    }

    fn message(len: usize, from: f32) -> Vec<f32> {
        (0..len).map(|at| from + at as f32).collect()
    }

    fn receive(end: &mut PointToPoint, len: usize) -> Result<Vec<f32>, LinkError> {
        let mut values = vec![f32::NAN; len];
        end.receive(&mut values).map(|()| values)
    }

    #[test]
    fn both_ends_may_send_long_messages_first() {
        let (mut left, mut right) = pair();
        let len = 20 * PIECE + 7;
        let talk = move |end: &mut PointToPoint, own: f32, other: f32| {
            for _ in 0..2 {
                end.send(&message(len, own)).unwrap();
            }
            for _ in 0..2 {
                assert!(receive(end, len).unwrap() == message(len, other));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| talk(&mut left, 0.0, 1e6));
            talk(&mut right, 1e6, 0.0);
        });
    }

    #[test]
    fn messages_arrive_in_order_and_cost_their_bytes_and_headers() {
        let (mut left, mut right) = pair();
        for len in [1, PIECE, PIECE + 1] {
            left.send(&message(len, 0.5)).unwrap();
        }
        for len in [1, PIECE, PIECE + 1] {
            assert_eq!(receive(&mut right, len).unwrap(), message(len, 0.5));
        }
        assert_eq!(left.bytes_sent() as usize, 4 * (2 * PIECE + 2) + 4 * HEADER_BYTES);
        assert_eq!(right.bytes_sent() as usize, 4 * HEADER_BYTES);
    }

    #[test]
    fn another_length_is_an_error() {
        let (mut left, mut right) = pair();
        left.send(&[1.0, 2.0]).unwrap();
        assert!(matches!(receive(&mut right, 3), Err(LinkError::Length { expected: 12, got: 8, .. })));
    }

    #[test]
    fn a_header_that_announces_too_much_is_refused() {
        let (mut left, right) = link_pair();
        left.send(&[0xff; HEADER_BYTES]).unwrap();
        let mut right = PointToPoint::new(Box::new(right));
        assert!(matches!(receive(&mut right, 1), Err(LinkError::Length { .. })));
    }

    #[test]
    fn the_last_message_of_an_end_that_has_left_arrives() {
        let (mut left, mut right) = pair();
        left.send(&message(PIECE + 1, 0.5)).unwrap();
        drop(left);
        assert_eq!(receive(&mut right, PIECE + 1).unwrap(), message(PIECE + 1, 0.5));
        assert!(receive(&mut right, 1).is_err());
    }

    #[test]
    fn an_end_that_leaves_is_an_error() {
        let (left, mut right) = pair();
        drop(left);
        assert!(receive(&mut right, 1).is_err());
    }
}
