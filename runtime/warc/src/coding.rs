//! Content codings (gzip, deflate) undone piece by piece, under limits: the sender decides how much
//! a compressed body claims, the receiver decides how much of it comes into being.

use std::io::{self, Write};

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// A body may always grow to this size; the ratio is judged beyond it, since small bodies of
/// repeated text legitimately shrink a lot.
const RATIO_FREE_BYTES: usize = 256 << 10;

/// How a body was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentCoding {
    /// Not at all.
    Identity,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 1950, or bare RFC 1951 as some servers send under this name.
    Deflate,
}

impl ContentCoding {
    /// The coding that a `Content-Encoding` field names, or `None` for one that is not known here
    /// and for several codings on top of each other.
    pub fn named(value: &str) -> Option<Self> {
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "identity" | "none" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }
}

/// How far a body may unfold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Decoded bytes.
    pub bytes_max: usize,
    /// Decoded bytes a received byte, judged beyond the first 256 KiB.
    pub ratio_max: usize,
}

/// Why a body was given up.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More decoded bytes than allowed.
    #[error("the body has more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// It unfolds like a bomb.
    #[error("the body unfolds more than {ratio_max} times")]
    Ratio {
        /// The limit.
        ratio_max: usize,
    },
    /// It is not what its coding says, or ends early.
    #[error("the body's coding is broken: {0}")]
    Broken(#[source] io::Error),
}

/// Decodes a body that arrives in pieces. Memory stays within [`DecodeLimits::bytes_max`] and the
/// decoder's own window.
pub struct ContentDecoder {
    stage: Stage,
    limits: DecodeLimits,
}

enum Stage {
    Identity(Sink),
    Gzip(Box<MultiGzDecoder<Sink>>),
    Zlib(Box<ZlibDecoder<Sink>>),
    Deflate(Box<DeflateDecoder<Sink>>),
    /// `deflate` before its first two bytes, which tell the two forms apart.
    Undecided(Vec<u8>, Sink),
}

impl ContentDecoder {
    /// A decoder of `coding`.
    pub fn new(coding: ContentCoding, limits: DecodeLimits) -> Self {
        let sink = Sink { decoded: Vec::new(), received: 0, limits, full: None };
        let stage = match coding {
            ContentCoding::Identity => Stage::Identity(sink),
            ContentCoding::Gzip => Stage::Gzip(Box::new(MultiGzDecoder::new(sink))),
            ContentCoding::Deflate => Stage::Undecided(Vec::new(), sink),
        };
        Self { stage, limits }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// [`DecodeError`]; afterwards only [`ContentDecoder::into_beginning`] is of use.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), DecodeError> {
        self.sink().received += piece.len();
        let result = match &mut self.stage {
            Stage::Identity(sink) => sink.write_all(piece),
            Stage::Gzip(decoder) => decoder.write_all(piece),
            Stage::Zlib(decoder) => decoder.write_all(piece),
            Stage::Deflate(decoder) => decoder.write_all(piece),
            Stage::Undecided(head, _) => {
                head.extend_from_slice(piece);
                return if head.len() < 2 { Ok(()) } else { self.decide() };
            }
        };
        result.map_err(|error| self.explain(error))
    }

    /// The whole decoded body.
    ///
    /// # Errors
    /// [`DecodeError`], also where the body ended early.
    pub fn finish(mut self) -> Result<Vec<u8>, DecodeError> {
        let ended = match &mut self.stage {
            Stage::Identity(_) | Stage::Undecided(..) => Ok(()),
            // An empty body under a coding is sent by servers for empty answers.
            Stage::Gzip(decoder) if decoder.get_ref().received == 0 => Ok(()),
            Stage::Gzip(decoder) => decoder.try_finish(),
            Stage::Zlib(decoder) => decoder.try_finish(),
            Stage::Deflate(decoder) => decoder.try_finish(),
        };
        ended.map_err(|error| self.explain(error))?;
        Ok(std::mem::take(&mut self.sink().decoded))
    }

    /// What has been decoded so far, for a body of which the beginning is enough. Of use after an
    /// error too.
    pub fn into_beginning(mut self) -> Vec<u8> {
        std::mem::take(&mut self.sink().decoded)
    }

    fn decide(&mut self) -> Result<(), DecodeError> {
        let Stage::Undecided(head, sink) = &mut self.stage else { return Ok(()) };
        let (head, sink) = (std::mem::take(head), sink.take(self.limits));
        let zlib = head[0] & 0x0f == 8 && (u16::from(head[0]) << 8 | u16::from(head[1])) % 31 == 0;
        self.stage = if zlib {
            Stage::Zlib(Box::new(ZlibDecoder::new(sink)))
        } else {
            Stage::Deflate(Box::new(DeflateDecoder::new(sink)))
        };
        // `push` counts these bytes again.
        self.sink().received -= head.len();
        self.push(&head)
    }

