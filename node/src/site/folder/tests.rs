//! Tests of what a folder shows.

use std::os::unix::fs::symlink;

use super::*;
use crate::site::testing::{folder, write};

fn listed(answer: &Answer) -> Vec<&str> {
    let Answer::Listing(page) = answer else { panic!("{answer:?}") };
    page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

fn file(content_type: &str, text: &str) -> Answer {
    Answer::File(content_type.to_owned(), Bytes::from(text.to_owned()))
}

#[test]
fn lists_folders_without_an_index_page_and_shows_files() {
    let files = folder(&[("a/index.html", "<p>a"), ("a/b/x.html", "<p>x"), ("a/b/c d?#.txt", "t")]);
    let folder = Folder::open(files.path()).unwrap();
    assert_eq!(listed(&folder.answer("/")), ["a/"]);
    assert_eq!(folder.answer("/a/"), file("text/html; charset=utf-8", "<p>a"));
    assert_eq!(listed(&folder.answer("/a/b/")), ["c%20d%3F%23.txt", "x.html"]);
    assert_eq!(folder.answer("/a/b/c%20d%3F%23.txt"), file("text/plain; charset=utf-8", "t"));
    assert_eq!(folder.answer("/a/b"), Answer::Folder("/a/b/".to_owned()));
    for path in ["/none", "/none/", "/a/b/x.html/", "a", "", "/a//b/", "//a/"] {
        assert_eq!(folder.answer(path), Answer::Nothing, "{path}");
    }
}

#[test]
fn shows_nothing_outside_and_nothing_hidden() {
    let files = folder(&[("secret.html", "s"), ("root/a.html", "a"), ("root/.git/config", "token")]);
    let root = files.path().join("root");
    symlink(files.path(), root.join("up")).unwrap();
    symlink(files.path().join("secret.html"), root.join("s.html")).unwrap();
    symlink(root.join(".git/config"), root.join("c.html")).unwrap();
    symlink(root.join("a.html"), root.join("b.html")).unwrap();
    let folder = Folder::open(&root).unwrap();
    for path in [
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/..%2fsecret.html",
        "/%2e%2e%2fsecret.html",
        "/x/../../secret.html",
        "/up/secret.html",
        "/up/",
        "/s.html",
        "/c.html",
        "/.git/config",
        "/%2egit/config",
        "/a.html%00.png",
        "/a%",
        "/a%zz",
        "/%ff",
        "/..\\secret.html",
    ] {
        assert_eq!(folder.answer(path), Answer::Nothing, "{path}");
    }
    assert_eq!(folder.answer("/b.html"), file("text/html; charset=utf-8", "a"));
    assert_eq!(listed(&folder.answer("/")), ["a.html", "b.html"]);
}

#[test]
fn links_to_folders_are_served_but_not_listed() {
    let files = folder(&[("a/x.html", "x")]);
    symlink(files.path(), files.path().join("a/loop")).unwrap();
    symlink(files.path().join("a"), files.path().join("b")).unwrap();
    let folder = Folder::open(files.path()).unwrap();
    assert_eq!(listed(&folder.answer("/")), ["a/"]);
    assert_eq!(listed(&folder.answer("/a/")), ["x.html"]);
    assert_eq!(folder.answer("/b/x.html"), file("text/html; charset=utf-8", "x"));
}

#[test]
fn documentation_may_link_to_other_documentation() {
    let files = folder(&[("doc/one/x.html", "x"), ("doc/two/y.html", "y"), ("passwd", "p")]);
    let shared = files.path().canonicalize().unwrap().join("doc");
    symlink(shared.join("two/y.html"), shared.join("one/y.html")).unwrap();
    symlink(files.path().join("passwd"), shared.join("one/p.html")).unwrap();
    let folder = Folder::within(shared.join("one"), &shared);
    assert_eq!(folder.answer("/y.html"), file("text/html; charset=utf-8", "y"));
    assert_eq!(listed(&folder.answer("/")), ["x.html", "y.html"]);
    assert_eq!(folder.answer("/p.html"), Answer::Nothing);
}

#[test]
fn states_the_charset_only_where_it_is_certain() {
    let files = folder(&[]);
    write(files.path(), "utf8.html", "你好");
    write(files.path(), "gbk.html", b"<meta charset=gbk>\xc4\xe3");
    write(files.path(), "x.PNG", b"\x89PNG");
    write(files.path(), "README", "r");
    let folder = Folder::open(files.path()).unwrap();
    let content_type = |path: &str| match folder.answer(path) {
        Answer::File(content_type, _) => content_type,
        other => panic!("{other:?}"),
    };
    assert_eq!(content_type("/utf8.html"), "text/html; charset=utf-8");
    assert_eq!(content_type("/gbk.html"), "text/html");
    assert_eq!(content_type("/x.PNG"), "image/png");
    assert_eq!(content_type("/README"), "application/octet-stream");
}

#[test]
fn reads_no_pipes_and_no_giants() {
    let files = folder(&[("a.html", "a")]);
    let made = std::process::Command::new("mkfifo").arg(files.path().join("pipe.html")).status();
    let giant = std::fs::File::create(files.path().join("giant.html")).unwrap();
    giant.set_len(FILE_BYTES_MAX + 1).unwrap();
    let folder = Folder::open(files.path()).unwrap();
    assert!(made.unwrap().success());
    assert_eq!(folder.answer("/pipe.html"), Answer::Nothing);
    assert_eq!(folder.answer("/giant.html"), Answer::TooLarge);
    assert_eq!(listed(&folder.answer("/")), ["a.html", "giant.html"]);
}

#[test]
fn a_listing_is_bounded_and_the_same_every_time() {
    let files = folder(&[]);
    for number in 0..5003 {
        write(files.path(), &format!("{number:04}.html"), "");
    }
    write(files.path(), "<b>&\".html", "");
    let folder = Folder::open(files.path()).unwrap();
    let answer = folder.answer("/");
    let links = listed(&answer);
    assert_eq!((links.len(), links[0], links[4999]), (5000, "0000.html", "4999.html"));
    let Answer::Listing(page) = &answer else { panic!() };
    assert!(page.contains("and 4 more") && !page.contains("<b>"));
    assert_eq!(folder.answer("/"), answer);
}
