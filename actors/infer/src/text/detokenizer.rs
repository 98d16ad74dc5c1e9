//! Incremental decoding of tokens.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::TextError;

/// Tokens that are decoded together at most; none of our characters needs more than a few.
const WINDOW_TOKENS_MAX: usize = 64;
/// Tokens that stay in the window when it is full.
const WINDOW_TOKENS_KEPT: usize = 8;
/// What a decoder writes for bytes that are not, or not yet, a character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Turns tokens into text as they come, never a part of a character.
///
/// A token may end inside a character, and a word's first token may decode differently alone than
/// in its place. So a window of tokens is decoded again with each new one, and what was not
/// released before is; the window moves on where the text ends with a whole character. This is
/// the two-offset scheme of `vllm/transformers_utils/detokenizer_utils.py`, but whole characters
/// before a broken one are not kept waiting.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    window: Vec<u32>,
    /// Index in `window` of the tokens after the newest whole character that the window may start with.
    fresh: usize,
    /// Bytes of the window's text that have been released.
    released: usize,
}

impl Detokenizer {
    /// A detokenizer at the start of a text. Special tokens leave no text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), fresh: 0, released: 0 }
    }

    /// A detokenizer of what follows `before`, whose own text is not released.
    ///
    /// # Errors
    /// As [`Detokenizer::push`].
    pub fn after(tokenizer: Arc<Tokenizer>, before: &[u32]) -> Result<Self, TextError> {
        let mut detokenizer = Self::new(tokenizer);
        for &token in &before[before.len().saturating_sub(WINDOW_TOKENS_KEPT)..] {
            detokenizer.push(token)?;
        }
        Ok(detokenizer)
    }

    /// Adds a token and returns the text that it completes; often all of its text, or none.
    ///
    /// # Errors
    /// [`TextError::Decode`] where the tokenizer has no such token.
    pub fn push(&mut self, token: u32) -> Result<String, TextError> {
        self.window.push(token);
        let text = self.decode(&self.window)?;
        let whole = whole_characters(&text);
        let released = whole.get(self.released..).unwrap_or_default().to_owned();
        self.released = self.released.max(whole.len());
        if whole.len() == text.len() && !released.is_empty() {
            self.start_window_at(self.fresh)?;
        } else if self.window.len() > WINDOW_TOKENS_MAX {
            self.start_window_at(self.window.len() - WINDOW_TOKENS_KEPT)?;
        }
        Ok(released)
    }

    /// Forgets the window's tokens before `start`. All of the window has been released, so the next
    /// window starts with what is left of it: a token is never decoded without one before it.
    fn start_window_at(&mut self, start: usize) -> Result<(), TextError> {
        self.window.drain(..start);
        self.fresh = self.window.len();
        self.released = whole_characters(&self.decode(&self.window)?).len();
        Ok(())
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.tokenizer.decode(tokens, true).map_err(|error| TextError::Decode(error.to_string()))
    }
}

/// `text` without a last character that may be incomplete.
fn whole_characters(text: &str) -> &str {
    text.strip_suffix(REPLACEMENT).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::byte_tokenizer;

    fn pieces(text: &str, merges: &[(usize, usize)]) -> (Vec<String>, String) {
        let tokenizer = Arc::new(byte_tokenizer(text, merges));
        let tokens = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        let mut detokenizer = Detokenizer::new(tokenizer);
        let pieces: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token).unwrap()).collect();
        let joined = pieces.concat();
        (pieces, joined)
    }

    #[test]
    fn waits_for_the_last_byte_of_a_character() {
        let (pieces, joined) = pieces("a语🙂b", &[]);
        assert_eq!(pieces, ["a", "", "", "语", "", "", "", "🙂", "b"]);
        assert_eq!(joined, "a语🙂b");
    }

    #[test]
    fn half_a_character_at_the_end_is_never_shown() {
        let tokenizer = Arc::new(byte_tokenizer("", &[]));
        let tokens = tokenizer.encode("好", false).unwrap().get_ids().to_vec();
        let mut detokenizer = Detokenizer::new(tokenizer);
        assert_eq!(detokenizer.push(tokens[0]).unwrap(), "");
        assert_eq!(detokenizer.push(tokens[1]).unwrap(), "");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_the_rest() {
        let tokenizer = Arc::new(byte_tokenizer("", &[]));
        let byte =
            |byte: u8| tokenizer.encode(std::str::from_utf8(&[byte]).unwrap(), false).unwrap().get_ids()[0];
        let continuation = tokenizer.encode("好", false).unwrap().get_ids()[1];
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer));
        let mut shown = String::new();
        for token in [byte(b'a'), continuation, continuation, byte(b'b'), byte(b'c')] {
            shown += &detokenizer.push(token).unwrap();
        }
        assert_eq!(shown, "a\u{fffd}\u{fffd}bc");
    }

    #[test]
    fn endless_garbage_keeps_the_window_short() {
        let tokenizer = Arc::new(byte_tokenizer("", &[]));
        let continuation = tokenizer.encode("好", false).unwrap().get_ids()[1];
        let mut detokenizer = Detokenizer::new(tokenizer);
        let mut shown = String::new();
        for _ in 0..1000 {
            shown += &detokenizer.push(continuation).unwrap();
            assert!(detokenizer.window.len() <= WINDOW_TOKENS_MAX + 1);
        }
        assert_eq!(shown.chars().count(), 999);
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text_however_it_is_split(
            text in "[a-z ,。今天气很好🙂👩‍🚀é\n]{0,40}",
            merges in proptest::collection::vec((0_usize..200, 1_usize..6), 0..30),
        ) {
            prop_assert_eq!(pieces(&text, &merges).1, text);
        }
    }
}
