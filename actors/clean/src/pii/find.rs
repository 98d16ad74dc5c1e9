//! Finds candidates by pattern and keeps those that pass their check and do not overlap.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::MaskKind;
use super::check::{bank_card_is_valid, identity_card_is_valid, is_public};

/// How far before a number a word says that it is no telephone number.
const CONTEXT_BYTES: usize = 16;

/// The local part and domain of datatrove 0.10's `PIIFormatter`, domain literals left out.
static EMAIL: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?",
    )
    .ok()
});
static IPV4: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}").ok());
static US_PHONE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\s(\(?[0-9]{3}\)?[-. ]*[0-9]{3}[-. ]?[0-9]{4})").ok());
static CN_MOBILE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"1[3-9][0-9]{9}").ok());
static CN_IDENTITY_CARD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[0-9]{17}[0-9Xx]").ok());
static BANK_CARD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[0-9](?:[ -]?[0-9]){12,18}").ok());

/// What is to be masked, in order and without overlap. Of two that overlap the more specific wins.
pub(super) fn find_all(text: &str, kinds: &[MaskKind]) -> Vec<(MaskKind, Range<usize>)> {
    // From the most specific to the least.
    const ORDER: [MaskKind; 6] = [
        MaskKind::Email,
        MaskKind::CnIdentityCard,
        MaskKind::BankCard,
        MaskKind::CnMobile,
        MaskKind::UsPhone,
        MaskKind::Ipv4,
    ];
    let mut found: Vec<(MaskKind, Range<usize>)> = Vec::new();
    for kind in ORDER.into_iter().filter(|kind| kinds.contains(kind)) {
        let earlier = found.len();
        for range in find(text, kind) {
            let overlaps =
                found[..earlier].iter().any(|(_, other)| other.start < range.end && range.start < other.end);
            if !overlaps {
                found.push((kind, range));
            }
        }
    }
    found.sort_unstable_by_key(|(_, range)| range.start);
    found
}

fn find(text: &str, kind: MaskKind) -> Vec<Range<usize>> {
    let (pattern, group) = match kind {
        MaskKind::Email => (&EMAIL, 0),
        MaskKind::Ipv4 => (&IPV4, 0),
        MaskKind::UsPhone => (&US_PHONE, 1),
        MaskKind::CnMobile => (&CN_MOBILE, 0),
        MaskKind::CnIdentityCard => (&CN_IDENTITY_CARD, 0),
        MaskKind::BankCard => (&BANK_CARD, 0),
    };
    let Some(pattern) = pattern.as_ref() else { return Vec::new() };
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(captures) = pattern.captures_at(text, from) {
        let Some(found) = captures.get(group) else { break };
        let range = found.range();
        let whole = stands_alone(text, &range, kind);
        if whole && passes_check(text, &range, kind) {
            from = range.end;
            ranges.push(range);
        } else {
            // Skip the run of digits that was refused, so that no part of it is taken for a number.
            from = range.end.max(from + 1);
            if kind != MaskKind::Email {
                from += text.as_bytes()[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            }
            from = text.ceil_char_boundary(from);
        }
    }
    ranges
}

/// Whether the range is not part of a longer number or word.
fn stands_alone(text: &str, range: &Range<usize>, kind: MaskKind) -> bool {
    let before = text[..range.start].chars().next_back();
    let mut after = text[range.end..].chars();
    let (next, second) = (after.next(), after.next());
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    match kind {
        MaskKind::Email => true,
        MaskKind::Ipv4 => {
            let goes_on = digit(next) || next == Some('.') && digit(second);
            !(digit(before) || before == Some('.') || goes_on)
        }
        MaskKind::CnIdentityCard => {
            let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            !letter(before) && !letter(next)
        }
        MaskKind::BankCard => !digit(before) && !digit(next),
        MaskKind::UsPhone | MaskKind::CnMobile => !digit(before) && !digit(next),
    }
}

fn passes_check(text: &str, range: &Range<usize>, kind: MaskKind) -> bool {
    let found = &text[range.clone()];
    match kind {
        MaskKind::Email | MaskKind::CnMobile => true,
        MaskKind::Ipv4 => found.parse::<Ipv4Addr>().is_ok_and(is_public),
        MaskKind::UsPhone => !is_another_number(text, range.start),
        MaskKind::CnIdentityCard => identity_card_is_valid(found),
        MaskKind::BankCard => bank_card_is_valid(found),
    }
}

/// Whether the words before say what the number is.
fn is_another_number(text: &str, at: usize) -> bool {
    let start = text.floor_char_boundary(at.saturating_sub(CONTEXT_BYTES));
    let context = text[start..at].to_ascii_lowercase();
    ["isbn", "doi", "#"].iter().any(|word| context.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        for pattern in [&EMAIL, &IPV4, &US_PHONE, &CN_MOBILE, &CN_IDENTITY_CARD, &BANK_CARD] {
            assert!(pattern.is_some());
        }
    }
}
