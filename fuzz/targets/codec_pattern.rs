//! Repetition: the period found is the smallest by its definition, and `repeat` fills exactly what it was given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::codec::pattern::{MAX_PERIOD, MIN_PERIOD, is_zero, period, repeat};
use qmem_fuzz::{Input, chunk};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let size = MAX_PERIOD * input.below(9) + if kind & 1 == 0 { 0 } else { input.below(100) };
    let data = if kind & 2 == 0 { chunk(&mut input, size) } else { periodic(&mut input, size) };
    let whole = data.len().is_multiple_of(MAX_PERIOD) && data.len() > MAX_PERIOD;
    assert_eq!(period(&data), naive(&data).filter(|_| whole));
    if let Some(p) = period(&data) {
        let mut again = vec![0xAA; data.len()];
        repeat(&data[..p], &mut again);
        assert!(again == data);
    }
    let at = input.below(16).min(data.len());
    assert_eq!(is_zero(&data[at..]), data[at..].iter().all(|b| *b == 0));
    // Any pattern into any length.
    let pattern = &data[..input.below(MAX_PERIOD + 3).min(data.len())];
    let mut out = vec![0xAA; input.below(3 * MAX_PERIOD)];
    repeat(pattern, &mut out);
    if pattern.len().is_power_of_two() && pattern.len() <= MAX_PERIOD {
        assert!(out.iter().enumerate().all(|(i, b)| *b == pattern[i % pattern.len()]));
    }
});

/// A period of the input's choice, perhaps with one byte that spoils it.
fn periodic(input: &mut Input, size: usize) -> Vec<u8> {
    let period = 1usize << (input.byte() % 14);
    let one = chunk(input, period);
    let mut data: Vec<u8> = (0..size).map(|i| one[i % period]).collect();
    if input.byte() & 1 == 1 && size > 0 {
        let at = (input.word() << 8 | usize::from(input.byte())) % size;
        data[at] ^= 1 << (input.byte() & 7);
    }
    data
}

/// The definition, literally.
fn naive(data: &[u8]) -> Option<usize> {
    let mut period = MIN_PERIOD;
    while period <= MAX_PERIOD {
        if (period..data.len()).all(|i| data[i] == data[i - period]) {
            return Some(period);
        }
        period *= 2;
    }
    None
}
