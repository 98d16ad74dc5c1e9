//! From a conversation to a prompt, by the model's own template or the default one.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};

use crate::error::TextError;
use crate::message::ChatMessage;

/// The template of models that bring none: a special token a turn, the text, a new line.
pub const DEFAULT_TEMPLATE: &str = "\
{%- if bos_token %}{{ bos_token }}{% endif -%}
{%- for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>\n{% endif -%}";

/// Special tokens that end the assistant's turn, where a tokenizer has them.
pub const TURN_TOKENS: [&str; 7] =
    ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>"];

/// Longest template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
const NAME: &str = "chat";

/// A parsed chat template: the dialect of Hugging Face's `tokenizer_config.json`, without the
/// Python methods that some templates call on strings, but for `strip`, `startswith` and `endswith`.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

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
        let source = template.unwrap_or_else(|| DEFAULT_TEMPLATE.to_owned());
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TextError::Template(format!("longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_unknown_method_callback(string_method);
        environment.add_template_owned(NAME, source).map_err(refused)?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt after which the model speaks as the assistant.
    ///
    /// # Errors
    /// [`TextError::Template`] if the template refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        let turn = |message: &ChatMessage| context! { role => &*message.role, content => &*message.content };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        let render = || {
            self.environment.get_template(NAME)?.render(context! {
                messages,
                add_generation_prompt => true,
                bos_token => self.bos_token.clone(),
                eos_token => self.eos_token.clone(),
            })
        };
        render().map_err(refused)
    }
}

fn refused(error: Error) -> TextError {
    TextError::Template(error.to_string())
}

/// The Python string methods that templates use most.
fn string_method(
    _state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("no method `{method}`"));
    let text = value.as_str().ok_or_else(unknown)?;
    let argument = || arguments.first().and_then(Value::as_str).ok_or_else(unknown);
    Ok(match method {
        "strip" => text.trim().into(),
        "startswith" => text.starts_with(argument()?).into(),
        "endswith" => text.ends_with(argument()?).into(),
        _ => return Err(unknown()),
    })
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
        assert!(ChatTemplate::new(Some("x".repeat(TEMPLATE_BYTES_MAX + 1)), None, None).is_err());
    }
}
