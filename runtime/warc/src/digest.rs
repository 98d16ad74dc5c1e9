//! Digests as WARC files spell them.

use data_encoding::BASE32;
use sha1::{Digest, Sha1};

/// `sha1:` and the SHA-1 hash of `content` in upper-case base 32: the form of `WARC-Payload-Digest`
/// that archives use. It names content; it protects nothing.
pub fn sha1_base32(content: &[u8]) -> String {
    format!("sha1:{}", BASE32.encode(&Sha1::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_digests_as_archives_do() {
        // The digest of nothing, which stands in many public archives.
        assert_eq!(sha1_base32(b""), "sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ");
    }
}
