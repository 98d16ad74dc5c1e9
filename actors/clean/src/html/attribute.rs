//! Attributes of a start tag.

/// The value of attribute `name` of the start tag `tag`, as written and without its quotes; empty
/// where the attribute has none.
pub(super) fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let inner = tag.strip_prefix('<')?;
    let inner = inner.strip_suffix('>').unwrap_or(inner);
    let mut rest = &inner[inner.find(|c: char| c.is_whitespace() || c == '/')?..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | '/')).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let (value, after) = match after.trim_start().strip_prefix('=') {
            Some(assigned) => value(assigned.trim_start()),
            None => ("", after),
        };
        if key.eq_ignore_ascii_case(name) && !key.is_empty() {
            return Some(value);
        }
        if after.is_empty() || after.len() == rest.len() {
            return None;
        }
        rest = after;
    }
}

/// The value that `text` begins with, and what follows it.
fn value(text: &str) -> (&str, &str) {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    match quote {
        Some(quote) => text[1..].split_once(quote).unwrap_or((&text[1..], "")),
        None => text.split_at(text.find(char::is_whitespace).unwrap_or(text.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quoted_bare_and_empty_values() {
        let tag = "<a HREF = \"x y\" id='b>' class=c/d hidden data-href=z =q/>";
        assert_eq!(attribute(tag, "href"), Some("x y"));
        assert_eq!(attribute(tag, "id"), Some("b>"));
        assert_eq!(attribute(tag, "class"), Some("c/d"));
        assert_eq!(attribute(tag, "hidden"), Some(""));
        assert_eq!(attribute(tag, "title"), None);
        for odd in ["", "<", "<a", "<a>", "<a =", "<a ='", "<a x='", "<é é=é", "<a/", "<a \"\"\">"] {
            assert_eq!(attribute(odd, "href"), None, "{odd}");
        }
    }

    proptest::proptest! {
        #[test]
        fn ends_on_anything(tag in "<[a= '\"/>é]{0,40}") {
            let _ = attribute(&tag, "href");
        }
    }
}
