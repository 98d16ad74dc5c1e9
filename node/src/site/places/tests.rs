//! Tests of the search for documentation.

use super::*;
use crate::site::testing::{folder, write};

fn fill(folder: &Path, path: &str, pages: usize) {
    for number in 0..pages {
        write(folder, &format!("{path}/{number}.html"), "");
    }
}

#[test]
fn takes_the_first_that_is_there_in_the_stated_order() {
    let files = folder(&[]);
    let root = files.path();
    let places = Places { documentation: root.join("doc"), rust: Some(root.join("rust")) };
    assert_eq!(places.find(), None);

    fill(root, "doc/small/html", PAGES_MIN - 1);
    assert_eq!(places.find(), None);
    fill(root, "doc/large/html/a", 60);
    fill(root, "doc/equal/html", 60);
    let found = places.find().unwrap();
    assert_eq!((found.folder, found.sections), (root.join("doc/equal/html"), vec![]));
    assert!(found.about.contains("60 HTML files"), "{}", found.about);

    fill(root, "rust/std", 90);
    assert_eq!(places.find().unwrap().folder, root.join("doc/equal/html"));
    fill(root, "rust/reference", 30);
    fill(root, "rust/book", 30);
    let found = places.find().unwrap();
    assert_eq!(
        (found.folder, found.sections),
        (root.join("rust"), vec!["/book/".into(), "/reference/".into()])
    );

    fill(root, "doc/debian-handbook/html/fr-FR", 60);
    assert_eq!(places.find().unwrap().folder, root.join("rust"));
    fill(root, "doc/debian-handbook/html/en-US", 40);
    fill(root, "doc/debian-handbook/html/zh-CN", 40);
    let found = places.find().unwrap();
    assert_eq!(found.folder, root.join("doc/debian-handbook/html"));
    assert_eq!(found.sections, ["/zh-CN/", "/en-US/"]);
    assert!(found.about.contains("80 HTML files"), "{}", found.about);
}

#[test]
fn counts_pages_but_not_through_links() {
    let files = folder(&[("a/x.HTML", ""), ("a/y.htm", ""), ("z.xhtml", ""), ("t.txt", "")]);
    std::os::unix::fs::symlink(files.path(), files.path().join("a/loop")).unwrap();
    assert_eq!(count_pages(files.path()), 3);
}

#[test]
fn suggests_what_was_meant() {
    let files = folder(&[("handbook/x.html", ""), ("other/x.html", "")]);
    let meant = format!("; did you mean `{}`?", files.path().join("handbook").display());
    assert_eq!(suggestion(&files.path().join("handbok")), meant);
    assert_eq!(suggestion(&files.path().join("q")), "");
    assert_eq!(
        suggestion(Path::new("docs.example.org")),
        "; for a site on the web write `https://docs.example.org`"
    );
}
