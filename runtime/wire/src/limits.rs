//! The bounds that every decoder enforces before it allocates.

/// Longest encoded message, in bytes. Tensors and artefacts travel on byte streams, not in messages.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Longest frame body: a message and the head of a channel frame.
pub const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64;

/// Longest body of a frame that opens a stream or answers an opening.
pub const OPENING_BYTES_MAX: usize = 64 << 10;

/// Deepest nesting of a decoded value; deeper input could exhaust the stack.
pub const DEPTH_MAX: u32 = 128;

/// Longest reason text that a peer may send, in bytes.
pub const REASON_BYTES_MAX: usize = 1024;

/// Payload bytes that one credit pays for. A message costs one credit and one more for each such piece.
pub const CREDIT_BYTES: usize = 1024;

/// Credits that a message of `payload_bytes` takes from a window of `window` credits. Never more
/// than the window, so that a large message passes alone.
pub fn credits_for(payload_bytes: usize, window: u32) -> u32 {
    let pieces = u32::try_from(payload_bytes / CREDIT_BYTES).unwrap_or(u32::MAX);
    pieces.saturating_add(1).min(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_costs_by_size_and_never_more_than_the_window() {
        assert_eq!(credits_for(0, 64), 1);
        assert_eq!(credits_for(1023, 64), 1);
        assert_eq!(credits_for(10 * 1024, 64), 11);
        assert_eq!(credits_for(MESSAGE_BYTES_MAX, 64), 64);
    }
}
