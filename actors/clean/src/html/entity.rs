//! Character references in text.

use std::borrow::Cow;

/// The named references that running text has; others stay as written.
const NAMED: [(&str, &str); 32] = [
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", "\u{a0}"),
    ("copy", "©"),
    ("reg", "®"),
    ("trade", "™"),
    ("hellip", "…"),
    ("mdash", "—"),
    ("ndash", "–"),
    ("lsquo", "‘"),
    ("rsquo", "’"),
    ("ldquo", "“"),
    ("rdquo", "”"),
    ("laquo", "«"),
    ("raquo", "»"),
    ("middot", "·"),
    ("bull", "•"),
    ("times", "×"),
    ("deg", "°"),
    ("euro", "€"),
    ("pound", "£"),
    ("yen", "¥"),
    ("sect", "§"),
    ("para", "¶"),
    ("rarr", "→"),
    ("larr", "←"),
    ("ensp", "\u{2002}"),
    ("emsp", "\u{2003}"),
    ("shy", "\u{ad}"),
];

/// Longest reference without its `&` and `;`.
const REFERENCE_BYTES_MAX: usize = 10;

/// `text` with its character references replaced.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.bytes().take(REFERENCE_BYTES_MAX + 1).position(|byte| byte == b';');
        match end.and_then(|end| resolve(&rest[..end], &mut out).then_some(end)) {
            Some(end) => rest = &rest[end + 1..],
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

fn resolve(reference: &str, out: &mut String) -> bool {
    let number = reference.strip_prefix('#').map(|digits| match digits.strip_prefix(['x', 'X']) {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
        None => digits.parse(),
    });
    match number {
        Some(number) => match number.ok().and_then(char::from_u32).filter(|&c| c != '\0') {
            Some(character) => out.push(character),
            None => return false,
        },
        None => match NAMED.iter().find(|(name, _)| *name == reference) {
            Some((_, replacement)) => out.push_str(replacement),
            None => return false,
        },
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_named_and_numbered_references_and_keeps_the_rest() {
        assert_eq!(unescape("a &lt;b&gt; &amp;amp; &#20013;&#x6587;&hellip;"), "a <b> &amp; 中文…");
        for kept in ["&", "&;", "&nothing;", "&#xffffffff;", "&#0;", "A&B; &é;", "&#;"] {
            assert_eq!(unescape(kept), kept);
        }
    }
}
