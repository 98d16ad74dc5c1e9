//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: a blank after commas and colons, no escapes for HTML.

use minijinja::value::ValueKind;
use serde_json::{Map, Value};

/// A template's value as JSON.
pub(crate) fn value_of(value: &minijinja::Value) -> Result<Value, minijinja::Error> {
    let number =
        || value.as_i64().map(Value::from).or_else(|| f64::try_from(value.clone()).ok().map(Value::from));
    Ok(match value.kind() {
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number => number().unwrap_or_default(),
        ValueKind::String => value.as_str().unwrap_or_default().into(),
        ValueKind::Seq | ValueKind::Iterable => {
            Value::Array(value.try_iter()?.map(|item| value_of(&item)).collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let field = |key: minijinja::Value| Ok((key.to_string(), value_of(&value.get_item(&key)?)?));
            let fields: Result<Map<_, _>, minijinja::Error> = value.try_iter()?.map(field).collect();
            Value::Object(fields?)
        }
        _ => Value::Null,
    })
}

/// Writes a value; with `indent`, over several lines.
pub(crate) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { comma } else { "" });
                line(depth + 1, out);
                write(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (number, (name, item)) in fields.iter().enumerate() {
                out.push_str(if number > 0 { comma } else { "" });
                line(depth + 1, out);
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(": ");
                write(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        // Of texts and numbers both write the same.
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn is_what_python_writes() {
        let value = json!({"a": [1, 2.5, null, true], "b": {"c": "é <\"> 你"}, "d": [], "e": {}});
        assert_eq!(
            dumps(&value, None),
            r#"{"a": [1, 2.5, null, true], "b": {"c": "é <\"> 你"}, "d": [], "e": {}}"#
        );
        let lines = "{\n  \"a\": [\n    1\n  ]\n}";
        assert_eq!(dumps(&json!({"a": [1]}), Some(2)), lines);
    }
}
