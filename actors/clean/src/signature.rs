//! Signatures by which duplicates are found.
//!
//! The content hash ignores case, punctuation and white space. SimHash is that of the Python
//! package `simhash` (2.1), so that signatures can be compared with other tools' ones. A [`Sketch`]
//! tells whether texts with near SimHashes share what they say, or only the letters it is made of.

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::sketch::Sketch;

/// Characters a shingle.
const SHINGLE_CHARS: usize = 4;

/// The signatures of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The first 16 bytes of the BLAKE3 hash of its lower-case letters and digits.
    #[serde(with = "hex_u128")]
    pub content: u128,
    /// Its SimHash.
    #[serde(with = "hex_u64")]
    pub simhash: u64,
    /// A sketch of its runs of words.
    pub sketch: Sketch,
}

impl Signature {
    /// The signatures of `text`.
    pub fn of(text: &str) -> Self {
        Self { content: content_hash(text), simhash: simhash(text), sketch: Sketch::of(text) }
    }
}

fn content_hash(text: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = String::with_capacity(4096);
    for character in text.chars().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric()) {
        buffer.push(character);
        if buffer.len() > 4000 {
            hasher.update(buffer.as_bytes());
            buffer.clear();
        }
    }
    hasher.update(buffer.as_bytes());
    let hash = hasher.finalize();
    hash.as_bytes().iter().take(16).fold(0, |value, byte| value << 8 | u128::from(*byte))
}

/// SimHash (Charikar, 2002) over 4-character shingles with their counts; a shingle's hash is the
/// last 8 bytes of its MD5.
pub fn simhash(text: &str) -> u64 {
    let lower = text.to_lowercase();
    let kept: String = lower.chars().filter(|&c| is_word_character(c)).collect();
    let starts: Vec<usize> = kept.char_indices().map(|(at, _)| at).chain([kept.len()]).collect();
    let mut shingles: Vec<&str> = match starts.len().checked_sub(SHINGLE_CHARS) {
        Some(count @ 1..) => (0..count).map(|i| &kept[starts[i]..starts[i + SHINGLE_CHARS]]).collect(),
        _ => vec![&kept],
    };
    shingles.sort_unstable();
    let mut sums = [0_u64; 64];
    for equal in shingles.chunk_by(|a, b| a == b) {
        let digest = Md5::digest(equal[0].as_bytes());
        let hash = digest.iter().skip(8).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        for (bit, sum) in sums.iter_mut().enumerate() {
            *sum += (hash >> bit & 1) * equal.len() as u64;
        }
    }
    let half = shingles.len() as u64;
    sums.iter().enumerate().fold(0, |value, (bit, sum)| value | u64::from(sum * 2 > half) << bit)
}

/// Python's `\w` for text: letters, digits, marks of numbers, the underscore.
fn is_word_character(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

macro_rules! hexadecimal {
    ($module:ident, $type:ty, $digits:literal) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            pub(super) fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&format_args!(concat!("{:0", $digits, "x}"), value))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                <$type>::from_str_radix(&text, 16).map_err(D::Error::custom)
            }
        }
    };
}

hexadecimal!(hex_u64, u64, "16");
hexadecimal!(hex_u128, u128, "32");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simhash_equals_the_python_package() {
        // simhash 2.1.2: hex(Simhash(text).value).
        let cases = [
            ("How are you? I am fine. Thanks.", 0x2f73_898a_203e_e80b),
            ("", 0xe980_0998_ecf8_427e),
            ("abc", 0xd696_3f7d_28e1_7f72),
            ("Debian 是一个自由的操作系统，GNU/Linux 发行版。", 0x0702_54d1_b822_c112),
        ];
        for (text, expected) in cases {
            assert_eq!(simhash(text), expected, "{text}");
        }
    }

    #[test]
    fn content_hash_ignores_case_punctuation_and_white_space() {
        let same = ["Hello, World 你好", "hello world\n\n你好！", "HELLOWORLD你好"];
        for text in same {
            assert_eq!(content_hash(text), content_hash(same[0]));
        }
        assert_ne!(content_hash("hello world"), content_hash("hello worlds"));
        let long = "Long Text ".repeat(1000);
        assert_eq!(content_hash(&long), content_hash(&long.to_lowercase()));
    }

    #[test]
    fn serialises_as_hexadecimal() {
        let signature = Signature { content: 0xab, simhash: 1, sketch: Sketch::of("") };
        let json = serde_json::to_string(&signature).unwrap();
        let start =
            r#"{"content":"000000000000000000000000000000ab","simhash":"0000000000000001","sketch":"ff"#;
        assert!(json.starts_with(start), "{json}");
        assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    }
}
