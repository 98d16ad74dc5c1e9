//! A parsed chat template: [`ChatTemplate`].

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::date::Date;
use crate::{json, python};

/// Longest template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
const NAME: &str = "chat";
/// What stands around a `generation` block while it is rendered: no characters of any text (Unicode, noncharacters).
pub(crate) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
const MARK_FILTER: &str = "sixfold_mark_generation";

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A template does not parse, or refuses a conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(pub(crate) String);

impl TemplateError {
    /// What is wrong, without the words before it.
    pub fn reason(&self) -> &str {
        &self.0
    }
}

/// A parsed chat template, with the special tokens that it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
    marks_answers: bool,
}

impl ChatTemplate {
    /// Parses a template. `tokens` are special tokens by the names that templates use, such as `bos_token`; `today` is
    /// what `strftime_now` tells.
    ///
    /// # Errors
    /// [`TemplateError`] if it does not parse or is too long.
    pub fn new(source: &str, tokens: BTreeMap<String, String>, today: Date) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError(format!("longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |form: String| today.format(&form));
        environment.add_filter("tojson", to_json);
        environment.add_filter(MARK_FILTER, |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.set_unknown_method_callback(python::method);
        let (source, marks_answers) = with_marks(source);
        environment.add_template_owned(NAME, source).map_err(refused)?;
        Ok(Self { environment, tokens, marks_answers })
    }

    /// Whether the template itself says what the model is to generate.
    pub(crate) fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// The conversation as text; with `add_generation_prompt`, up to where the model speaks as the assistant.
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let text = self.render_marked(messages, add_generation_prompt)?;
        Ok(if self.marks_answers { text.replace(MARKS, "") } else { text })
    }

    /// As [`Self::render`], with the marks of `generation` blocks.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let turn = |message: &Message| context! { role => &*message.role, content => &*message.content };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        let mut names: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        names.insert("messages", messages.into());
        names.insert("add_generation_prompt", add_generation_prompt.into());
        names.insert("tools", Value::from(()));
        names.insert("documents", Value::from(()));
        let template = self.environment.get_template(NAME).map_err(refused)?;
        template.render(names).map_err(refused)
    }
}

fn refused(error: Error) -> TemplateError {
    // The first line says what, the others show the template.
    TemplateError(match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.to_string(),
    })
}

fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    Ok(json::dumps(&json::value_of(value)?, indent))
}

/// Turns `generation` blocks, which Jinja does not know, into blocks of a filter that marks them.
fn with_marks(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..start + 2]);
        match name {
            "generation" => out.push_str(&tag.replace(name, &format!("filter {MARK_FILTER}"))),
            "endgeneration" => out.push_str(&tag.replace(name, "endfilter")),
            _ => out.push_str(tag),
        }
        found |= name == "generation";
        out.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    (out, found)
}

#[cfg(test)]
mod tests;
