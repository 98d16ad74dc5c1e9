//! Conversations by templates of the usual kinds, as `transformers` renders them (`golden.py`), and their answers.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::collections::BTreeMap;

use serde::Deserialize;
use sixfold_chat::{AnswerError, Answers, Builtin, ChatTemplate, Message};

#[derive(Deserialize)]
struct Golden {
    name: String,
    template: String,
    tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Turn>,
    add_generation_prompt: bool,
    /// What comes of it, unless the template refuses.
    text: Option<String>,
    error: Option<String>,
    /// Characters that the template's blocks say are generated.
    generated: Option<Vec<[usize; 2]>>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

impl Case {
    fn messages(&self) -> Vec<Message> {
        let message = |turn: &Turn| Message { role: turn.role.clone(), content: turn.content.clone() };
        self.messages.iter().map(message).collect()
    }
}

fn goldens() -> Vec<Golden> {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn template(source: &str, tokens: &BTreeMap<String, String>) -> ChatTemplate {
    ChatTemplate::new(source, tokens.clone(), "2024-07-06".parse().unwrap()).unwrap()
}

fn special_tokens() -> Vec<String> {
    let tokens = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"];
    tokens.map(str::to_owned).to_vec()
}

#[test]
fn every_text_is_that_of_transformers() {
    let mut refused = 0;
    for golden in goldens() {
        let template = template(&golden.template, &golden.tokens);
        for case in &golden.cases {
            let rendered = template.render(&case.messages(), case.add_generation_prompt);
            match (&case.text, &case.error) {
                (Some(text), None) => assert_eq!(rendered.as_ref(), Ok(text), "{}", golden.name),
                (None, Some(error)) => {
                    refused += 1;
                    let told = rendered.unwrap_err().to_string();
                    assert!(told.contains(error), "{}: {told}", golden.name);
                }
                _ => panic!("{}: a case has a text or an error", golden.name),
            }
        }
    }
    assert_eq!(refused, 2, "a dialogue that begins with an answer, by one template");
}

#[test]
fn templates_by_name_are_those_of_the_models() {
    for golden in goldens() {
        let Some(builtin) = Builtin::of_name(&golden.name) else { continue };
        let template = template(builtin.source(), &golden.tokens);
        for case in golden.cases.iter().filter(|case| case.text.is_some()) {
            let rendered = template.render(&case.messages(), case.add_generation_prompt).unwrap();
            assert_eq!(Some(rendered), case.text, "{}", golden.name);
        }
    }
    let names: Vec<String> = goldens().into_iter().map(|golden| golden.name).collect();
    assert!(Builtin::ALL.iter().all(|builtin| names.iter().any(|name| name == builtin.name())));
}

#[test]
fn blocks_are_where_transformers_finds_them() {
    let golden = goldens().into_iter().find(|golden| golden.name == "generation").unwrap();
    let template = template(&golden.template, &golden.tokens);
    let mut compared = 0;
    for case in golden.cases.iter().filter(|case| !case.add_generation_prompt) {
        let answers = Answers::find(&template, &case.messages(), &[]).unwrap();
        let chars = |at: usize| answers.text[..at].chars().count();
        let found: Vec<[usize; 2]> =
            answers.ranges.iter().map(|range| [chars(range.start), chars(range.end)]).collect();
        assert_eq!(Some(found), case.generated);
        assert_eq!(Some(answers.text), case.text);
        compared += 1;
    }
    assert_eq!(compared, 7);
}

/// The answers of a dialogue by a template, each as it is written.
fn answers(name: &str, case: usize) -> Result<Vec<String>, AnswerError> {
    let golden = goldens().into_iter().find(|golden| golden.name == name).unwrap();
    let template = template(&golden.template, &golden.tokens);
    let found = Answers::find(&template, &golden.cases[2 * case].messages(), &special_tokens())?;
    Ok(found.ranges.iter().map(|range| found.text[range.clone()].to_owned()).collect())
}

#[test]
fn answers_are_their_texts_and_the_tokens_that_end_them() {
    let three = |end: &str| {
        ["Hello! ", "Red, \"green\".\n<b>x</b>", "不客气。"].map(|answer| format!("{answer}{end}")).to_vec()
    };
    for name in ["chatml", "qwen2.5", "generation"] {
        assert_eq!(answers(name, 2).unwrap(), three("<|im_end|>"), "{name}");
    }
    assert_eq!(answers("turns", 2).unwrap(), three("\n"));
    let trimmed = |answer: String| answer.replace("Hello! ", "Hello!");
    for name in ["llama3", "llama3-dated"] {
        let expected: Vec<String> = three("<|eot_id|>").into_iter().map(trimmed).collect();
        assert_eq!(answers(name, 2).unwrap(), expected, "{name}");
    }
    let behind_blank: Vec<String> = three("</s>").into_iter().map(|answer| format!(" {answer}")).collect();
    assert_eq!(answers("mistral", 2).unwrap(), behind_blank);
    assert_eq!(answers("chatml", 1).unwrap(), ["多喝水，注意休息。\n如果超过三天，请就医。<|im_end|>"]);
}

#[test]
fn a_template_whose_answers_cannot_be_told_is_refused() {
    // What it writes of an answer depends on whether there is another question behind it.
    assert_eq!(answers("thinking", 2).unwrap_err(), AnswerError::Prefix(1));
    assert_eq!(answers("thinking", 0).unwrap(), ["<think>\n\n</think>\n\nParis.<|im_end|>"]);
    assert!(matches!(answers("mistral", 6).unwrap_err(), AnswerError::Template(_)));
    let shouts = "{% for m in messages %}{{ m.content | upper }}{% endfor %}";
    let message = |role: &str| Message { role: role.to_owned(), content: "text".to_owned() };
    let shouts = template(shouts, &BTreeMap::new());
    let found = Answers::find(&shouts, &[message("user"), message("assistant")], &[]);
    assert_eq!(found.unwrap_err(), AnswerError::Changed(1));
    let nested = "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}";
    let found = Answers::find(&template(nested, &BTreeMap::new()), &[message("user")], &[]);
    assert_eq!(found.unwrap_err(), AnswerError::Blocks);
}
