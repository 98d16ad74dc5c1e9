//! A model's tokenizer and chat template together.

use std::sync::Arc;

use tokenizers::Tokenizer;

use super::chat::{ChatTemplate, TURN_TOKENS};
use crate::error::TextError;
use crate::message::Prompt;

/// Between text and tokens, for one model.
pub struct TextCodec {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    bos_token: Option<u32>,
    end_tokens: Vec<u32>,
    turn_tokens: Vec<u32>,
}

/// A prompt as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Tokens that end the answer.
    pub end_tokens: Vec<u32>,
}

impl TextCodec {
    /// A codec. `end_tokens` end every answer; those that begin a turn also end an answer in a
    /// conversation.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        template: ChatTemplate,
        bos_token: Option<u32>,
        end_tokens: Vec<u32>,
    ) -> Self {
        let turn_tokens = TURN_TOKENS.iter().filter_map(|token| tokenizer.token_to_id(token)).collect();
        Self { tokenizer, template, bos_token, end_tokens, turn_tokens }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The prompt's tokens. May take long for long text: not for an async thread.
    ///
    /// # Errors
    /// [`TextError`] where tokenizer or template refuse.
    pub fn encode(&self, prompt: &Prompt) -> Result<EncodedPrompt, TextError> {
        let mut end_tokens = self.end_tokens.clone();
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => {
                let mut tokens = self.tokens_of(text, true)?;
                if let Some(bos) = self.bos_token.filter(|bos| tokens.first() != Some(bos)) {
                    tokens.insert(0, bos);
                }
                tokens
            }
            Prompt::Chat(messages) => {
                end_tokens.extend(&self.turn_tokens);
                self.tokens_of(&self.template.render(messages)?, false)?
            }
        };
        Ok(EncodedPrompt { tokens, end_tokens })
    }

    /// A token alone, for people. Its text, unless that is no whole text: then the vocabulary's
    /// name for it, which no other token has.
    pub fn surface(&self, token: u32) -> String {
        let text = self.tokenizer.decode(&[token], false).unwrap_or_default();
        if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
            return text;
        }
        self.tokenizer.id_to_token(token).unwrap_or_else(|| format!("<token {token}>"))
    }

    fn tokens_of(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ChatMessage;
    use crate::testing::{byte_tokenizer, codec};

    #[test]
    fn a_conversation_ends_at_the_next_turn() {
        let codec = codec();
        let message = ChatMessage { role: "user".into(), content: "hi".into() };
        let chat = codec.encode(&Prompt::Chat(vec![message])).unwrap();
        let user = codec.tokenizer().token_to_id("<|user|>").unwrap();
        let assistant = codec.tokenizer().token_to_id("<|assistant|>").unwrap();
        assert_eq!(chat.tokens.first(), Some(&user));
        assert!(chat.tokens.contains(&assistant) && chat.end_tokens.contains(&user));
        let text = codec.encode(&Prompt::Text("hi".into())).unwrap();
        assert!(!text.end_tokens.contains(&user));
    }

    #[test]
    fn text_begins_with_the_bos_token_once() {
        let template = ChatTemplate::new(None, None, None).unwrap();
        let codec = TextCodec::new(Arc::new(byte_tokenizer("", &[])), template, Some(7), vec![]);
        assert_eq!(codec.encode(&Prompt::Text(String::new())).unwrap().tokens, [7]);
        assert_eq!(codec.encode(&Prompt::Tokens(vec![1, 2])).unwrap().tokens, [1, 2]);
    }

    #[test]
    fn every_token_has_its_own_surface() {
        let codec = codec();
        let size = u32::try_from(codec.tokenizer().get_vocab_size(true)).unwrap();
        let surfaces: std::collections::BTreeSet<_> = (0..size).map(|token| codec.surface(token)).collect();
        assert_eq!(surfaces.len(), size as usize);
    }
}
