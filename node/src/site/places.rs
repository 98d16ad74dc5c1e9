//! Documentation that lies on this machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Where Debian's packages put documentation.
const DOCUMENTATION: &str = "/usr/share/doc";
/// Languages of the Debian handbook that are wanted; it has 26.
const HANDBOOK_LANGUAGES: [&str; 3] = ["zh-CN", "zh-TW", "en-US"];
/// The toolchain's books that are wanted. The pages of the standard library, tens of thousands of
/// signatures, are not. Rust by Example has translations; the Chinese one balances the rest.
const RUST_BOOKS: [&str; 9] = [
    "book",
    "cargo",
    "edition-guide",
    "embedded-book",
    "nomicon",
    "reference",
    "rust-by-example/zh",
    "rustc",
    "rustdoc",
];
/// The page that documentation begins with.
const INDEX_PAGE: &str = "index.html";
/// A documentation folder with fewer HTML files is not worth a crawl.
const PAGES_MIN: usize = 50;
/// Entries looked at in one tree.
const ENTRIES_MAX: usize = 50_000;
/// `rustc --print sysroot` answers within this time, or counts as not there.
const RUSTC_TIMEOUT: Duration = Duration::from_secs(10);

/// Where documentation may lie.
pub(super) struct Places {
    /// A folder with a folder for each package.
    pub documentation: PathBuf,
    /// The HTML folder of the Rust toolchain.
    pub rust: Option<PathBuf>,
}

/// Documentation that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What it is.
    pub about: String,
    /// Where it lies.
    pub folder: PathBuf,
    /// The parts that are wanted, as paths with a slash at both ends; empty for all.
    pub sections: Vec<String>,
}

impl Found {
    /// Where a crawl begins, as paths. An index page goes by its own name, as pages beside it link to
    /// it; by the folder's name as well it would be fetched twice.
    pub(super) fn beginnings(&self) -> Vec<String> {
        let whole = ["/".to_owned()];
        let sections = if self.sections.is_empty() { &whole[..] } else { &self.sections };
        let begin = |section: &String| {
            let has_index = self.folder.join(section.trim_start_matches('/')).join(INDEX_PAGE).is_file();
            if has_index { format!("{section}{INDEX_PAGE}") } else { section.clone() }
        };
        sections.iter().map(begin).collect()
    }
}

impl Places {
    /// The usual places.
    pub(super) async fn of_this_machine() -> Self {
        let rust = sysroot().await.map(|root| root.join("share/doc/rust/html"));
        Self { documentation: DOCUMENTATION.into(), rust }
    }

    /// The best documentation there is.
    pub(super) fn find(&self) -> Option<Found> {
        self.handbook().or_else(|| self.books()).or_else(|| self.largest())
    }

    fn handbook(&self) -> Option<Found> {
        let folder = self.documentation.join("debian-handbook/html");
        let (sections, pages) = sections(&folder, &HANDBOOK_LANGUAGES)?;
        let about = format!("the Debian handbook in {} ({pages} HTML files)", folder.display());
        Some(Found { about, folder, sections })
    }

    fn books(&self) -> Option<Found> {
        let folder = self.rust.clone()?;
        let (sections, pages) = sections(&folder, &RUST_BOOKS)?;
        let about = format!("the Rust toolchain's books in {} ({pages} HTML files)", folder.display());
        Some(Found { about, folder, sections })
    }

    /// The folder with most pages; the first by name among equals.
    fn largest(&self) -> Option<Found> {
        let packages = self.documentation.read_dir().ok()?.filter_map(Result::ok);
        let mut folders: Vec<PathBuf> = packages.map(|package| package.path().join("html")).collect();
        folders.sort();
        let counted = folders.into_iter().map(|folder| (count_pages(&folder), folder));
        let (pages, folder) = counted.rev().max_by_key(|(pages, _)| *pages)?;
        let about = format!("the documentation in {} ({pages} HTML files)", folder.display());
        (pages >= PAGES_MIN).then_some(Found { about, folder, sections: Vec::new() })
    }
}

/// Those of the parts that have pages, and how many they have.
fn sections(folder: &Path, parts: &[&str]) -> Option<(Vec<String>, usize)> {
    let counted: Vec<(&str, usize)> = parts
        .iter()
        .map(|part| (*part, count_pages(&folder.join(part))))
        .filter(|(_, pages)| *pages > 0)
        .collect();
    let sections = counted.iter().map(|(part, _)| format!("/{part}/")).collect();
    let pages = counted.iter().map(|(_, pages)| pages).sum();
    (pages >= PAGES_MIN).then_some((sections, pages))
}

/// The HTML files below a folder, links to folders not followed. Looks at a bounded number of entries.
pub(super) fn count_pages(folder: &Path) -> usize {
    let mut folders = vec![folder.to_owned()];
    let (mut pages, mut looked_at) = (0, 0);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries.filter_map(Result::ok) {
            looked_at += 1;
            if looked_at > ENTRIES_MAX {
                return pages;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => pages += usize::from(is_page(&entry.path())),
                Err(_) => {}
            }
        }
    }
    pages
}

fn is_page(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["html", "htm", "xhtml"].iter().any(|page| extension.eq_ignore_ascii_case(page))
}

/// What a person may have meant by a path that leads nowhere, as the end of a sentence.
pub(super) fn suggestion(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let siblings = parent.read_dir().into_iter().flatten().filter_map(Result::ok);
    let folders = siblings.map(|entry| entry.path()).filter(|path| path.is_dir());
    let scored = folders.map(|folder| {
        let score = strsim::jaro_winkler(&folder.file_name().unwrap_or_default().to_string_lossy(), &name);
        (score, folder)
    });
    let nearest = scored.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
    match nearest {
        Some((score, folder)) if score > 0.8 => format!("; did you mean `{}`?", folder.display()),
        _ if path.components().count() == 1 && name.contains('.') => {
            format!("; for a site on the web write `https://{name}`")
        }
        _ => String::new(),
    }
}

async fn sysroot() -> Option<PathBuf> {
    let mut rustc = tokio::process::Command::new("rustc");
    rustc.args(["--print", "sysroot"]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(RUSTC_TIMEOUT, rustc.output()).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim_end()))
}

#[cfg(test)]
mod tests;
