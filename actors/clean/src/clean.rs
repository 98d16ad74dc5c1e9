//! From one page, or one imported document, to a [`Candidate`]: the whole of the map phase for one
//! input, as a function of the input and the options.
//!
//! Order: media type, charset, main text, normal form, language, quality, masks, signatures. What
//! is rejected on the way keeps what was found so far.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::charset;
use crate::document::{Candidate, Fault, RawDocument, Reason, Rejection};
use crate::error::CleanError;
use crate::extract::extract;
use crate::language::{Language, identify};
use crate::normal_form::{Simplifier, flat, normalize};
use crate::options::CleanOptions;
use crate::pii;
use crate::quality::Judge;
use crate::signature::Signature;
use crate::words;

/// A text with more undecodable characters than this share is garbled.
const REPLACED_SHARE_MAX: f64 = 0.02;

/// A page as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its place in its segment, from 0.
    pub position: u64,
    /// Its address.
    pub url: String,
    /// The `Content-Type` header, where there was one.
    pub content_type: Option<String>,
    /// The body without content codings, or why it cannot be had.
    pub body: Result<Vec<u8>, String>,
}

/// What a clean stage reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A page of a crawl.
    Page(Page),
    /// A document of an import.
    Raw(RawDocument),
}

/// Text with its origin, before it is judged.
struct Draft {
    position: u64,
    url: String,
    title: String,
    text: String,
    charset: &'static str,
}

/// Cleans one input at a time. Shared by threads.
pub struct Cleaner {
    options: CleanOptions,
    judge: Judge,
    simplifier: Option<Simplifier>,
}

