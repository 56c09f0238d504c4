//! Compressors: what is compressed comes back in every setting, and no frame with whatever bytes, its checksum forged, makes a decoder
//! leave its slices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmem::codec::amplitude::Element;
use qmem::codec::hash::{sum64, sum64_from};
use qmem::compress::{Algorithm, Compressor, Settings, decompress, decompressed_size};
use qmem_fuzz::{Input, chunk};

const NAMES: [&str; 7] = ["none", "lz4", "zstd", "snappy", "shuffle-lz4", "pco", "amplitude"];
const ELEMENTS: [Option<Element>; 5] = [None, Some(Element::C64), Some(Element::C128), Some(Element::F32), Some(Element::F64)];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let name = NAMES[usize::from(kind >> 1) % NAMES.len()];
    let lossy = name == "amplitude";
    let mut element = ELEMENTS[usize::from(input.byte()) % ELEMENTS.len()];
    if lossy && element.is_none() {
        element = Some(Element::C128);
    }
    if kind & 1 == 0 {
        let tolerance = if lossy { 2f64.powi(-1 - i32::from(input.byte() % 12)) } else { 0.0 };
        let level = match name {
            "lz4" | "zstd" | "shuffle-lz4" | "pco" => i32::from(input.byte() % 10),
            "amplitude" => i32::from(input.byte() % 3),
            _ => 0,
        };
        let settings = Settings {
            algorithm: Algorithm::named(name).unwrap(),
            level,
            chunk_size: 4096 << (input.byte() % 4),
            threads: 1,
            element,
            tolerance,
        };
        let size = input.below(40_000);
        round_trip(Compressor::new(settings).unwrap(), &chunk(&mut input, size), lossy);
    } else {
        let mut frame = b"QMEMCMP1".to_vec();
        let tag = NAMES.iter().position(|known| *known == name).unwrap() as u8;
        frame.extend_from_slice(&[tag, element.map_or(255, Element::tag), 0, 0, 0, 0, 0, 0]);
        let size = input.below(20_000);
        frame.extend_from_slice(&(size as u64).to_le_bytes());
        frame.extend_from_slice(&32768u64.to_le_bytes());
        frame.extend_from_slice(&sum64(&frame).to_le_bytes());
        let method = input.byte() % 3;
        let body = input.rest();
        let mut head = [method, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        head[8..].copy_from_slice(&(body.len() as u64).to_le_bytes());
        frame.extend_from_slice(&head);
        frame.extend_from_slice(&sum64_from(sum64_from(0, &head), body).to_le_bytes());
        frame.extend_from_slice(body);
        let mut out = vec![0; size].into_boxed_slice();
        let _ = decompress(&frame, &mut out, 1);
        let _ = decompress(body, &mut out, 1);
        let _ = decompressed_size(body);
    }
});

fn round_trip(compressor: Compressor, data: &[u8], lossy: bool) {
    let mut out = vec![0xEE; compressor.bound(data.len())];
    let n = compressor.compress(data, &mut out).unwrap();
    let mut back = vec![0x55; data.len()];
    assert_eq!(compressor.decompress(&out[..n], &mut back).unwrap(), data.len());
    assert!(lossy || back == data);
    assert!(n == 0 || decompress(&out[..n - 1], &mut back, 1).is_err());
    assert!(compressor.compress(data, &mut out[..n - 1]).is_err());
}
