//! Tests of `encode`: what is learned is in brackets.

use std::collections::BTreeMap;

use sixfold_chat::Builtin;

use super::*;
use crate::tokenizer::{SPECIAL_TOKENS, train};

const TEXTS: [&str; 3] =
    ["What is the name of the city? The name is Paris.", "发烧了怎么办？多喝水，多休息。", "Hello hello"];

fn encoder(source: &str) -> Encoder {
    let texts = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    let mut tokenizer = train(texts, 300, 2).unwrap();
    tokenizer.set_encode_special_tokens(false);
    Encoder {
        template: ChatTemplate::new(source, BTreeMap::new(), "2024-07-26".parse().unwrap()).unwrap(),
        tokenizer,
        special_tokens: SPECIAL_TOKENS.map(str::to_owned).to_vec(),
        tokens_max: 1000,
        cuts: false,
    }
}

fn dialogue(turns: &[(&str, &str)]) -> Vec<Message> {
    let message =
        |(role, content): &(&str, &str)| Message { role: (*role).to_owned(), content: (*content).to_owned() };
    turns.iter().map(message).collect()
}

/// The text of a dialogue, with brackets around runs of tokens that are learned.
fn shown(encoder: &Encoder, dialogue: &[Message]) -> String {
    let Encoded { ids, learned, .. } = encoder.encode(dialogue).unwrap();
    let mut out = String::new();
    let decode = |ids: &[u32]| encoder.tokenizer.decode(ids, false).unwrap();
    let mut start = 0;
    while start < ids.len() {
        let run = learned[start..].iter().take_while(|&&one| one == learned[start]).count();
        let text = decode(&ids[start..start + run]);
        out += &if learned[start] { format!("[{text}]") } else { text };
        start += run;
    }
    out
}

/// Ends answers with a special token that the tokenizer has.
const ENDED: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
    {% if m.role == 'assistant' %}<|endoftext|>\n{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

#[test]
fn answers_are_learned_with_the_token_that_ends_them_and_nothing_else_is() {
    let long = dialogue(&[
        ("system", "You know cities."),
        ("user", "What is the name?"),
        ("assistant", "The name is Paris."),
        ("user", "发烧了怎么办？"),
        ("assistant", "多喝水，多休息。"),
    ]);
    assert_eq!(
        shown(&encoder(ENDED), &long),
        "<|system|>You know cities.<|user|>What is the name?<|assistant|>[The name is Paris.<|endoftext|>]\n\
         <|user|>发烧了怎么办？<|assistant|>[多喝水，多休息。<|endoftext|>]\n"
    );
    // Where no token ends an answer, the new line does.
    assert_eq!(
        shown(&encoder(Builtin::Turns.source()), &long[1..]),
        "<|user|>\nWhat is the name?\n<|assistant|>\n[The name is Paris.\n]<|user|>\n发烧了怎么办？\n<|assistant|>\n\
         [多喝水，多休息。\n]"
    );
    let marked = "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A{% else %}\
                  {% generation %} {{ m.content }}{% endgeneration %}.{% endif %}{% endfor %}";
    assert_eq!(shown(&encoder(marked), &long[1..3]), "Q What is the name? A[ The name is Paris.].");
}

#[test]
fn what_cannot_be_learned_from_is_refused_with_the_reason() {
    let encoder = encoder(ENDED);
    let refused = |encoder: &Encoder, turns: &[(&str, &str)]| encoder.encode(&dialogue(turns)).unwrap_err();
    let error = refused(&encoder, &[("user", "end <|endoftext|> here"), ("assistant", "x")]);
    assert!(matches!(&error, Refused::SpecialToken(token) if token == "<|endoftext|>"), "{error}");
    let short = Encoder { tokens_max: 10, ..self::encoder(ENDED) };
    let turns = [("user", "Hi"), ("assistant", "Hello hello hello hello hello")];
    assert!(matches!(refused(&short, &turns), Refused::TooLong(11..)));
    let cuts = Encoder { cuts: true, ..short };
    let cut = cuts.encode(&dialogue(&turns)).unwrap();
    assert_eq!((cut.ids.len(), cut.learned.len(), cut.cut), (10, 10, true));
    assert_eq!(shown(&cuts, &dialogue(&turns)).split('[').next(), Some("<|user|>Hi<|assistant|>"));
    let question = "Hi ".repeat(20);
    assert!(matches!(refused(&cuts, &[("user", &question), ("assistant", "x")]), Refused::NoAnswer));
    let upper = self::encoder("{% for m in messages %}{{ m.content | upper }}{% endfor %}");
    assert!(matches!(refused(&upper, &turns), Refused::Answers(AnswerError::Changed(1))));
}
