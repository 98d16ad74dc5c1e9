//! Encodings against the Python package `gguf` (golden/make.py), to the bit.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use safetensors::SafeTensors;
use sixfold_formats::Encoding;

const GOLDEN: &[u8] = include_bytes!("golden/codecs.safetensors");

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn every_encoding_is_decoded_as_gguf_decodes_it() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    for encoding in Encoding::all() {
        let of = |what: &str| golden.tensor(&format!("{}.{what}", encoding.name())).unwrap().data().to_vec();
        let expected = words(&of("numbers"));
        let mut numbers = vec![0.0; expected.len()];
        encoding.decode(&of("bytes"), &mut numbers);
        assert_eq!(bits(&numbers), expected, "{}", encoding.name());
    }
}

#[test]
fn what_is_written_is_encoded_as_gguf_encodes_it() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let input: Vec<f32> =
        words(golden.tensor("input").unwrap().data()).into_iter().map(f32::from_bits).collect();
    for encoding in Encoding::WRITTEN.into_iter().filter(|encoding| *encoding != Encoding::F32) {
        let expected = golden.tensor(&format!("{}.encoded", encoding.name())).unwrap().data();
        let mut bytes = Vec::new();
        encoding.encode(&input, &mut bytes);
        assert_eq!(bytes, expected, "{}", encoding.name());
    }
}
