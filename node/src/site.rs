//! Which site a quickstart crawls, and how.
//!
//! A person names a URL or a folder; else documentation that lies on this machine is taken, else the
//! small site in this binary. Folders are served over HTTP on loopback, so that they are crawled as
//! any other site is.
//!
//! Read [`choose`] first. What a served folder shows of itself is decided in `folder.rs`.

mod folder;
mod listing;
mod own;
mod places;
mod server;
mod web;

#[cfg(test)]
mod testing;

use std::path::Path;

use anyhow::{Context, Result, bail};

use self::folder::Folder;
use self::places::{Found, Places};
pub(crate) use self::server::SiteServer;
use self::server::Source;

/// Where a crawl begins and by which rules. The fields but the first and the last are options of the
/// crawl stage.
pub(crate) struct Site {
    /// What it is, in one line for people.
    pub about: String,
    /// URLs to begin with.
    pub seeds: Vec<String>,
    /// Beginnings of the paths that are wanted; empty for all.
    pub path_prefixes: Vec<String>,
    /// `host:port` that may be crawled although its address is not public.
    pub allow_private_hosts: Vec<String>,
    /// Pause between two requests, in milliseconds.
    pub delay_ms: u64,
    /// What serves it; the site is gone when this is dropped.
    pub server: Option<SiteServer>,
}

/// Chooses the site that a person names by a URL or a folder. Without a name: the Debian handbook,
/// the toolchain's books, the largest other documentation folder, the site in this binary, whichever
/// is there first.
///
/// # Errors
/// Where the name is neither a URL that can be crawled nor a folder with HTML pages, or nothing can
/// be served.
pub(crate) async fn choose(site: Option<&str>) -> Result<Site> {
    match site {
        Some(url) if url.contains("://") => web::site(url).await,
        Some(folder) => named_folder(folder).await,
        None => found(Places::of_this_machine().await).await,
    }
}

async fn named_folder(name: &str) -> Result<Site> {
    let path = Path::new(name);
    if !path.exists() {
        bail!("there is no folder `{name}`{}", places::suggestion(path));
    }
    if !path.is_dir() {
        bail!("`{name}` is no folder; name the folder that it lies in");
    }
    let pages = places::count_pages(path);
    if pages == 0 {
        bail!("the folder `{name}` holds no HTML page (no file that ends in .html, .htm or .xhtml)");
    }
    let about = format!("the folder {name} ({pages} HTML files)");
    serve_folder(Found { about, folder: path.to_owned(), sections: Vec::new() }).await
}

async fn found(places: Places) -> Result<Site> {
    match tokio::task::spawn_blocking(move || places.find()).await? {
        Some(found) => serve_folder(found).await,
        None => {
            let about = format!("{} pages about sixfold's subject, out of this binary", own::pages());
            serve(about, Source::Own, &["/".to_owned()], Vec::new()).await
        }
    }
}

async fn serve_folder(found: Found) -> Result<Site> {
    let folder = Folder::open(&found.folder)
        .with_context(|| format!("cannot read the folder {}", found.folder.display()))?;
    let beginnings = found.beginnings();
    serve(found.about, Source::Folder(folder), &beginnings, found.sections).await
}

/// A site of our own serving: allowed by name although it is on loopback, and nobody to be polite to.
async fn serve(
    about: String,
    source: Source,
    beginnings: &[String],
    path_prefixes: Vec<String>,
) -> Result<Site> {
    let server = SiteServer::start(source).await?;
    let address = server.address();
    Ok(Site {
        about: format!("{about}, served on http://{address}/ and crawled without a pause"),
        seeds: beginnings.iter().map(|path| format!("http://{address}{path}")).collect(),
        path_prefixes,
        allow_private_hosts: vec![address.to_string()],
        delay_ms: 0,
        server: Some(server),
    })
}

#[cfg(test)]
mod tests;
