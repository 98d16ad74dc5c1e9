//! A row of instruction data as a dialogue: [`read`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sixfold_chat::Message;

/// How rows say what was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Whichever a row has the fields of.
    #[default]
    Auto,
    /// `instruction`, `input`, `output`; also with `system`, and `history`, pairs of questions and answers before. Rows of
    /// Self-Instruct have the last two in the first of their `instances`.
    Alpaca,
    /// `conversations`: turns of `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `messages`: turns of `role` and `content`, as OpenAI has them.
    Messages,
}

/// Why a row is no dialogue that can be learned from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The row is not JSON, or no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// It has the fields of none of the forms.
    #[error("neither `instruction`, nor `conversations`, nor `messages`")]
    NoForm,
    /// A field is missing or of another type.
    #[error("no text in `{0}`")]
    NoText(&'static str),
    /// A field is no list of turns.
    #[error("no turns in `{0}`")]
    NoTurns(&'static str),
    /// A turn is by somebody else than system, user or assistant.
    #[error("a turn of `{0}`")]
    Role(String),
    /// Questions and answers do not take turns, or a system prompt is not the first.
    #[error("questions and answers do not take turns")]
    Order,
    /// There is no answer, or one has no text.
    #[error("an empty answer, or none")]
    NoAnswer,
}

impl Broken {
    /// What it is counted under.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotAnObject => "not_an_object",
            Self::NoForm => "unknown_form",
            Self::NoText(_) => "no_text",
            Self::NoTurns(_) => "no_turns",
            Self::Role(_) => "unknown_role",
            Self::Order => "turns_out_of_order",
            Self::NoAnswer => "no_answer",
        }
    }
}

const SYSTEM: &str = "system";
const USER: &str = "user";
const ASSISTANT: &str = "assistant";

fn message(role: &str, content: impl Into<String>) -> Message {
    Message { role: role.to_owned(), content: content.into() }
}

/// The dialogue of a row: a system prompt or none, then questions and answers in turn, an answer last.
///
/// # Errors
/// [`Broken`] says what it lacks.
pub fn read(row: &Value, form: Form) -> Result<Vec<Message>, Broken> {
    let row = row.as_object().ok_or(Broken::NotAnObject)?;
    let has = |field: &str| row.contains_key(field);
    let mut dialogue = match form {
        Form::Alpaca => alpaca(row),
        Form::ShareGpt => turns(row, "conversations", ["from", "value"]),
        Form::Messages => turns(row, "messages", ["role", "content"]),
        Form::Auto if has("messages") => turns(row, "messages", ["role", "content"]),
        Form::Auto if has("conversations") => turns(row, "conversations", ["from", "value"]),
        Form::Auto if has("instruction") => alpaca(row),
        Form::Auto => Err(Broken::NoForm),
    }?;
    // What is asked last and not answered teaches nothing.
    while dialogue.last().is_some_and(|message| message.role == USER) {
        dialogue.pop();
    }
    check(&dialogue)?;
    Ok(dialogue)
}

fn check(dialogue: &[Message]) -> Result<(), Broken> {
    let has_system = dialogue.first().is_some_and(|message| message.role == SYSTEM);
    let spoken = &dialogue[usize::from(has_system)..];
    let speaker = |at: usize| if at.is_multiple_of(2) { USER } else { ASSISTANT };
    if spoken.iter().enumerate().any(|(at, message)| message.role != speaker(at)) {
        return Err(Broken::Order);
    }
    let is_empty = |message: &&Message| message.role == ASSISTANT && message.content.trim().is_empty();
    if spoken.is_empty() || spoken.iter().any(|message| is_empty(&message)) {
        return Err(Broken::NoAnswer);
    }
    Ok(())
}

/// The text of a field, which may be absent.
fn text<'a>(row: &'a Map<String, Value>, field: &'static str) -> Result<Option<&'a str>, Broken> {
    match row.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(Broken::NoText(field)),
    }
}

fn alpaca(row: &Map<String, Value>) -> Result<Vec<Message>, Broken> {
    let instance = row.get("instances").and_then(|instances| instances[0].as_object()).unwrap_or(row);
    let instruction = text(row, "instruction")?.ok_or(Broken::NoText("instruction"))?;
    let question = match text(instance, "input")? {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_owned(),
    };
    let answer = text(instance, "output")?.ok_or(Broken::NoAnswer)?;
    let mut dialogue = Vec::new();
    dialogue.extend(text(row, SYSTEM)?.map(|system| message(SYSTEM, system)));
    for pair in history(row)? {
        let [Value::String(question), Value::String(answer)] = pair.as_slice() else {
            return Err(Broken::NoTurns("history"));
        };
        dialogue.extend([message(USER, question), message(ASSISTANT, answer)]);
    }
    dialogue.extend([message(USER, question), message(ASSISTANT, answer)]);
    Ok(dialogue)
}