impl Cleaner {
    /// A cleaner with these options.
    ///
    /// # Errors
    /// [`CleanError::Options`] where a value is out of range.
    pub fn new(options: &CleanOptions) -> Result<Self, CleanError> {
        let refuse = |words: String| Err(CleanError::Options(words));
        if options.near_duplicate_bits > crate::duplicates::DISTANCE_MAX {
            return refuse(format!(
                "near_duplicate_bits is {}, at most {} can be found",
                options.near_duplicate_bits,
                crate::duplicates::DISTANCE_MAX
            ));
        }
        let shares = [
            ("language_confidence_min", options.language_confidence_min),
            ("near_duplicate_overlap", options.near_duplicate_overlap),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return refuse(format!("{name} is {share}, not within 0 to 1"));
            }
        }
        let simplifier = match options.simplify.then(Simplifier::new).transpose() {
            Ok(simplifier) => simplifier,
            Err(error) => return refuse(format!("the tables for simplified Chinese: {error}")),
        };
        let judge = Judge::new(options.profile, options.chars_min, &options.english, &options.chinese);
        Ok(Self { options: options.clone(), judge, simplifier })
    }

    /// Cleans one input. One that makes the code panic is tried once more and then rejected, so that
    /// a single page cannot end a batch.
    pub fn clean(&self, input: &Input) -> Candidate {
        // The cleaner is only read, and what a panic leaves half done is dropped.
        let attempt = || catch_unwind(AssertUnwindSafe(|| self.clean_once(input)));
        attempt().or_else(|_| attempt()).unwrap_or_else(|_| {
            let (position, url) = match input {
                Input::Page(page) => (page.position, &page.url),
                Input::Raw(raw) => (raw.position, &raw.url),
            };
            let draft = Draft::empty(position, url);
            draft.rejected(Fault::Poison, "cleaning it failed twice")
        })
    }

    fn clean_once(&self, input: &Input) -> Candidate {
        match input {
            Input::Page(page) => match self.read(page) {
                Ok(draft) => self.judge(draft),
                Err((fault, detail)) => Draft::empty(page.position, &page.url).rejected(fault, &detail),
            },
            Input::Raw(raw) => self.judge(Draft {
                position: raw.position,
                url: raw.url.clone(),
                title: raw.title.clone(),
                text: raw.text.clone(),
                charset: "UTF-8",
            }),
        }
    }

    /// A page's text, or why it has none.
    fn read(&self, page: &Page) -> Result<Draft, (Fault, String)> {
        let body = page.body.as_ref().map_err(|reason| (Fault::Unreadable, reason.clone()))?;
        if body.len() > self.options.page_bytes_max {
            let limit = self.options.page_bytes_max;
            return Err((Fault::Unreadable, format!("{} bytes, the limit is {limit}", body.len())));
        }
        let form = Form::of(page.content_type.as_deref(), body)?;
        let decoded = charset::decode(body, page.content_type.as_deref());
        if decoded.replaced > REPLACED_SHARE_MAX {
            let detail = format!("{:.3} of the characters are not {}", decoded.replaced, decoded.charset);
            return Err((Fault::GarbledText, detail));
        }
        let (title, text) = match form {
            Form::Html => {
                let found = extract(&decoded.text, &page.url, self.options.extractor);
                (found.title, found.text)
            }
            Form::Plain => (String::new(), decoded.text),
        };
        Ok(Draft { position: page.position, url: page.url.clone(), title, text, charset: decoded.charset })
    }

    fn judge(&self, mut draft: Draft) -> Candidate {
        draft.text = normalize(&draft.text, self.options.width);
        draft.title = normalize(&draft.title, self.options.width).replace('\n', " ");
        if draft.text.is_empty() {
            return draft.rejected(Fault::NoText, "nothing is left of it");
        }
        let mut prose = flat(&draft.text);
        let mut language = identify(&prose);
        if let (Some(simplifier), "zh-Hant") = (&self.simplifier, language.tag) {
            draft.text = simplifier.simplify(&draft.text);
            draft.title = simplifier.simplify(&draft.title);
            prose = flat(&draft.text);
            language.tag = "zh-Hans";
        }
        let words = words::words(&prose, language.tag);
        let rejection = self.unwanted(&language).or_else(|| {
            self.judge.judge(&prose, &words, language.tag).map(|breach| Rejection {
                reason: Reason::Rule(breach.rule),
                detail: format!("{:.4}, the limit is {}", breach.value, breach.limit),
            })
        });
        let word_count = words::count(&words) as u64;
        let (text, masks) = pii::mask(&draft.text, &self.options.masks);
        draft.text = text;
        Candidate {
            masks,
            words: word_count,
            language: language.tag.to_owned(),
            language_confidence: language.confidence,
            rejection,
            ..draft.candidate()
        }
    }

    fn unwanted(&self, language: &Language) -> Option<Rejection> {
        let wanted = &self.options.languages;
        let fits = |tag: &String| {
            language.tag == tag
                || language.tag.strip_prefix(tag.as_str()).is_some_and(|rest| rest.starts_with('-'))
        };
        let detail = if !wanted.is_empty() && !wanted.iter().any(fits) {
            format!("{} is not wanted", language.tag)
        } else if language.confidence < self.options.language_confidence_min {
            format!("{} with confidence {:.3}", language.tag, language.confidence)
        } else {
            return None;
        };
        Some(Rejection { reason: Reason::Fault(Fault::Language), detail })
    }
}

impl Draft {
    fn empty(position: u64, url: &str) -> Self {
        Self { position, url: url.to_owned(), title: String::new(), text: String::new(), charset: "" }
    }

    fn candidate(self) -> Candidate {
        Candidate {
            position: self.position,
            url: self.url,
            title: self.title,
            language: "und".to_owned(),
            language_confidence: 0.0,
            charset: self.charset.to_owned(),
            chars: self.text.chars().count() as u64,
            words: 0,
            masks: Vec::new(),
            signature: Signature::of(&self.text),
            rejection: None,
            text: self.text,
        }
    }

    fn rejected(self, fault: Fault, detail: &str) -> Candidate {
        let rejection = Some(Rejection { reason: Reason::Fault(fault), detail: detail.to_owned() });
        Candidate { rejection, ..self.candidate() }
    }
}

/// How a body is read.
enum Form {
    Html,
    Plain,
}

impl Form {
    /// By media type; without one, by whether it looks like markup.
    fn of(content_type: Option<&str>, body: &[u8]) -> Result<Self, (Fault, String)> {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "text/html" | "application/xhtml+xml" => Ok(Self::Html),
            "text/plain" | "text/markdown" | "text/x-rst" => Ok(Self::Plain),
            "" => {
                let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
                Ok(if start == Some(&b'<') { Self::Html } else { Self::Plain })
            }
            other => Err((Fault::MediaType, other.chars().take(80).collect())),
        }
    }
}

#[cfg(test)]
#[path = "clean/tests.rs"]
mod tests;
