//! From a conversation to a prompt, by the model's own template or the default one.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use sixfold_chat::{Builtin, Date, Message};

use crate::error::TextError;
use crate::message::ChatMessage;

/// Special tokens that end the assistant's turn, where a tokenizer has them.
pub const TURN_TOKENS: [&str; 7] =
    ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>"];

/// A parsed chat template, rendered as when the model was taught dialogues.
#[derive(Debug)]
pub struct ChatTemplate(sixfold_chat::ChatTemplate);

impl ChatTemplate {
    /// Parses a template, or the default one.
    ///
    /// # Errors
    /// [`TextError::Template`] if it does not parse.
    pub fn new(
        template: Option<String>,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, TextError> {
        let source = template.unwrap_or_else(|| Builtin::Turns.source().to_owned());
        let named = [("bos_token", bos_token), ("eos_token", eos_token)];
        let tokens: BTreeMap<String, String> =
            named.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token?))).collect();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let today = Date::of_unix_seconds(since_1970.as_secs());
        Ok(Self(sixfold_chat::ChatTemplate::new(&source, tokens, today)?))
    }

    /// The prompt after which the model speaks as the assistant.
    ///
    /// # Errors
    /// [`TextError::Template`] if the template refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        let turn =
            |message: &ChatMessage| Message { role: message.role.clone(), content: message.content.clone() };
        let messages: Vec<Message> = messages.iter().map(turn).collect();
        Ok(self.0.render(&messages, true)?)
    }
}

impl From<sixfold_chat::TemplateError> for TextError {
    fn from(error: sixfold_chat::TemplateError) -> Self {
        Self::Template(error.reason().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn the_default_template_marks_each_turn() {
        let template = ChatTemplate::new(None, None, None).unwrap();
        let messages = [message("system", "Be brief."), message("user", "你好 {{ x }}")];
        let expected = "<|system|>\nBe brief.\n<|user|>\n你好 {{ x }}\n<|assistant|>\n";
        assert_eq!(template.render(&messages).unwrap(), expected);
    }

    #[test]
    fn a_models_own_template_is_used() {
        let source = "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('only users') }}\
                      {% endif %}{{ bos_token }}[{{ m['content'].strip() }}]{% endfor %}";
        let template = ChatTemplate::new(Some(source.into()), Some("<s>".into()), None).unwrap();
        assert_eq!(template.render(&[message("user", " hi ")]).unwrap(), "<s>[hi]");
        let refused = template.render(&[message("assistant", "x")]).unwrap_err();
        assert!(refused.to_string().contains("only users"), "{refused}");
    }

    #[test]
    fn a_broken_template_is_refused_when_loaded() {
        assert!(ChatTemplate::new(Some("{% for %}".into()), None, None).is_err());
        assert!(ChatTemplate::new(Some("x".repeat((1 << 20) + 1)), None, None).is_err());
    }
}