    fn sink(&mut self) -> &mut Sink {
        match &mut self.stage {
            Stage::Identity(sink) | Stage::Undecided(_, sink) => sink,
            Stage::Gzip(decoder) => decoder.get_mut(),
            Stage::Zlib(decoder) => decoder.get_mut(),
            Stage::Deflate(decoder) => decoder.get_mut(),
        }
    }

    fn explain(&mut self, error: io::Error) -> DecodeError {
        match self.sink().full.take() {
            Some(Full::Bytes) => DecodeError::TooLarge { bytes_max: self.limits.bytes_max },
            Some(Full::Ratio) => DecodeError::Ratio { ratio_max: self.limits.ratio_max },
            None => DecodeError::Broken(error),
        }
    }
}

enum Full {
    Bytes,
    Ratio,
}

struct Sink {
    decoded: Vec<u8>,
    received: usize,
    limits: DecodeLimits,
    full: Option<Full>,
}

impl Sink {
    fn take(&mut self, limits: DecodeLimits) -> Self {
        std::mem::replace(self, Self { decoded: Vec::new(), received: 0, limits, full: None })
    }
}

impl Write for Sink {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let bytes = self.decoded.len() + piece.len();
        let allowed = RATIO_FREE_BYTES.max(self.received.saturating_mul(self.limits.ratio_max));
        if bytes > self.limits.bytes_max {
            self.full = Some(Full::Bytes);
        } else if bytes > allowed {
            self.full = Some(Full::Ratio);
        } else {
            self.decoded.extend_from_slice(piece);
            return Ok(piece.len());
        }
        Err(io::Error::other("limit"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    const WIDE: DecodeLimits = DecodeLimits { bytes_max: 1 << 20, ratio_max: 10_000 };

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(body: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(body: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(
        coding: ContentCoding,
        packed: &[u8],
        piece: usize,
        limits: DecodeLimits,
    ) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = ContentDecoder::new(coding, limits);
        packed.chunks(piece).try_for_each(|piece| decoder.push(piece))?;
        decoder.finish()
    }

    proptest! {
        #[test]
        fn undoes_each_coding_in_pieces_of_any_size(
            body in proptest::collection::vec(any::<u8>(), 0..2000),
            piece in 1..700_usize,
        ) {
            for (coding, packed) in [
                (ContentCoding::Identity, body.clone()),
                (ContentCoding::Gzip, gzip(&body)),
                (ContentCoding::Gzip, [gzip(&body[..body.len() / 2]), gzip(&body[body.len() / 2..])].concat()),
                (ContentCoding::Deflate, zlib(&body)),
                (ContentCoding::Deflate, deflate(&body)),
            ] {
                prop_assert_eq!(decode(coding, &packed, piece, WIDE).unwrap(), body.clone());
            }
        }

        #[test]
        fn never_panics_on_noise(noise in proptest::collection::vec(any::<u8>(), 0..300), piece in 1..40_usize) {
            for coding in [ContentCoding::Gzip, ContentCoding::Deflate] {
                let _ = decode(coding, &noise, piece, WIDE);
            }
        }
    }

    #[test]
    fn gives_up_bombs_at_either_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);
        let by_size = decode(ContentCoding::Gzip, &bomb, 4096, WIDE);
        assert!(matches!(by_size, Err(DecodeError::TooLarge { bytes_max: 1_048_576 })), "{by_size:?}");
        let by_ratio =
            decode(ContentCoding::Gzip, &bomb, 4096, DecodeLimits { bytes_max: 1 << 30, ratio_max: 100 });
        assert!(matches!(by_ratio, Err(DecodeError::Ratio { ratio_max: 100 })), "{by_ratio:?}");
    }

    #[test]
    fn notices_a_body_that_ends_early() {
        let packed = gzip(b"a body that is cut");
        let cut = decode(ContentCoding::Gzip, &packed[..packed.len() - 9], 5, WIDE);
        assert!(matches!(cut, Err(DecodeError::Broken(_))), "{cut:?}");
        assert_eq!(decode(ContentCoding::Gzip, b"", 1, WIDE).unwrap(), b"");
    }

    #[test]
    fn hands_out_the_beginning_of_a_body_that_is_too_large() {
        let body: Vec<u8> = (0..2_000_000_u32).map(|index| (index % 251) as u8).collect();
        let mut decoder = ContentDecoder::new(ContentCoding::Gzip, WIDE);
        assert!(decoder.push(&gzip(&body)).is_err());
        let beginning = decoder.into_beginning();
        assert!(beginning.len() > WIDE.bytes_max / 2 && body.starts_with(&beginning));
    }

    #[test]
    fn knows_no_stacked_codings() {
        assert_eq!(ContentCoding::named("GZip "), Some(ContentCoding::Gzip));
        assert_eq!(ContentCoding::named("gzip, gzip"), None);
        assert_eq!(ContentCoding::named("br"), None);
    }
}
