//! Folders that `transformers` loaded from us and saved again, by `golden/transformers_check.py`, are the same models.
//!
//! Skips unless SIXFOLD_TRANSFORMERS names the folder that the script was given.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::path::PathBuf;

use sixfold_model::{Geometry, ModelConfig, ModelSlice, UnitBuffer, read_parameters};

fn read(folder: PathBuf) -> (ModelConfig, UnitBuffer) {
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let (config, _) =
        ModelConfig::from_hugging_face(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let geometry = Geometry::new(config, 4).unwrap();
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let parameters = read_parameters(&geometry, &ModelSlice::whole(&geometry), &file).unwrap();
    (geometry.config, parameters)
}

#[test]
fn what_transformers_save_is_what_we_wrote() {
    let Some(folder) = std::env::var_os("SIXFOLD_TRANSFORMERS") else {
        eprintln!("skipped: SIXFOLD_TRANSFORMERS is not set");
        return;
    };
    let folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty());
    for folder in folders {
        let (ours, saved) = (read(folder.clone()), read(folder.join("saved_by_transformers")));
        assert!(ours.1 == saved.1, "weights of {}", folder.display());
        assert_eq!(ours.0, saved.0, "{}", folder.display());
    }
}
