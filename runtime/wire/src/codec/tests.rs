//! Tests of `codec`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;
use crate::limits::DEPTH_MAX;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Sample {
    Unit,
    Newtype(String),
    Tuple(i8, u64, f64),
    Struct { list: Vec<u16>, map: BTreeMap<String, Option<bool>>, inner: Box<Option<Sample>> },
}

fn samples() -> impl Strategy<Value = Sample> {
    let leaf = prop_oneof![
        Just(Sample::Unit),
        ".{0,20}".prop_map(Sample::Newtype),
        (any::<i8>(), any::<u64>(), -1e9..1e9).prop_map(|(a, b, c)| Sample::Tuple(a, b, c)),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        let list = proptest::collection::vec(any::<u16>(), 0..20);
        let map = proptest::collection::btree_map(".{0,6}", any::<Option<bool>>(), 0..6);
        (list, map, proptest::option::of(inner)).prop_map(|(list, map, inner)| Sample::Struct {
            list,
            map,
            inner: Box::new(inner),
        })
    })
}

proptest! {
    #[test]
    fn decodes_what_was_encoded(sample in samples()) {
        let bytes = encode(&sample).unwrap();
        prop_assert_eq!(decode::<Sample>(&bytes).unwrap(), sample);
    }

    #[test]
    fn refuses_every_truncation_and_any_trailing_byte(sample in samples(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encode(&sample).unwrap();
        let shorter = &bytes[..cut.index(bytes.len())];
        prop_assert!(decode::<Sample>(shorter).is_err());
        bytes.push(0);
        prop_assert!(decode::<Sample>(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(sample) = decode::<Sample>(&bytes) {
            prop_assert!(encode(&sample).is_ok());
        }
    }
}

#[test]
fn trailing_bytes_are_named() {
    assert!(matches!(decode::<u8>(&[7, 0, 0]), Err(DecodeError::Trailing(2))));
}

#[test]
fn a_string_that_claims_more_than_the_limit_is_refused() {
    let claim = (1_u64 << 60).to_le_bytes();
    assert!(matches!(decode::<String>(&claim), Err(DecodeError::Malformed(_))));
    assert!(matches!(decode::<Vec<u8>>(&claim), Err(DecodeError::Malformed(_))));
}

#[test]
fn lists_of_zero_sized_elements_are_refused() {
    let claim = (1_u64 << 60).to_le_bytes();
    assert!(decode::<Vec<()>>(&claim).is_err());
    assert!(decode::<Vec<[u32; 0]>>(&claim).is_err());
    assert!(decode::<BTreeMap<(), ()>>(&claim).is_err());
    assert_eq!(decode::<Vec<()>>(&encode(&vec![(); 3]).unwrap()).unwrap().len(), 3);
}

#[derive(Debug, Serialize, Deserialize)]
struct Chain(Option<Box<Chain>>);

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    let bomb = vec![1_u8; MESSAGE_BYTES_MAX];
    assert!(matches!(decode::<Chain>(&bomb), Err(DecodeError::Malformed(reason)) if reason.contains("deep")));
    let levels = DEPTH_MAX as usize / 2 - 1;
    let mut fine = vec![1_u8; levels];
    fine.push(0);
    let mut chain = decode::<Chain>(&fine).unwrap();
    let mut depth = 0;
    while let Some(next) = chain.0 {
        chain = *next;
        depth += 1;
    }
    assert_eq!(depth, levels);
}

#[test]
fn a_value_over_the_limit_is_refused_on_both_sides() {
    assert!(encode(&vec![0_u8; MESSAGE_BYTES_MAX]).is_err());
    assert!(encode(&vec![0_u8; MESSAGE_BYTES_MAX - 8]).is_ok());
    assert!(matches!(decode::<Vec<u8>>(&vec![0; MESSAGE_BYTES_MAX + 1]), Err(DecodeError::TooLong { .. })));
}

/// Golden bytes of wire version 1: they may never change.
#[test]
fn version_1_encoding_is_pinned() {
    let sample = Sample::Struct {
        list: vec![1, 0x0203],
        map: BTreeMap::from([("k".to_owned(), Some(true))]),
        inner: Box::new(Some(Sample::Tuple(-1, 2, 0.5))),
    };
    let hex = data_encoding::HEXLOWER.encode(&encode(&sample).unwrap());
    let golden = concat!(
        "03000000", // variant
        "02000000000000000100",
        "0302", // list
        "0100000000000000",
        "0100000000000000",
        "6b",
        "0101", // map
        "01",
        "02000000",
        "ff",
        "0200000000000000",
        "000000000000e03f", // inner
    );
    assert_eq!(hex, golden);
}
