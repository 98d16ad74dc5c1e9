//! What a served folder shows of itself.
//!
//! Files by their path, a folder's index page, else a listing. Never what lies elsewhere: a path is
//! taken apart and each part must be a plain name; then the real path, with links followed, must lie
//! in the folder too. For a folder in `/usr/share/doc` that is all of `/usr/share/doc`, since Debian's
//! packages share files by links there. Names that begin with a dot are not shown, by whatever way.
//! Only regular files are read (a pipe would never end).

use std::io::Read;
use std::path::{Path, PathBuf};

use axum::body::Bytes;

use super::listing::listing;
use super::server::Answer;

/// Where packages put documentation that links to other packages' documentation.
const SHARED_DOCUMENTATION: &str = "/usr/share/doc";
/// Larger files are not served: they are no pages.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Pages that stand for their folder.
const INDEX_PAGES: [&str; 3] = ["index.html", "index.htm", "index.xhtml"];

/// A folder that is served.
pub(super) struct Folder {
    /// Its real path.
    root: PathBuf,
    /// What links may lead to: the folder itself, or the tree that it belongs to.
    bounds: PathBuf,
}

impl Folder {
    /// The folder at `path`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self::within(path.canonicalize()?, Path::new(SHARED_DOCUMENTATION)))
    }

    /// A folder whose links may lead anywhere in `shared`, if it lies there itself.
    pub(super) fn within(root: PathBuf, shared: &Path) -> Self {
        let bounds = if root.starts_with(shared) { shared.to_owned() } else { root.clone() };
        Self { root, bounds }
    }

    /// What is at the path of a URL.
    pub(super) fn answer(&self, url_path: &str) -> Answer {
        match self.locate(url_path) {
            Some(real) if real.is_dir() && url_path.ends_with('/') => self.show_folder(&real, url_path),
            // The path is one of plain names, so this cannot become the address of another host.
            Some(real) if real.is_dir() => Answer::Folder(format!("{url_path}/")),
            Some(real) if !url_path.ends_with('/') => read_file(&real),
            _ => Answer::Nothing,
        }
    }

    fn show_folder(&self, real: &Path, url_path: &str) -> Answer {
        let mut pages = INDEX_PAGES.iter().filter_map(|name| self.real(&real.join(name)));
        match pages.next() {
            Some(page) => read_file(&page),
            None => listing(real, url_path, |entry| self.real(entry).is_some()),
        }
    }

    fn locate(&self, url_path: &str) -> Option<PathBuf> {
        let mut path = self.root.clone();
        path.extend(names(url_path)?);
        self.real(&path)
    }

    /// The real path, if it may be shown.
    fn real(&self, path: &Path) -> Option<PathBuf> {
        let real = path.canonicalize().ok()?;
        let inside = real.strip_prefix(&self.root).or_else(|_| real.strip_prefix(&self.bounds)).ok()?;
        let is_hidden = inside.iter().any(|part| part.as_encoded_bytes().starts_with(b"."));
        (!is_hidden).then_some(real)
    }
}

/// The names that a URL's path is made of, decoded. `None` where one is no plain name.
fn names(url_path: &str) -> Option<Vec<String>> {
    let path = url_path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return (url_path == "/").then(Vec::new);
    }
    path.split('/').map(|part| decode(part).filter(|name| is_plain(name))).collect()
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

fn decode(part: &str) -> Option<String> {
    let mut digits = part.bytes();
    let mut bytes = Vec::with_capacity(part.len());
    while let Some(byte) = digits.next() {
        let mut digit = || char::from(digits.next()?).to_digit(16);
        bytes.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

fn read_file(real: &Path) -> Answer {
    match real.metadata() {
        Ok(data) if data.is_file() && data.len() > FILE_BYTES_MAX => return Answer::TooLarge,
        Ok(data) if data.is_file() => {}
        _ => return Answer::Nothing,
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(real).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Answer::File(content_type(real, &bytes), Bytes::from(bytes)),
        Err(_) => Answer::Nothing,
    }
}

/// The media type by the name. The charset is stated where it is certain, which is for UTF-8; of other
/// texts the page itself knows more than we do.
fn content_type(path: &Path, bytes: &[u8]) -> String {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let media_type = media_type(&extension.to_ascii_lowercase());
    let is_text = media_type.starts_with("text/") || media_type.ends_with("xml");
    let charset = if is_text && std::str::from_utf8(bytes).is_ok() { "; charset=utf-8" } else { "" };
    format!("{media_type}{charset}")
}

fn media_type(extension: &str) -> &'static str {
    match extension {
        "html" | "htm" => "text/html",
        "xhtml" => "application/xhtml+xml",
        "txt" => "text/plain",
        "md" => "text/markdown",
        "css" => "text/css",
        "js" | "mjs" => "text/javascript",
        "xml" => "application/xml",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests;
