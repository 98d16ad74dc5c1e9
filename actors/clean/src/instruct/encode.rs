//! From a dialogue to tokens, and which of them are to be learned: [`Encoder`].

use sixfold_chat::{AnswerError, Answers, ChatTemplate, Message};
use tokenizers::Tokenizer;

/// Why a dialogue is left out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Its answers cannot be told from the rest.
    #[error(transparent)]
    Answers(#[from] AnswerError),
    /// A special token stands in what was said: it would end or begin a turn there.
    #[error("the special token {0} is in the text")]
    SpecialToken(String),
    /// The library cannot tokenize it.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// It has more tokens than are allowed.
    #[error("it has {0} tokens")]
    TooLong(usize),
    /// No token of an answer is left.
    #[error("no answer is left of it")]
    NoAnswer,
}

impl Refused {
    /// What it is counted under.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Answers(_) => "refused_by_the_template",
            Self::SpecialToken(_) => "special_token_in_text",
            Self::Tokenizer(_) => "not_tokenized",
            Self::TooLong(_) => "too_long",
            Self::NoAnswer => "no_answer_left",
        }
    }
}

/// A dialogue as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether each is part of an answer.
    pub learned: Vec<bool>,
    /// Whether its end was cut off.
    pub cut: bool,
}

/// Renders, finds the answers, and tokenizes.
pub struct Encoder {
    /// By which dialogues are rendered.
    pub template: ChatTemplate,
    /// Adds no token of its own.
    pub tokenizer: Tokenizer,
    /// Special tokens as they are written.
    pub special_tokens: Vec<String>,
    /// More tokens than these are too long.
    pub tokens_max: usize,
    /// Whether a dialogue that is too long loses its end, instead of being left out.
    pub cuts: bool,
}

impl Encoder {
    /// The tokens of a dialogue: those of its text as a whole. A token counts as part of an answer if all of its text is.
    ///
    /// # Errors
    /// [`Refused`] says why it is to be left out.
    pub fn encode(&self, dialogue: &[Message]) -> Result<Encoded, Refused> {
        let said = |token: &&String| dialogue.iter().any(|message| message.content.contains(token.as_str()));
        if let Some(token) = self.special_tokens.iter().find(said) {
            return Err(Refused::SpecialToken(token.clone()));
        }
        let Answers { text, ranges } = Answers::find(&self.template, dialogue, &self.special_tokens)?;
        let encoding =
            self.tokenizer.encode(text, false).map_err(|error| Refused::Tokenizer(error.to_string()))?;
        let is_learned = |&(start, end): &(usize, usize)| {
            let within = |answer: &std::ops::Range<usize>| answer.start <= start && end <= answer.end;
            start < end && ranges.iter().any(within)
        };
        let mut ids = encoding.get_ids().to_vec();
        let mut learned: Vec<bool> = encoding.get_offsets().iter().map(is_learned).collect();
        let cut = ids.len() > self.tokens_max;
        if cut && !self.cuts {
            return Err(Refused::TooLong(ids.len()));
        }
        ids.truncate(self.tokens_max);
        learned.truncate(self.tokens_max);
        if !learned.iter().skip(1).any(|&learned| learned) {
            return Err(Refused::NoAnswer);
        }
        Ok(Encoded { ids, learned, cut })
    }
}

#[cfg(test)]
mod tests;
