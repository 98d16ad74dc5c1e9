//! What a training takes over from the model that it starts from.

use std::path::Path;

use serde_json::{Map, Value};
use sixfold_coordinator::job::StageSpec;
use sixfold_formats::{OpenOptions, open};
use sixfold_train::{FIXED_BY_BASE, ModelOptions, options_of_base, options_of_trained_base};

/// Larger configurations are not read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The options of a `train` stage that starts from the model of `base`, as far as that model fixes or suggests them. The
/// plan is checked before the job starts, so its `config.json` must lie where the job is submitted, too.
pub(super) fn options_of(base: &StageSpec) -> Result<Map<String, Value>, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("stage `{}`: {error}", base.name);
    if base.kind != "model" {
        let options = serde_json::from_str(&base.options_json).map_err(|error| unreadable(&error))?;
        return Ok(options_of_trained_base(&options));
    }
    let ModelOptions { path } =
        serde_json::from_str(&base.options_json).map_err(|error| unreadable(&error))?;
    let config = config_of(&path).map_err(|error| unreadable(&error))?;
    options_of_base(&config).map_err(|error| unreadable(&error))
}

/// The `config.json` of a model: of a folder that file alone has to be here.
fn config_of(path: &Path) -> Result<Vec<u8>, String> {
    if !path.is_file() {
        return read(&path.join("config.json"));
    }
    let options = OpenOptions { without_tokenizer: true, ..OpenOptions::default() };
    let model = open(path, &options).map_err(|error| error.to_string())?;
    serde_json::to_vec(model.config()).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| {
        format!(
            "{}: {error}; the shape of a model to start from is read where the job is submitted: have its config.json at \
             this path here, too",
            path.display()
        )
    };
    let bytes = std::fs::metadata(path).map_err(explain)?.len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(format!("{} has {bytes} bytes; at most {CONFIG_BYTES_MAX} are read", path.display()));
    }
    std::fs::read(path).map_err(explain)
}

/// Refuses options that say something else of the model's shape than what `fixed` says.
pub(super) fn refuse_other_shape(fixed: &Map<String, Value>, options: &Value) -> Result<(), String> {
    for option in FIXED_BY_BASE {
        if let Some(wanted) = fixed.get(option).filter(|wanted| **wanted != options[option]) {
            let value = &options[option];
            return Err(format!(
                "`{option}` is {value}; it must be {wanted}, as in the model that training starts from"
            ));
        }
    }
    Ok(())
}
