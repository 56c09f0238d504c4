//! The lossy codec for amplitudes: what comes back is within the error that was claimed and allowed, is encoded again without any,
//! and no blob of any bytes makes the decoder leave its slices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::codec::amplitude::{Element, Mode, Request, Width, bound, decode, describe, encode, norm_squared, work_bytes};
use qmem::codec::lz4::Context;
use qmem_fuzz::{Input, chunk, mix};
use std::cell::RefCell;

thread_local! {
    static CONTEXT: RefCell<Context> = const { RefCell::new(Context::new()) };
}

const ELEMENTS: [Element; 4] = [Element::C64, Element::C128, Element::F32, Element::F64];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let element = ELEMENTS[usize::from(kind >> 1 & 3)];
    if kind & 1 == 0 {
        round_trip(&mut input, element, kind >> 3);
    } else {
        any_bytes(&mut input, element);
    }
});

/// Numbers: any bytes, or few values and waves, which the finer branches want.
fn numbers(input: &mut Input, element: Element, kind: u8) -> Vec<u8> {
    let amplitudes = if kind & 1 == 0 { 1 << (6 + input.byte() % 9) } else { input.below(20_000) };
    let count = amplitudes * element.numbers();
    let bytes = count * element.width().bytes();
    if kind & 2 == 0 {
        return chunk(input, bytes);
    }
    let (salt, scale) = (input.word() as u64, f64::from(input.byte()) - 100.0);
    let value = |i: usize| match kind & 12 {
        0 => (i as f64 / 2.0 * salt as f64 * 1e-4 + (i % 2) as f64 * core::f64::consts::FRAC_PI_2).cos(),
        4 => (mix(i as u64, salt) >> 11) as f64 / (1u64 << 53) as f64 - 0.5,
        8 => f64::from((mix(i as u64 / 2, salt) % 3) as u32) - 1.0,
        _ => {
            if i.is_multiple_of(777) {
                i as f64
            } else {
                0.0
            }
        }
    };
    let number = |i: usize| value(i) * 2f64.powf(scale / 8.0);
    match element.width() {
        Width::Double => (0..count).flat_map(|i| number(i).to_le_bytes()).collect(),
        Width::Single => (0..count).flat_map(|i| (number(i) as f32).to_le_bytes()).collect(),
    }
}

fn distance(element: Element, a: &[u8], b: &[u8]) -> f64 {
    let pairs: f64 = match element.width() {
        Width::Double => a
            .as_chunks::<8>()
            .0
            .iter()
            .zip(b.as_chunks::<8>().0)
            .map(|(a, b)| (f64::from_le_bytes(*a) - f64::from_le_bytes(*b)).powi(2))
            .sum(),
        Width::Single => a
            .as_chunks::<4>()
            .0
            .iter()
            .zip(b.as_chunks::<4>().0)
            .map(|(a, b)| (f64::from(f32::from_le_bytes(*a)) - f64::from(f32::from_le_bytes(*b))).powi(2))
            .sum(),
    };
    pairs.sqrt()
}

fn round_trip(input: &mut Input, element: Element, kind: u8) {
    let mode = if input.byte() & 1 == 0 { Mode::Fast } else { Mode::Dense };
    let tolerance = 2f64.powi(-i32::from(input.byte() % 16));
    let mut data = numbers(input, element, kind);
    let norm = norm_squared(element, &data).sqrt();
    let max_error = if norm.is_finite() { norm * tolerance } else { f64::from(input.byte()) };
    let request = Request { element, max_error, mode };
    // Dirty and exact: nothing may lie beyond, nothing may be taken for zero.
    let mut work = vec![0xA5; work_bytes(data.len(), element)];
    let mut out = vec![0x5A; bound(data.len(), element)];
    for pass in 0..2 {
        let done = CONTEXT.with_borrow_mut(|context| encode(request, context, &data, &mut work, &mut out));
        let Ok(done) = done else {
            assert!(pass == 0 || max_error == 0.0, "what came back is refused: {done:?}");
            return;
        };
        assert!(done.error <= max_error && describe(&out[..done.len]) == Some((element, data.len())));
        let mut back = vec![0x33; data.len()];
        work.fill(0x77);
        assert!(decode(&out[..done.len], &mut back, &mut work), "{} bytes", data.len());
        let made = distance(element, &data, &back);
        assert!(made <= done.error * (1.0 + 1e-9), "made {made}, claimed {}", done.error);
        assert!(pass == 0 || done.error <= 1e-14 * norm, "{} more of {norm} for what came back", done.error);
        data = back;
    }
}

fn any_bytes(input: &mut Input, element: Element) {
    let amplitudes = if input.byte() & 1 == 0 { 1 << (12 + input.byte() % 3) } else { input.below(20_000) };
    let bytes = amplitudes * element.bytes();
    let mut work = vec![0xA5; work_bytes(bytes, element)];
    let mut out = vec![0; bytes].into_boxed_slice();
    let _ = decode(input.rest(), &mut out, &mut work);
    // With a head that is right, so that what follows it is read.
    let head = [1 + input.byte() % 2, element.tag(), input.byte() % 8, input.byte() % 9];
    let mut plausible = head.to_vec();
    plausible.extend_from_slice(&((amplitudes * element.numbers()) as u32).to_le_bytes());
    plausible.extend_from_slice(input.rest());
    let _ = decode(&plausible.into_boxed_slice(), &mut out, &mut work);
}
