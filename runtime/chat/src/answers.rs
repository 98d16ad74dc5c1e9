//! Where a rendered conversation has the answers: [`Answers`].

use std::ops::Range;

use crate::template::{ChatTemplate, MARKS, Message, TemplateError};

const ASSISTANT: &str = "assistant";

/// A conversation as text, and where in it a model is to learn to speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The whole conversation.
    pub text: String,
    /// The bytes of each answer, with the special token that ends it, in order.
    pub ranges: Vec<Range<usize>>,
}

/// Why the answers cannot be told from the rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The template refuses the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// What comes before an answer is rendered in another way once the answer is there.
    #[error(
        "the chat template writes what comes before answer {0} in another way once there is more; a template with \
         `generation` blocks says itself where the answers are"
    )]
    Prefix(usize),
    /// The text of an answer is not in what is rendered.
    #[error("the chat template changes the text of answer {0}")]
    Changed(usize),
    /// The `generation` blocks of a template do not end, or lie in one another.
    #[error("the `generation` blocks of the chat template lie in one another")]
    Blocks,
}

impl Answers {
    /// Renders a conversation and finds its answers: by the template's `generation` blocks, or else as what comes behind
    /// the prompt of each answer, up to the last of `special_tokens` that is written there (or all of it, where a template
    /// ends answers without one).
    ///
    /// # Errors
    /// [`AnswerError`] if the template refuses the conversation, or the answers cannot be found for sure.
    pub fn find(
        template: &ChatTemplate,
        messages: &[Message],
        special_tokens: &[String],
    ) -> Result<Self, AnswerError> {
        if template.marks_answers() {
            return marked(&template.render_marked(messages, false)?);
        }
        let text = template.render(messages, false)?;
        let mut ranges = Vec::new();
        let answers = (0..).zip(messages).filter(|(_, message)| message.role == ASSISTANT);
        for (number, (at, message)) in (1..).zip(answers) {
            let prompt = template.render(&messages[..at], true)?;
            let with_answer = match at + 1 == messages.len() {
                true => text.clone(),
                false => template.render(&messages[..=at], false)?,
            };
            if !with_answer.starts_with(&prompt) || !text.starts_with(&with_answer) {
                return Err(AnswerError::Prefix(number));
            }
            let answer = &with_answer[prompt.len()..];
            let content = message.content.trim();
            if !answer.contains(content) {
                return Err(AnswerError::Changed(number));
            }
            let end_of = |token: &String| answer.rfind(token.as_str()).map(|start| start + token.len());
            let end = special_tokens.iter().filter_map(end_of).max();
            let end = end.filter(|&end| answer[..end].contains(content)).unwrap_or(answer.len());
            ranges.push(prompt.len()..prompt.len() + end);
        }
        Ok(Self { text, ranges })
    }
}

/// Takes the marks out of a text.
fn marked(rendered: &str) -> Result<Answers, AnswerError> {
    let [begin, end] = MARKS;
    let (mut text, mut ranges, mut open) = (String::with_capacity(rendered.len()), Vec::new(), None);
    for c in rendered.chars() {
        match (c, open) {
            (c, None) if c == begin => open = Some(text.len()),
            (c, Some(start)) if c == end => {
                ranges.push(start..text.len());
                open = None;
            }
            (c, _) if c == begin || c == end => return Err(AnswerError::Blocks),
            (c, _) => text.push(c),
        }
    }
    if open.is_some() {
        return Err(AnswerError::Blocks);
    }
    Ok(Answers { text, ranges })
}
