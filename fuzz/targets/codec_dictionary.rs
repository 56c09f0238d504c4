//! The page dictionary: what it takes comes back, and no blob of any bytes makes the decoder leave its slices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::codec::dictionary::{Encoded, WORK, decode, encode};
use qmem::codec::{lz4, pattern};
use qmem_fuzz::{Input, chunk};
use std::cell::RefCell;

const PAGE: usize = 4096;

thread_local! {
    static PARTS: RefCell<(lz4::Context, Vec<u8>)> = RefCell::new((lz4::Context::new(), vec![0xEE; WORK]));
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    match kind & 3 {
        0 => {
            let size = PAGE * (1 + input.below(64));
            round_trip(&chunk(&mut input, size));
        }
        1 => round_trip(&from_few_pages(&mut input)),
        2 => damaged(input.rest(), PAGE * (1 + usize::from(kind >> 2))),
        _ => raw(&mut input, PAGE * (1 + usize::from(kind >> 2) * 8)),
    }
});

/// Chunks as gates leave them: some different pages, in runs.
fn from_few_pages(input: &mut Input) -> Vec<u8> {
    let different = 1 + input.below(70);
    let pages: Vec<Vec<u8>> = (0..different)
        .map(|i| {
            let mut page = vec![0; PAGE];
            let period = 1usize << (input.byte() % 13);
            let literal = input.bytes(period.min(16));
            for (at, byte) in page.iter_mut().enumerate() {
                *byte = literal.get(at % period).copied().unwrap_or(i as u8);
            }
            page
        })
        .collect();
    let mut out = Vec::new();
    let most = if input.byte() & 7 == 0 { 512 } else { 80 };
    for entry in 0..most {
        let page = if input.is_over() { entry } else { input.word() };
        let count = 1 + usize::from(input.byte()) / 8;
        for _ in 0..count.min(most - out.len() / PAGE) {
            out.extend_from_slice(&pages[page % different]);
        }
    }
    out
}

fn round_trip(data: &[u8]) {
    PARTS.with_borrow_mut(|(context, work)| {
        let mut out = vec![0x55; data.len()];
        match encode(&mut context.table, data, work) {
            Some(Encoded::Pattern(period)) => {
                assert!(period.is_power_of_two() && (pattern::MIN_PERIOD..=PAGE).contains(&period));
                pattern::repeat(&data[..period], &mut out);
                assert!(out == data);
            }
            Some(Encoded::Blob { at, len }) => {
                let blob = work[at..at + len].to_vec().into_boxed_slice();
                assert!(decode(&blob, &mut out, work) && out == data);
                assert!(!decode(&blob, &mut vec![0; data.len() + PAGE], work) && !decode(&blob, &mut out[PAGE..], work));
                assert!(!decode(&blob[..len - 1], &mut out, work), "a blob cut short");
            }
            None => {
                let mut pages: Vec<&[u8]> = data.chunks(PAGE).collect();
                pages.sort();
                pages.dedup();
                assert!(pages.len() > 64, "{} different pages were refused", pages.len());
            }
        }
        assert!(encode(&mut context.table, data, &mut []).is_none_or(|e| matches!(e, Encoded::Pattern(_))));
        assert_eq!(encode(&mut context.table, &data[1..], work), None, "no whole pages");
    });
}

fn damaged(blob: &[u8], size: usize) {
    let mut out = vec![0u8; size].into_boxed_slice();
    let mut work = vec![0u8; WORK].into_boxed_slice();
    let _ = decode(blob, &mut out, &mut work);
}

/// The bytes as a raw form, so that what comes after the decompression is reached whatever they are.
fn raw(input: &mut Input, size: usize) {
    let (pages, runs) = (input.byte() % 66, input.byte());
    let mut raw = vec![pages, 0, runs, 0];
    for _ in 0..runs {
        raw.extend([input.byte(), 0, input.byte() % (pages + 1), 0]);
    }
    for _ in 0..pages {
        let shift = input.byte() % 14;
        raw.extend_from_slice(&(1u16 << shift).to_le_bytes());
        let literal = input.bytes(4);
        raw.extend((0..1usize << shift).map(|i| literal.get(i % 4).copied().unwrap_or(0)));
    }
    raw.extend_from_slice(input.rest());
    damaged(&one_literal(&raw), size);
}

/// LZ4 for "these bytes".
fn one_literal(raw: &[u8]) -> Vec<u8> {
    let mut blob = (raw.len() as u32).to_le_bytes().to_vec();
    if raw.len() < 15 {
        blob.push((raw.len() as u8) << 4);
    } else {
        blob.push(0xF0);
        let mut rest = raw.len() - 15;
        while rest >= 255 {
            blob.push(255);
            rest -= 255;
        }
        blob.push(rest as u8);
    }
    blob.extend_from_slice(raw);
    blob
}
