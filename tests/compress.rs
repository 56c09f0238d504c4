//! The compressors from outside: what comes back, in every setting; damage, with and without a forged checksum. QMEM_TEST_SECONDS sets
//! how long mutated frames are tried beyond the first million; from 60 on, inputs of more than 4 GiB are tried too.

use qmem::codec::amplitude::Element;
use qmem::codec::hash::{sum64, sum64_from};
use qmem::compress::{Algorithm, Compressor, Settings, decompress, decompressed_size};
use qmem::error::Status;
use std::time::{Duration, Instant};

const LOSSLESS: [&str; 6] = ["none", "lz4", "zstd", "snappy", "shuffle-lz4", "pco"];
const ELEMENTS: [Option<Element>; 5] = [None, Some(Element::C64), Some(Element::C128), Some(Element::F32), Some(Element::F64)];

fn settings(name: &str) -> Settings {
    let tolerance = if name == "amplitude" { 1e-2 } else { 0.0 };
    let element = if name == "amplitude" { Some(Element::C128) } else { None };
    Settings { algorithm: Algorithm::named(name).unwrap(), level: 0, chunk_size: 4096, threads: 1, element, tolerance }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 ^ (self.0 >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 20
    }
}

/// Inputs of every kind.
fn inputs(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random(bytes as u64);
    let mut noise = || -> Vec<u8> { (0..bytes).map(|_| random.next() as u8).collect() };
    let doubles =
        |f: fn(f64) -> f64| -> Vec<u8> { (0..bytes.div_ceil(8)).flat_map(|i| f(i as f64).to_le_bytes()).take(bytes).collect() };
    let (first, second) = (noise(), noise());
    vec![
        ("noise", first),
        ("zeros", vec![0; bytes]),
        ("one byte again and again", vec![0xC3; bytes]),
        ("noise and zeros by turns", second.iter().enumerate().map(|(i, b)| if i / 3000 % 2 == 0 { 0 } else { *b }).collect()),
        ("a wave", doubles(|i| (i * 0.3).sin())),
        ("numbers that are none", doubles(|i| [f64::NAN, f64::INFINITY, -0.0, 5e-324, 1e308][i as usize % 5])),
        ("what looks compressed", (0..bytes).map(|i| b"QMEMCMP1\x28\xB5\x2F\xFD\x04\x22\x4D\x18"[i % 16]).collect()),
    ]
}

