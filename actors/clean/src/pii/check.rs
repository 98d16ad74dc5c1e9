//! The checks that tell a number of a kind from any other digits.

use std::net::Ipv4Addr;

/// Whether the address belongs to somebody: not private, loopback, link-local, shared, reserved,
/// multicast or for documentation (IANA special-purpose registry).
pub fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a, b, c) == (192, 0, 0))
}

/// Whether 18 characters are a Chinese resident identity number: a birth date and the check
/// character of ISO 7064 MOD 11-2 (GB 11643-1999).
pub fn identity_card_is_valid(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() != 18 || !bytes[..17].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let number = |range: std::ops::Range<usize>| {
        bytes[range].iter().fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'))
    };
    let (year, month, day) = (number(6..10), number(10..12), number(12..14));
    if !(1850..=2100).contains(&year) || !(1..=days_in(year, month)).contains(&day) {
        return false;
    }
    let sum = bytes[..17].iter().rev().enumerate().fold(0, |sum, (at, digit)| {
        let weight = 2_u32.pow(at as u32 + 1) % 11;
        sum + weight * u32::from(digit - b'0')
    });
    bytes[17].to_ascii_uppercase() == b"10X98765432"[(sum % 11) as usize]
}

/// 0 where there is no such month.
fn days_in(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => 0,
    }
}

/// Whether digits, with or without separators, are a payment-card number: 13 to 19 digits, an
/// issuer's first digits (2221 to 2720, 3, 4, 5, 6) and the Luhn check (ISO/IEC 7812-1).
pub fn bank_card_is_valid(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    if !(13..=19).contains(&digits.len()) || digits.iter().all(|digit| *digit == digits[0]) {
        return false;
    }
    let first = digits[..4].iter().fold(0, |value, digit| value * 10 + digit);
    if !matches!(first, 2221..=2720 | 3000..=6999) {
        return false;
    }
    let sum: u32 = digits.iter().rev().enumerate().map(|(at, &digit)| luhn_digit(digit, at % 2 == 1)).sum();
    sum.is_multiple_of(10)
}

fn luhn_digit(digit: u32, doubled: bool) -> u32 {
    match (doubled, digit) {
        (false, digit) => digit,
        (true, 0..=4) => digit * 2,
        (true, _) => digit * 2 - 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_identity_numbers() {
        for valid in ["11010519491231002X", "11010519491231002x", "110101199003078670", "500154199804106120"]
        {
            assert!(identity_card_is_valid(valid), "{valid}");
        }
        // A wrong check digit, the thirtieth of February, too short, letters.
        for invalid in ["110105194912310021", "440308199902301512", "44030819990110", "4404011958010100XX"] {
            assert!(!identity_card_is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn checks_card_numbers() {
        for valid in ["4111111111111111", "5500 0000 0000 0004", "340000000000009", "6011-0000-0000-0004"] {
            assert!(bank_card_is_valid(valid), "{valid}");
        }
        for invalid in ["4111111111111112", "0000000000000000", "1111111111111117", "411111111111", ""] {
            assert!(!bank_card_is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn tells_public_addresses() {
        for public in ["8.8.8.8", "114.114.114.114", "1.0.0.1", "223.5.5.5", "100.128.0.1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.0.1",
            "127.0.0.1",
            "0.1.2.3",
            "169.254.1.1",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "203.0.113.5",
            "198.18.0.1",
            "192.0.0.8",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }
}
