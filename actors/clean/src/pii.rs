//! Masks personal data: e-mail addresses, public IPv4 addresses, telephone numbers, identity-card
//! and bank-card numbers.
//!
//! Every mask is recorded with its kind and place, in the text as it became and as it was, so that
//! each can be counted and traced; what stood there is not recorded.
//!
//! Read [`mask`] first.

mod check;
mod find;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use check::{bank_card_is_valid, identity_card_is_valid, is_public};
use find::find_all;

/// What was masked.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MaskKind {
    /// An e-mail address.
    Email,
    /// A public IPv4 address.
    Ipv4,
    /// A telephone number of the North American plan.
    UsPhone,
    /// A mobile number of mainland China.
    CnMobile,
    /// An 18-digit resident identity number of China whose check digit fits.
    CnIdentityCard,
    /// A payment-card number that passes the Luhn check.
    BankCard,
}

impl MaskKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Email, Self::Ipv4, Self::UsPhone, Self::CnMobile, Self::CnIdentityCard, Self::BankCard];

    /// What stands in the text instead.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Email => "[EMAIL]",
            Self::Ipv4 => "[IP]",
            Self::UsPhone | Self::CnMobile => "[PHONE]",
            Self::CnIdentityCard => "[ID]",
            Self::BankCard => "[CARD]",
        }
    }

    /// The kind's name in figures and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Ipv4 => "ipv4",
            Self::UsPhone => "us_phone",
            Self::CnMobile => "cn_mobile",
            Self::CnIdentityCard => "cn_identity_card",
            Self::BankCard => "bank_card",
        }
    }
}

/// One mask. Offsets are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// What was masked.
    pub kind: MaskKind,
    /// Where the placeholder begins in the masked text.
    pub at: usize,
    /// Where the original stood in the text before masking.
    pub original: Range<usize>,
}

/// `text` with the wanted kinds masked, and the masks in order.
pub fn mask(text: &str, kinds: &[MaskKind]) -> (String, Vec<Mask>) {
    let mut out = String::with_capacity(text.len());
    let mut masks = Vec::new();
    let mut copied = 0;
    for (kind, original) in find_all(text, kinds) {
        out.push_str(&text[copied..original.start]);
        masks.push(Mask { kind, at: out.len(), original: original.clone() });
        out.push_str(kind.placeholder());
        copied = original.end;
    }
    out.push_str(&text[copied..]);
    (out, masks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        mask(text, &MaskKind::ALL).0
    }

    #[test]
    fn masks_every_kind() {
        let cases = [
            ("write to a.user+tag@mail.example.org, please", "write to [EMAIL], please"),
            ("server 8.8.8.8:53 answers", "server [IP]:53 answers"),
            ("call (212) 555-0199 now", "call [PHONE] now"),
            ("电话13812345678，请拨打", "电话[PHONE]，请拨打"),
            ("身份证号11010519491231002X。", "身份证号[ID]。"),
            ("card 4111 1111 1111 1111 expires", "card [CARD] expires"),
            ("卡号6222020200112230，", "卡号[CARD]，"),
        ];
        for (text, expected) in cases {
            assert_eq!(masked(text), expected);
        }
    }

    #[test]
    fn leaves_look_alikes() {
        let kept = [
            "private 192.168.1.1 and 127.0.0.1 and version 1.2.3.4.5",
            "user@localhost and @handle",
            "isbn 978 0306406157 and doi 1234567890",
            "issue # 212-555-0199",
            "order 4111 1111 1111 1112",
            "11010519491231002A and 110105194912310021",
            "timestamp 1381234567890123",
            "138123456789",
        ];
        for text in kept {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn masks_only_the_wanted_kinds() {
        let text = "a@b.org 8.8.8.8";
        assert_eq!(mask(text, &[MaskKind::Ipv4]).0, "a@b.org [IP]");
        assert_eq!(mask(text, &[]).0, text);
    }

    #[test]
    fn every_mask_is_traceable() {
        let text = "邮箱 a@b.org，手机 13912345678，again a@b.org.";
        let (out, masks) = mask(text, &MaskKind::ALL);
        assert_eq!(masks.len(), 3);
        let mut rebuilt = String::new();
        let mut copied = 0;
        for mask in &masks {
            let placeholder = mask.kind.placeholder();
            assert_eq!(&out[mask.at..mask.at + placeholder.len()], placeholder);
            rebuilt += &out[copied..mask.at];
            rebuilt += &text[mask.original.clone()];
            copied = mask.at + placeholder.len();
        }
        assert_eq!(rebuilt + &out[copied..], text);
    }

    proptest::proptest! {
        #[test]
        fn masking_twice_finds_nothing_new(text in "([0-9]{1,19}|[a-z@. -]{1,8}|中|a@b\\.org|8\\.8\\.8\\.8){0,12}") {
            let (once, _) = mask(&text, &MaskKind::ALL);
            proptest::prop_assert_eq!(once.matches("[EMAIL]").count(), mask(&once, &MaskKind::ALL).0.matches("[EMAIL]").count());
        }
    }
}