/// The pairs of earlier turns.
fn history(row: &Map<String, Value>) -> Result<Vec<&Vec<Value>>, Broken> {
    let pairs = match row.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(pairs) => pairs.as_array().ok_or(Broken::NoTurns("history"))?,
    };
    pairs.iter().map(|pair| pair.as_array().ok_or(Broken::NoTurns("history"))).collect()
}

fn turns(
    row: &Map<String, Value>,
    field: &'static str,
    [who, what]: [&'static str; 2],
) -> Result<Vec<Message>, Broken> {
    let turns = row.get(field).and_then(Value::as_array).ok_or(Broken::NoTurns(field))?;
    let mut dialogue = Vec::with_capacity(turns.len() + 1);
    dialogue.extend(text(row, SYSTEM)?.map(|system| message(SYSTEM, system)));
    for turn in turns {
        let said = turn[what].as_str().ok_or(Broken::NoText(what))?;
        let role = match turn[who].as_str().ok_or(Broken::NoText(who))? {
            "system" | "developer" => SYSTEM,
            "user" | "human" => USER,
            "assistant" | "gpt" | "chatgpt" | "bot" | "model" => ASSISTANT,
            other => return Err(Broken::Role(other.to_owned())),
        };
        dialogue.push(message(role, said));
    }
    Ok(dialogue)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A dialogue as `role: text` lines.
    fn lines(row: Value) -> Result<Vec<String>, Broken> {
        lines_as(row, Form::Auto)
    }

    fn lines_as(row: Value, form: Form) -> Result<Vec<String>, Broken> {
        let line = |message: Message| format!("{}: {}", message.role, message.content);
        Ok(read(&row, form)?.into_iter().map(line).collect())
    }

    #[test]
    fn every_form_is_read_and_told_from_the_others() {
        let alpaca = json!({"instruction": "Translate.", "input": "你好", "output": "Hello."});
        assert_eq!(lines(alpaca.clone()).unwrap(), ["user: Translate.\n你好", "assistant: Hello."]);
        let with_history = json!({
            "system": "Be brief.", "instruction": "再说一遍。", "input": "", "output": "好。",
            "history": [["你好", "您好"], ["在吗", "在"]],
        });
        assert_eq!(
            lines(with_history).unwrap(),
            [
                "system: Be brief.",
                "user: 你好",
                "assistant: 您好",
                "user: 在吗",
                "assistant: 在",
                "user: 再说一遍。",
                "assistant: 好。"
            ]
        );
        let sharegpt = json!({"id": 7, "system": "s", "conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
            {"from": "user", "value": "c"}, {"from": "assistant", "value": "d"}, {"from": "human", "value": "e"}]});
        let expected = ["system: s", "user: a", "assistant: b", "user: c", "assistant: d"];
        assert_eq!(lines(sharegpt.clone()).unwrap(), expected);
        let messages = json!({"messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        assert_eq!(lines(messages.clone()).unwrap(), ["system: s", "user: a", "assistant: b"]);
        let seed = json!({"instruction": "写诗", "instances": [{"input": "夏天", "output": "荷花"}]});
        assert_eq!(lines(seed).unwrap(), ["user: 写诗\n夏天", "assistant: 荷花"]);
        for (form, row) in [(Form::Alpaca, alpaca), (Form::ShareGpt, sharegpt), (Form::Messages, messages)] {
            assert!(lines_as(row.clone(), form).is_ok());
            let others =
                [Form::Alpaca, Form::ShareGpt, Form::Messages].into_iter().filter(|other| *other != form);
            others.for_each(|other| assert!(lines_as(row.clone(), other).is_err(), "{form:?} as {other:?}"));
        }
    }

    #[test]
    fn what_is_broken_is_named() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let of = |turns: Vec<Value>| json!({"messages": turns});
        for (row, expected) in [
            (json!([1]), Broken::NotAnObject),
            (json!({"text": "x"}), Broken::NoForm),
            (json!({"instruction": 3, "output": "x"}), Broken::NoText("instruction")),
            (json!({"instruction": "x", "output": ""}), Broken::NoAnswer),
            (
                json!({"instruction": "x", "output": "y", "history": [["only one"]]}),
                Broken::NoTurns("history"),
            ),
            (json!({"conversations": "x"}), Broken::NoTurns("conversations")),
            (json!({"conversations": [{"from": "human"}]}), Broken::NoText("value")),
            (of(vec![turn("tool", "x")]), Broken::Role("tool".to_owned())),
            (of(vec![turn("assistant", "x")]), Broken::Order),
            (of(vec![turn("user", "a"), turn("user", "b"), turn("assistant", "c")]), Broken::Order),
            (of(vec![turn("user", "a"), turn("assistant", "b"), turn("system", "c")]), Broken::Order),
            (of(vec![turn("user", "a"), turn("assistant", " \n")]), Broken::NoAnswer),
            (of(vec![turn("user", "a")]), Broken::NoAnswer),
            (of(vec![]), Broken::NoAnswer),
        ] {
            assert_eq!(lines(row.clone()).unwrap_err(), expected, "{row}");
        }
    }
}
