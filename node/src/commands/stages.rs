//! The stage kinds of a job file, explained.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::print_json;
use crate::job::file::nearest;
use crate::job::kinds::{StageKind, all};

/// `sixfold stages [KIND]`.
pub(crate) fn explain(wanted: Option<&str>, as_json: bool) -> Result<()> {
    let kinds = all();
    let shown: Vec<&StageKind> =
        kinds.iter().filter(|kind| wanted.is_none_or(|name| name == kind.name)).collect();
    if let (Some(name), true) = (wanted, shown.is_empty()) {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
        let hint = nearest(name, names.iter().copied());
        bail!("no stage kind is called `{name}`{hint}; the kinds are {}", names.join(", "));
    }
    if as_json {
        print_json(&shown.iter().map(|kind| to_json(kind)).collect());
    } else if wanted.is_none() {
        shown.iter().for_each(|kind| println!("{:10} {}", kind.name, kind.about));
        println!("\n`sixfold stages KIND` lists the options of a kind.");
    } else {
        shown.iter().for_each(|kind| print_kind(kind));
    }
    Ok(())
}

fn to_json(kind: &StageKind) -> Value {
    json!({
        "kind": kind.name,
        "about": kind.about,
        "takes": kind.takes,
        "may_take": kind.may_take,
        "required": kind.required,
        "defaults": kind.defaults(),
        "options": kind.options.iter().map(|(name, about)| json!({"name": name, "about": about})).collect::<Vec<_>>(),
    })
}

fn print_kind(kind: &StageKind) {
    println!("{}: {}", kind.name, kind.about);
    if !kind.takes.is_empty() {
        let needs: Vec<String> = kind.takes.iter().map(|kinds| kinds.join(" or ")).collect();
        println!("inputs: a stage of kind {}", needs.join(", and one of kind "));
    }
    if !kind.may_take.is_empty() {
        println!("and where it is to start from a model: a stage of kind {}", kind.may_take.join(" or "));
    }
    println!("\n[stage.NAME]\nkind = \"{}\"", kind.name);
    let defaults = kind.defaults();
    for (name, about) in &kind.options {
        let example = kind.required.get(name).or_else(|| defaults.get(name)).filter(|value| !value.is_null());
        println!("\n# {about}");
        match example {
            Some(value) => println!("{name} = {value}"),
            None => println!("# {name} ="),
        }
    }
}
