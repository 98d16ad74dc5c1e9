//! Tests of `frame`.

use proptest::prelude::*;

use super::*;

fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame::<()>(&mut out, |out| {
        out.extend_from_slice(body);
        Ok(())
    })
    .unwrap();
    out
}

proptest! {
    #[test]
    fn any_cutting_of_the_stream_gives_the_same_frames(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..10),
        piece in 1_usize..64,
    ) {
        let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
        let mut buffer = FrameBuffer::new(200);
        let mut seen = Vec::new();
        for chunk in stream.chunks(piece) {
            buffer.push(chunk);
            while let Some(body) = buffer.next_frame().unwrap() {
                seen.push(body.to_vec());
            }
        }
        prop_assert_eq!(seen, bodies);
    }

    #[test]
    fn any_flipped_bit_is_noticed(body in proptest::collection::vec(any::<u8>(), 1..100), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut frame = framed(&body);
        let index = at.index(frame.len());
        frame[index] ^= 1_u8 << bit;
        let mut buffer = FrameBuffer::new(1 << 20);
        buffer.push(&frame);
        // A changed length leaves the frame unfinished, longer than the limit, or cut short.
        prop_assert!(!matches!(buffer.next_frame(), Ok(Some(_))));
    }
}

#[test]
fn a_frame_that_claims_4_gib_is_refused_before_allocation() {
    let mut buffer = FrameBuffer::new(1 << 20);
    buffer.push(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let refused = FrameError::TooLong { claimed: u32::MAX, limit: 1 << 20 };
    assert_eq!(buffer.next_frame().unwrap_err(), refused);
    assert!(buffer.capacity() < 1024);
}

#[test]
fn a_failed_fill_leaves_no_trace() {
    let mut out = vec![1, 2];
    let failed = write_frame(&mut out, |out| {
        out.push(9);
        Err("no")
    });
    assert_eq!((failed, out), (Err("no"), vec![1, 2]));
}

#[test]
fn an_idle_buffer_gives_memory_back() {
    let mut buffer = FrameBuffer::new(8 << 20);
    buffer.push(&framed(&vec![7; 4 << 20]));
    assert!(buffer.next_frame().unwrap().is_some());
    buffer.push(&[]);
    assert!(buffer.capacity() <= IDLE_BYTES);
}