fn round_trip(settings: &Settings, input: &[u8], what: &str) -> (Vec<u8>, Vec<u8>) {
    let compressor = Compressor::new(settings.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut out = vec![0xAB; compressor.bound(input.len())];
    let n = compressor.compress(input, &mut out).unwrap_or_else(|e| panic!("{what}: {e}"));
    out.truncate(n);
    assert_eq!(decompressed_size(&out).unwrap(), input.len(), "{what}");
    let mut back = vec![0xCD; input.len()];
    assert_eq!(compressor.decompress(&out, &mut back).unwrap_or_else(|e| panic!("{what}: {e}")), input.len());
    (out, back)
}

#[test]
fn lossless_is_lossless_in_every_setting() {
    for bytes in [0, 1, 7, 4095, 4096, 20_001, 300_000] {
        for (kind, input) in inputs(bytes) {
            for name in LOSSLESS {
                for element in ELEMENTS {
                    let mut settings = Settings { element, ..settings(name) };
                    let levels: &[i32] = match name {
                        "lz4" => &[-64, 0, 3, 12],
                        "zstd" => &[-7, 0, 12],
                        "shuffle-lz4" | "pco" => &[0, 9],
                        _ => &[0],
                    };
                    for (i, level) in levels.iter().enumerate() {
                        (settings.level, settings.threads, settings.chunk_size) = (*level, 1 + 2 * (i % 2), [4096, 65536][i % 2]);
                        let what = format!("{name} at {level}, {kind}, {bytes} bytes, {element:?}");
                        let (out, back) = round_trip(&settings, &input, &what);
                        assert!(back == input, "{what}");
                        assert!(
                            kind != "zeros" || name == "none" || bytes < 4095 || out.len() < bytes / 2,
                            "{what}: {} bytes",
                            out.len()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn settings_change_what_comes_out() {
    let input: Vec<u8> = (0..400_000u32).flat_map(|i| ((f64::from(i % 5000) * 0.01).sin() as f32).to_le_bytes()).collect();
    let size = |change: &dyn Fn(&mut Settings), name: &str| {
        let mut settings = Settings { chunk_size: 1 << 20, ..settings(name) };
        change(&mut settings);
        round_trip(&settings, &input, name).0.len()
    };
    // Words in random order: what more effort finds more in.
    let mut random = Random(4);
    let words: Vec<u8> = (0..60_000).flat_map(|_| format!("{:x} ", (random.next() % 700).pow(3)).into_bytes()).collect();
    let of_words = |level: i32, chunk_size: usize, name: &str| {
        round_trip(&Settings { level, chunk_size, ..settings(name) }, &words, name).0.len()
    };
    let lz4 = of_words(0, 1 << 20, "lz4");
    assert!(of_words(9, 1 << 20, "lz4") < lz4 && of_words(-64, 1 << 20, "lz4") > lz4 && of_words(0, 4096, "lz4") > lz4);
    assert!(of_words(19, 1 << 20, "zstd") < of_words(-7, 1 << 20, "zstd"));
    assert!(size(&|s| s.element = Some(Element::F32), "pco") < size(&|_| {}, "pco"));
    let noise: Vec<u8> = (0..400_000).flat_map(|_| ((random.next() % 1000) as f32 - 499.7).to_le_bytes()).collect();
    let of_noise = |level: i32, tolerance: f64| {
        let settings = Settings { level, tolerance, element: Some(Element::F32), chunk_size: 1 << 20, ..settings("amplitude") };
        round_trip(&settings, &noise, "amplitude").0.len()
    };
    let (dense, fast) = (of_noise(0, 1e-2), of_noise(1, 1e-2));
    assert!(dense < fast && fast < noise.len() / 3 && of_noise(2, 1e-2) == dense && of_noise(0, 1e-3) > dense, "{dense}, {fast}");
    // Any number of threads gives the same bytes.
    let mut settings = Settings { chunk_size: 8192, ..settings("zstd") };
    let one = round_trip(&settings, &input, "one thread").0;
    settings.threads = 7;
    assert!(round_trip(&settings, &input, "seven threads").0 == one);
}

#[test]
fn amplitudes_keep_to_the_tolerance() {
    for element in ELEMENTS.into_iter().flatten() {
        for bytes in [0, 5, 4096, 100_000, 300_003] {
            for (kind, input) in inputs(bytes) {
                for (tolerance, level, threads) in [(1e-2, 0, 1), (1e-3, 1, 3), (0.5, 2, 2)] {
                    let what = format!("{element:?}, {kind}, {bytes} bytes, {tolerance}");
                    let settings = Settings {
                        element: Some(element),
                        tolerance,
                        level,
                        threads,
                        chunk_size: 65536,
                        ..settings("amplitude")
                    };
                    let (_, back) = round_trip(&settings, &input, &what);
                    let numbers = |bytes: &[u8]| -> Vec<f64> {
                        match element {
                            Element::C64 | Element::F32 => {
                                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect()
                            }
                            _ => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                        }
                    };
                    let (a, b) = (numbers(&input), numbers(&back));
                    let norm: f64 = a.iter().map(|x| x * x).sum();
                    if norm.is_finite() {
                        let error: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
                        assert!(error <= tolerance * tolerance * norm, "{what}: {error} of {norm}");
                    } else {
                        assert!(back == input, "{what}: what has no norm is kept as it is");
                    }
                    let whole = bytes / element.bytes() * element.bytes();
                    assert!(back[whole..] == input[whole..], "{what}: the end");
                }
            }
        }
    }
}

#[test]
fn every_damaged_byte_is_seen() {
    let input = &inputs(9000)[3].1;
    for name in LOSSLESS.into_iter().chain(["amplitude"]) {
        let (out, _) = round_trip(&settings(name), input, name);
        let mut back = vec![0; input.len()];
        for at in 0..out.len() {
            let mut bad = out.clone();
            bad[at] ^= 1 << (at % 8);
            let got = decompress(&bad, &mut back, 1).expect_err(name);
            assert_eq!(got.status, Status::Corrupt, "{name}, byte {at}: {got}");
        }
        for len in [0, 1, 8, 39, 40, 60, out.len() - 1] {
            assert_eq!(decompress(&out[..len], &mut back, 2).unwrap_err().status, Status::Corrupt, "{name}, {len} bytes");
        }
        let mut longer = out.clone();
        longer.push(0);
        assert_eq!(decompress(&longer, &mut back, 1).unwrap_err().status, Status::Corrupt, "{name}");
        assert_eq!(decompress(&out, &mut back[1..], 1).unwrap_err().status, Status::Limit, "{name}");
        let compressor = Compressor::new(settings(name)).unwrap();
        let full = compressor.compress(input, &mut vec![0; out.len() - 1]).unwrap_err();
        assert_eq!(full.status, Status::Limit, "{name}");
        // Frames that changed places are damage as well.
        let mut swapped = out[..40].to_vec();
        let length = |at: usize| 24 + u64::from_le_bytes(out[at + 8..at + 16].try_into().unwrap()) as usize;
        let (first, second) = (40, 40 + length(40));
        swapped.extend_from_slice(&out[second..second + length(second)]);
        swapped.extend_from_slice(&out[first..second]);
        swapped.extend_from_slice(&out[second + length(second)..]);
        assert_eq!(decompress(&swapped, &mut back, 1).unwrap_err().status, Status::Corrupt, "{name}");
    }
}

/// Makes the checksum of the first frame right again, and the length in its head.
fn forge(bytes: &mut [u8]) {
    let length = bytes.len() - 64;
    bytes[48..56].copy_from_slice(&(length as u64).to_le_bytes());
    let head: [u8; 16] = bytes[40..56].try_into().unwrap();
    let sum = sum64_from(sum64_from(0, &head), &bytes[64..]);
    bytes[56..64].copy_from_slice(&sum.to_le_bytes());
    let opening = sum64(&bytes[..32]);
    bytes[32..40].copy_from_slice(&opening.to_le_bytes());
}

#[test]
fn a_million_mutated_frames_never_escape() {
    let seconds = std::env::var("QMEM_TEST_SECONDS").map_or(0, |text| text.parse().expect("QMEM_TEST_SECONDS"));
    let mut random = Random(77);
    let mut frames = Vec::new();
    for name in LOSSLESS.into_iter().chain(["amplitude"]) {
        for (_, input) in inputs(2048) {
            for element in [Some(Element::C128), Some(Element::F32)] {
                frames.push(round_trip(&Settings { element, ..settings(name) }, &input, name).0);
            }
        }
    }
    // The room ends where the allocation does, so that a byte too far is seen by a sanitizer; and it is looked at afterwards.
    let mut room = vec![0x11u8; 2048 + 64];
    let start = Instant::now();
    let mut done = 0;
    while done < 1_000_000 || start.elapsed() < Duration::from_secs(seconds) {
        let mut bad = frames[random.next() as usize % frames.len()].clone();
        for _ in 0..1 + random.next() % 4 {
            let within = if random.next().is_multiple_of(2) { bad.len() } else { bad.len().min(64 + 48) };
            let at = 64.min(bad.len() - 1) + random.next() as usize % within.saturating_sub(64).max(1);
            bad[at] = random.next() as u8;
        }
        match random.next() % 8 {
            0 => bad.truncate((bad.len() - random.next() as usize % 20).max(64)),
            1 => bad.extend((0..random.next() % 20).map(|i| i as u8)),
            2 => bad[8 + random.next() as usize % 3] = random.next() as u8 % 8, // another algorithm, element
            _ => {}
        }
        forge(&mut bad);
        let _ = decompress(&bad, &mut room[..2048], 1);
        done += 1;
        if done % 1000 == 0 {
            assert!(room[2048..].iter().all(|b| *b == 0x11), "written beyond the end");
        }
    }
    println!("{done} mutated frames in {:.1} s", start.elapsed().as_secs_f64());
}

#[test]
fn more_than_four_gibibytes() {
    let seconds: u64 = std::env::var("QMEM_TEST_SECONDS").map_or(0, |text| text.parse().expect("QMEM_TEST_SECONDS"));
    if seconds < 60 {
        println!("skipped: takes minutes and 12 GiB; QMEM_TEST_SECONDS=60 tries it");
        return;
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available =
        meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if available.unwrap_or(0) < 14 << 20 {
        println!("skipped: needs 14 GiB of memory");
        return;
    }
    let size = (4usize << 30) + 123_456 * 16 + 5;
    let mut input = vec![0u8; size];
    for (i, part) in input.chunks_mut(1 << 20).enumerate().filter(|(i, _)| i % 50 == 0 || *i > 4090) {
        for (j, number) in part.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *number = ((i * j) as f64 * 1e-3).to_le_bytes();
        }
    }
    let mut back = vec![0u8; size];
    for name in ["lz4", "zstd", "snappy", "shuffle-lz4", "pco", "amplitude"] {
        let mut settings = Settings { chunk_size: 0, threads: 0, ..settings(name) };
        settings.element = Some(Element::F64);
        let compressor = Compressor::new(settings).unwrap();
        let mut out = vec![0u8; size / 3];
        let n = compressor.compress(&input, &mut out).unwrap();
        back.fill(1);
        assert_eq!(compressor.decompress(&out[..n], &mut back).unwrap(), size);
        if name == "amplitude" {
            let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
            let pairs = || input.as_chunks::<8>().0.iter().zip(back.as_chunks::<8>().0);
            let norm: f64 = pairs().map(|(a, _)| number(a) * number(a)).sum();
            let error: f64 = pairs().map(|(a, b)| (number(a) - number(b)).powi(2)).sum();
            assert!(error <= 1e-4 * norm, "{error} of {norm}");
        } else {
            assert!(back == input, "{name}");
        }
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |settings: Settings, word: &str, status: Status| {
        let error = Compressor::new(settings).expect_err(word);
        assert!(error.status == status && error.message.as_str().contains(word), "{error:?} does not name {word}");
    };
    let bad = Status::InvalidArgument;
    for (name, levels) in [
        ("none", [-1, 1]),
        ("lz4", [-65, 13]),
        ("zstd", [-8, 23]),
        ("snappy", [-1, 1]),
        ("shuffle-lz4", [-1, 13]),
        ("pco", [-1, 13]),
        ("amplitude", [-1, 3]),
    ] {
        for level in levels {
            refused(Settings { level, ..settings(name) }, "level", bad);
        }
        for chunk_size in [1, 4095, (1 << 30) + 1] {
            refused(Settings { chunk_size, ..settings(name) }, "chunk_size", bad);
        }
        refused(Settings { threads: 257, ..settings(name) }, "threads", bad);
        refused(Settings { element: Some(Element::C128), chunk_size: 5000, ..settings(name) }, "chunk_size", bad);
    }
    refused(Settings { tolerance: 0.1, ..settings("lz4") }, "tolerance", bad);
    refused(Settings { tolerance: 0.0, ..settings("amplitude") }, "tolerance", bad);
    refused(Settings { tolerance: 1.0, ..settings("amplitude") }, "tolerance", bad);
    refused(Settings { element: None, ..settings("amplitude") }, "element", Status::Unsupported);
    for name in ["jpeg2000", "gzip", ""] {
        let error = Algorithm::named(name).unwrap_err();
        assert!(error.status == Status::Unsupported && error.message.as_str().contains(name));
    }
}
