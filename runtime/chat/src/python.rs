//! The methods of Python's strings and dictionaries that templates call.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method that Jinja has from Python.
pub(crate) fn method(
    _state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(text, method, arguments),
        (None, ValueKind::Map) => of_map(value, method, arguments),
        _ => Err(unknown(method)),
    }
}

fn unknown(method: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("no method `{method}`"))
}

fn of_string(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, format!("`{method}` takes other arguments"));
    let argument = |index: usize| arguments.get(index).and_then(Value::as_str).ok_or_else(wrong);
    // What is stripped: the characters named, or white space.
    let stripped: Option<Vec<char>> = match arguments.first() {
        Some(named) if !named.is_none() => named.as_str().map(|named| named.chars().collect()),
        _ => None,
    };
    let strips = |c: char| stripped.as_ref().map_or_else(|| c.is_whitespace(), |named| named.contains(&c));
    Ok(match method {
        "strip" => text.trim_matches(strips).into(),
        "lstrip" => text.trim_start_matches(strips).into(),
        "rstrip" => text.trim_end_matches(strips).into(),
        "startswith" => text.starts_with(argument(0)?).into(),
        "endswith" => text.ends_with(argument(0)?).into(),
        "removeprefix" => text.strip_prefix(argument(0)?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(argument(0)?).unwrap_or(text).into(),
        "lower" => text.to_lowercase().into(),
        "upper" => text.to_uppercase().into(),
        "capitalize" => capitalize(text).into(),
        "title" => title(text).into(),
        "replace" => match arguments.get(2).and_then(Value::as_i64).map(usize::try_from) {
            Some(Ok(count)) => text.replacen(argument(0)?, argument(1)?, count).into(),
            _ => text.replace(argument(0)?, argument(1)?).into(),
        },
        "split" => split(text, arguments, false).ok_or_else(wrong)?,
        "rsplit" => split(text, arguments, true).ok_or_else(wrong)?,
        "splitlines" => list(text.lines()),
        "find" => {
            let at = text.find(argument(0)?);
            at.map_or(-1, |at| text[..at].chars().count() as i64).into()
        }
        "count" => text.matches(argument(0)?).count().into(),
        _ => return Err(unknown(method)),
    })
}

/// Nothing if the arguments are others than Python's.
fn split(text: &str, arguments: &[Value], from_right: bool) -> Option<Value> {
    let separator = arguments.first().filter(|separator| !separator.is_none());
    let Some(separator) = separator else { return Some(list(text.split_whitespace())) };
    let separator = separator.as_str().filter(|separator| !separator.is_empty())?;
    let most = arguments.get(1).and_then(Value::as_i64).and_then(|most| usize::try_from(most).ok());
    let parts: Vec<&str> = match (most, from_right) {
        (None, _) => text.split(separator).collect(),
        (Some(most), false) => text.splitn(most + 1, separator).collect(),
        (Some(most), true) => {
            let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
            parts.reverse();
            parts
        }
    };
    Some(list(parts))
}

fn list<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    parts.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// As Python does: every letter behind what is none is a capital.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn of_map(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let keys = || value.try_iter();
    let item = |key: &Value| value.get_item(key);
    match method {
        "get" => {
            let key = arguments.first().ok_or_else(|| unknown(method))?;
            let found = item(key)?;
            let default = arguments.get(1).cloned().unwrap_or(Value::from(()));
            Ok(if found.is_undefined() { default } else { found })
        }
        "keys" => Ok(keys()?.collect::<Vec<_>>().into()),
        "values" => keys()?.map(|key| item(&key)).collect::<Result<Vec<_>, _>>().map(Value::from),
        "items" => {
            let pair = |key: Value| Ok(Value::from(vec![key.clone(), item(&key)?]));
            keys()?.map(pair).collect::<Result<Vec<_>, Error>>().map(Value::from)
        }
        _ => Err(unknown(method)),
    }
}
