//! The generated page of a folder that has no index page.

use std::fs::DirEntry;
use std::path::Path;

use super::server::Answer;

/// Names looked at in one folder.
const NAMES_MAX: usize = 100_000;
/// Links of one listing: as many as a crawler follows of a page by default.
const LINKS_MAX: usize = 5000;

/// Lists the folder at `real`, which is served as `url_path`, by name. Of links only those are
/// listed that lead to a file that is `shown`: what a linked folder holds is listed at its own place,
/// and a link to a folder above would make paths without end.
pub(super) fn listing(real: &Path, url_path: &str, shown: impl Fn(&Path) -> bool) -> Answer {
    let Ok(entries) = real.read_dir() else { return Answer::Nothing };
    let mut names: Vec<String> =
        entries.take(NAMES_MAX).filter_map(|entry| listed_name(&entry.ok()?, &shown)).collect();
    names.sort_unstable();
    let left_out = names.len().saturating_sub(LINKS_MAX);
    names.truncate(LINKS_MAX);
    let mut page = format!(
        "<!doctype html>\n<html>\n<head><meta charset=\"utf-8\"><title>{0}</title></head>\n<body>\n<h1>{0}</h1>\n<ul>\n",
        escape(url_path)
    );
    page.extend(names.iter().map(|name| item(name)));
    page.push_str("</ul>\n");
    if left_out > 0 {
        page.push_str(&format!("<p>and {left_out} more</p>\n"));
    }
    page.push_str("</body>\n</html>\n");
    Answer::Listing(page)
}

/// The name of an entry, with a slash after a folder's.
fn listed_name(entry: &DirEntry, shown: impl Fn(&Path) -> bool) -> Option<String> {
    let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
    let kind = entry.file_type().ok()?;
    let path = entry.path();
    if kind.is_dir() {
        Some(format!("{name}/"))
    } else if kind.is_file() || (kind.is_symlink() && path.is_file() && shown(&path)) {
        Some(name)
    } else {
        None
    }
}

fn item(name: &str) -> String {
    let (plain, slash) = name.strip_suffix('/').map_or((name, ""), |plain| (plain, "/"));
    format!("<li><a href=\"{}{slash}\">{}</a></li>\n", encode(plain), escape(name))
}

/// A name as one segment of a URL's path.
fn encode(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
