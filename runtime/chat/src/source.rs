//! The template and the special tokens of a model's folder: [`ChatSource`].

use std::collections::BTreeMap;

use serde_json::Value;

use crate::template::TemplateError;

/// What a model's `tokenizer_config.json` and `chat_template.jinja` say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatSource {
    /// The template, where the model has one.
    pub template: Option<String>,
    /// Special tokens by their names, such as `bos_token`.
    pub tokens: BTreeMap<String, String>,
}

impl ChatSource {
    /// Reads the two files, of which either may be absent. A template of its own file comes first; of several in
    /// `tokenizer_config.json` the one called `default` is taken.
    ///
    /// # Errors
    /// [`TemplateError`] if one is not readable.
    pub fn new(tokenizer_config: Option<&[u8]>, template_file: Option<&[u8]>) -> Result<Self, TemplateError> {
        let config: Value = match tokenizer_config {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|error| TemplateError(format!("tokenizer_config.json: {error}")))?,
            None => Value::Null,
        };
        let own = template_file.map(|bytes| String::from_utf8(bytes.to_vec())).transpose();
        let own = own.map_err(|error| TemplateError(format!("chat_template.jinja: {error}")))?;
        let named = |list: &Vec<Value>| {
            let default = list.iter().find(|one| one["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        let in_config = match &config["chat_template"] {
            Value::String(template) => Some(template.clone()),
            Value::Array(list) => named(list),
            _ => None,
        };
        // A token is written as a string, or as an object that holds it.
        let token = |(name, value): (&String, &Value)| {
            let token = value.as_str().or_else(|| value["content"].as_str())?;
            name.ends_with("_token").then(|| (name.clone(), token.to_owned()))
        };
        let tokens = config.as_object().into_iter().flatten().filter_map(token).collect();
        Ok(Self { template: own.or(in_config), tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_files_in_every_form() {
        let config =
            br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
            "add_bos_token": true, "chat_template": [{"name": "tool_use", "template": "t"},
            {"name": "default", "template": "d"}]}"#;
        let source = ChatSource::new(Some(config), None).unwrap();
        assert_eq!(source.template.as_deref(), Some("d"));
        let tokens: Vec<_> =
            source.tokens.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
        assert_eq!(tokens, [("bos_token", "<s>"), ("eos_token", "</s>")]);
        let source = ChatSource::new(Some(config), Some(b"own")).unwrap();
        assert_eq!(source.template.as_deref(), Some("own"));
        let source = ChatSource::new(Some(br#"{"chat_template": "c"}"#), None).unwrap();
        assert_eq!(source.template.as_deref(), Some("c"));
        assert_eq!(ChatSource::new(None, None).unwrap(), ChatSource::default());
        assert!(ChatSource::new(Some(b"{"), None).is_err());
        assert!(ChatSource::new(None, Some(b"\xff")).is_err());
    }
}
