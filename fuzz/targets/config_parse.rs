//! Settings as text: `config::parse` against the grammar in its documentation, evaluated exactly.
//! number = digits ["." digits] suffix | "0x" hex digits; suffix = [K|M|G|T] ["iB" | "B"], for bytes only; a fraction wants a K, M, G or T.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::config::{Unit, parse};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else { return };
    let unit = if kind & 1 == 0 { Unit::Bytes } else { Unit::Count };
    let letters: String;
    let text = if kind & 2 == 0 {
        let Ok(text) = std::str::from_utf8(text) else { return };
        text
    } else {
        // Mostly what numbers are made of.
        letters = text.iter().map(|b| char::from(b"0123456789.xKMGTkmgtiB-+ eE_0159"[usize::from(b % 32)])).collect();
        &letters
    };
    let got = parse(text, unit);
    match oracle(text, unit) {
        Want::None => assert_eq!(got, None, "{text:?} as {unit:?}"),
        Want::Exactly(n) => assert_eq!(got, Some(n), "{text:?} as {unit:?}"),
        Want::About(n) => {
            let got = got.unwrap_or_else(|| panic!("{text:?} as {unit:?} is about {n}"));
            assert!((got as f64 - n).abs() <= n * 1e-12 + 1.0, "{text:?} as {unit:?} gave {got}, not {n}");
        }
        Want::Unsure => {}
    }
});

enum Want {
    None,
    Exactly(usize),
    About(f64),
    /// At the border of what is too large, where rounding decides.
    Unsure,
}

fn oracle(text: &str, unit: Unit) -> Want {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return value(hex, 16).map_or(Want::None, Want::Exactly);
    }
    let (mut number, mut shift) = (text, 0);
    if unit == Unit::Bytes {
        number = number.strip_suffix("iB").or(number.strip_suffix('B')).unwrap_or(number);
        if let Some(at) = number.len().checked_sub(1).filter(|at| number.is_char_boundary(*at)) {
            shift = match &number[at..] {
                "k" | "K" => 10,
                "m" | "M" => 20,
                "g" | "G" => 30,
                "t" | "T" => 40,
                _ => 0,
            };
            number = if shift > 0 { &number[..at] } else { number };
        }
    }
    let Some((whole, part)) = number.split_once('.') else {
        return value(number, 10).and_then(|n| n.checked_mul(1 << shift)).map_or(Want::None, Want::Exactly);
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if shift == 0 || !digits(whole) || !digits(part) || (whole.is_empty() && part.is_empty()) {
        return Want::None;
    }
    // Digit by digit: far more exact than the bound above asks for.
    let mut n = whole.bytes().fold(0.0, |n, b| n * 10.0 + f64::from(b - b'0'));
    n += part.bytes().rev().fold(0.0, |n, b| (n + f64::from(b - b'0')) / 10.0);
    n *= (1u64 << shift) as f64;
    let most = (usize::MAX >> 1) as f64;
    match n {
        n if n > most * 1.000_001 => Want::None,
        n if n > most * 0.999_999 => Want::Unsure,
        n => Want::About(n),
    }
}

fn value(digits: &str, base: u32) -> Option<usize> {
    let each = |n: usize, c: char| n.checked_mul(base as usize)?.checked_add(c.to_digit(base)? as usize);
    if digits.is_empty() { None } else { digits.chars().try_fold(0usize, each) }
}
