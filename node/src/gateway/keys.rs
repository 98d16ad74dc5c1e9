//! Who may ask: `Authorization: Bearer` keys against the cluster's records of their hashes.

use axum::http::{HeaderMap, header};
use sixfold_cluster::protocol::KeyRecord;

/// Longer keys are not ours.
const KEY_BYTES_MAX: usize = 512;

/// Name of the key that a request was made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct KeyName(pub(super) String);

/// The record whose key the request bears. All records are compared, whichever fits, so that the
/// time taken tells nothing.
pub(super) fn find(headers: &HeaderMap, records: &[KeyRecord]) -> Option<KeyName> {
    let key = bearer(headers)?;
    let hash = blake3::hash(key);
    let mut found = None;
    for record in records {
        if same(hash.as_bytes(), &record.hash) {
            found = Some(record);
        }
    }
    found.map(|record| KeyName(record.name.clone()))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let key = key.trim().as_bytes();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty() && key.len() <= KEY_BYTES_MAX).then_some(key)
}

/// Compares without an early end.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(authorization: &str) -> Option<KeyName> {
        let record = |name: &str, key: &str| KeyRecord {
            name: name.into(),
            hash: *blake3::hash(key.as_bytes()).as_bytes(),
        };
        let records = [record("one", "sk-1"), record("two", "sk-2")];
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        find(&headers, &records)
    }

    #[test]
    fn finds_the_key_and_nothing_else() {
        assert_eq!(asked("Bearer sk-1"), Some(KeyName("one".into())));
        assert_eq!(asked("bearer  sk-2 "), Some(KeyName("two".into())));
        for wrong in ["Bearer sk-3", "Bearer ", "Bearer", "Basic sk-1", "sk-1", "Bearer sk-1x"] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
        assert_eq!(asked(&format!("Bearer {}", "x".repeat(600))), None);
        assert_eq!(find(&HeaderMap::new(), &[]), None);
    }
}
