//! The fields of `config.json` that say which layers have a sliding window.

use std::num::NonZeroUsize;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{ConfigError, ModelConfig};

/// What Hugging Face takes for a missing window.
const WINDOW: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// What it takes for the layers before the first with a window.
const FULL_ATTENTION_LAYERS: usize = 28;
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Which fields there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::families) enum WindowFields {
    /// None, or they mean nothing.
    None,
    /// `sliding_window`, of all layers; `null` for none.
    OfAllLayers,
    /// The same with `use_sliding_window` and `max_window_layers`, the number of layers before the first that has it;
    /// or `layer_types`, which says it of each layer.
    OfLastLayers,
}

/// Layers with a window.
#[derive(Default)]
pub(super) struct Window {
    pub(super) sliding_window: Option<NonZeroUsize>,
    pub(super) full_attention_layers: usize,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default = "usual_window")]
    sliding_window: Option<NonZeroUsize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

fn usual_window() -> Option<NonZeroUsize> {
    Some(WINDOW)
}

pub(super) fn write(config: &ModelConfig, fields: WindowFields, value: &mut Value) {
    if fields == WindowFields::None {
        return;
    }
    value["sliding_window"] = json!(config.sliding_window);
    if fields == WindowFields::OfLastLayers {
        let is_used = config.sliding_window.is_some();
        value["use_sliding_window"] = json!(is_used);
        value["max_window_layers"] =
            json!(if is_used { config.full_attention_layers } else { config.num_hidden_layers });
    }
}

pub(super) fn read(text: &[u8], fields: WindowFields, layers: usize) -> Result<Window, ConfigError> {
    if fields == WindowFields::None {
        return Ok(Window::default());
    }
    let raw: Fields = serde_json::from_slice(text)?;
    if fields == WindowFields::OfAllLayers {
        return Ok(Window { sliding_window: raw.sliding_window, full_attention_layers: 0 });
    }
    let sliding_window = raw.sliding_window.filter(|_| raw.use_sliding_window == Some(true));
    let full_attention_layers = match &raw.layer_types {
        Some(types) => layers_before_the_window(types, layers)?,
        None if sliding_window.is_none() => layers,
        None => raw.max_window_layers.unwrap_or(FULL_ATTENTION_LAYERS),
    };
    match sliding_window {
        _ if full_attention_layers >= layers => Ok(Window::default()),
        None => Err(ConfigError::Shape(format!("`layer_types` has `{SLIDING}`, and no window is used"))),
        sliding_window => Ok(Window { sliding_window, full_attention_layers }),
    }
}

/// The number of layers without a window, all of which must come first.
fn layers_before_the_window(types: &[String], layers: usize) -> Result<usize, ConfigError> {
    if types.len() != layers {
        return Err(ConfigError::Shape(format!("{} `layer_types` of {layers} layers", types.len())));
    }
    let full = types.iter().take_while(|name| *name == FULL).count();
    match types[full..].iter().find(|name| *name != SLIDING) {
        None => Ok(full),
        Some(other) => Err(ConfigError::Unsupported {
            field: "layer_types",
            value: format!("`{other}` after layer {full}, the first with a window"),
        }),
    }
}
