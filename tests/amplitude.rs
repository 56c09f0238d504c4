//! The amplitude codec as its callers see it: what comes back, the error claimed beside the error made, sizes, damage.

use qmem::codec::amplitude::*;
use qmem::codec::lz4::Context;

const ELEMENTS: [Element; 4] = [Element::C64, Element::C128, Element::F32, Element::F64];
const PAIR: [Mode; 2] = [Mode::Fast, Mode::Dense];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 ^ (self.0 >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 20
    }

    fn uniform(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 44) as f64
    }

    fn gaussian(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (self.uniform() * std::f64::consts::TAU).cos()
    }
}

fn to_bytes(element: Element, numbers: &[f64]) -> Vec<u8> {
    match element.width() {
        Width::Double => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Width::Single => numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
    }
}

fn distance(element: Element, a: &[u8], b: &[u8]) -> f64 {
    let number = |bytes: &[u8], i: usize| match element.width() {
        Width::Double => f64::from_le_bytes(bytes[8 * i..][..8].try_into().unwrap()),
        Width::Single => f64::from(f32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap())),
    };
    (0..a.len() / element.width().bytes()).map(|i| (number(a, i) - number(b, i)).powi(2)).sum::<f64>().sqrt()
}

/// Amplitudes from their index, real and imaginary part in turn.
fn state(amplitudes: usize, at: impl Fn(usize) -> (f64, f64)) -> Vec<f64> {
    (0..amplitudes).flat_map(|i| <[f64; 2]>::from(at(i))).collect()
}

/// Chunks of every kind, by name.
fn chunks(amplitudes: usize) -> Vec<(&'static str, Vec<f64>)> {
    let mut random = Random(7);
    let mut noise = |n: usize| -> Vec<f64> { (0..n).map(|_| random.gaussian() * 0.01).collect() };
    let n = 2 * amplitudes;
    let flat = noise(n);
    let mut peaked = noise(n);
    if let Some(peak) = peaked.get_mut(n / 3) {
        *peak = 3e4;
    }
    let mut mirrored = noise(n);
    for i in amplitudes / 2..amplitudes {
        let j = amplitudes - 1 - i;
        (mirrored[2 * i], mirrored[2 * i + 1]) = (-mirrored[2 * j], -mirrored[2 * j + 1]);
    }
    let mut repeated = noise(n);
    repeated.copy_within(..n / 2, n / 2);
    let wide: Vec<f64> = noise(n).iter().enumerate().map(|(i, x)| x * 2f64.powi(i as i32 % 40 - 20)).collect();
    let wave = |f: f64| move |i: usize| ((f * i as f64).cos(), (f * i as f64).sin());
    let (first, second) = (wave(0.7), wave(-0.01234));
    vec![
        ("noise", flat),
        ("one peak", peaked),
        ("mirrored and negated", mirrored),
        ("repeated", repeated),
        ("every size", wide),
        ("zero", vec![0.0; n]),
        ("constant", vec![0.1; n]),
        ("minus zero", vec![-0.0; n]),
        ("one mark", state(amplitudes, |i| if i == amplitudes / 5 { (0.5, 0.1) } else { (0.01, 0.0) })),
        ("few values", state(amplitudes, |i| ([0.3, -0.7, 0.11][i * i % 3], 0.25))),
        ("a wave", state(amplitudes, wave(0.3))),
        ("two waves", state(amplitudes, |i| (first(i).0 + second(i).0, first(i).1 + second(i).1))),
        ("a chirp", state(amplitudes, |i| wave(1e-4 * i as f64)(i))),
        ("sparse", state(amplitudes, |i| if i % 97 == 0 { (i as f64 * 1e-5, 0.0) } else { (0.0, 0.0) })),
    ]
}

struct Codec {
    context: Context,
    work: Vec<u8>,
    out: Vec<u8>,
}

impl Codec {
    fn new() -> Self {
        Self { context: Context::new(), work: Vec::new(), out: Vec::new() }
    }

    fn encode(&mut self, request: Request, chunk: &[u8]) -> Result<(Vec<u8>, f64), Refusal> {
        // Exactly what is asked for, and dirty: nothing may lie beyond, nothing may be taken for zero.
        self.work = vec![0xA5; work_bytes(chunk.len(), request.element)];
        self.out = vec![0x5A; bound(chunk.len(), request.element)];
        let done = encode(request, &mut self.context, chunk, &mut self.work, &mut self.out)?;
        Ok((self.out[..done.len].to_vec(), done.error))
    }

    fn decode(&mut self, blob: &[u8], bytes: usize, element: Element) -> Option<Vec<u8>> {
        self.work = vec![0xA5; work_bytes(bytes, element)];
        let mut back = vec![0x77; bytes];
        decode(blob, &mut back, &mut self.work).then_some(back)
    }
}

#[test]
fn error_is_as_claimed_and_as_allowed() {
    let mut codec = Codec::new();
    for amplitudes in [0, 1, 3, 1000, 4096, 4097, 1 << 14] {
        for (name, numbers) in chunks(amplitudes) {
            for element in ELEMENTS {
                let chunk = to_bytes(element, &numbers);
                let norm = norm_squared(element, &chunk).sqrt();
                for tolerance in [1e-1, 1e-2, 1e-3, 1e-4] {
                    for mode in PAIR {
                        let what = format!("{name}, {amplitudes} amplitudes, {element:?}, {tolerance}, {mode:?}");
                        let request = Request { element, max_error: tolerance * norm, mode };
                        let (blob, error) = match codec.encode(request, &chunk) {
                            Ok(done) => done,
                            Err(Refusal::Tolerance) if tolerance < 2e-3 || matches!(name, "one peak" | "every size") => continue,
                            Err(why) => panic!("{what}: {why:?}"),
                        };
                        assert!(error <= request.max_error, "{what}: {error} beyond {}", request.max_error);
                        let back = codec.decode(&blob, chunk.len(), element).expect(&what);
                        let made = distance(element, &chunk, &back);
                        assert!(made <= error * (1.0 + 1e-12), "{what}: made {made}, claimed {error}");
                        assert!(error <= made * 1.001 + 1e-13 * norm, "{what}: made {made}, claimed {error}: far too much");
                        assert_eq!(describe(&blob), Some((element, chunk.len())));
                        assert!(codec.decode(&blob, chunk.len() + element.bytes(), element).is_none(), "{what}: another length");
                    }
                }
            }
        }
    }
}

#[test]
fn what_came_back_is_encoded_without_error() {
    let mut codec = Codec::new();
    for (name, numbers) in chunks(1 << 14) {
        for element in ELEMENTS {
            let chunk = to_bytes(element, &numbers);
            let norm = norm_squared(element, &chunk).sqrt();
            for mode in PAIR {
                let mut request = Request { element, max_error: 1e-2 * norm, mode };
                let Ok((blob, _)) = codec.encode(request, &chunk) else { continue };
                let mut once = codec.decode(&blob, chunk.len(), element).unwrap();
                // Also if less is allowed than the first time, in either mode.
                for share in [1.0, 0.9, 0.5] {
                    for again in PAIR {
                        (request.max_error, request.mode) = (1e-2 * norm * share, again);
                        let (blob, error) = codec.encode(request, &once).unwrap();
                        let twice = codec.decode(&blob, chunk.len(), element).unwrap();
                        assert!(error <= 1e-15 * norm, "{name}, {element:?}, {mode:?} then {again:?}: {error} more of {norm}");
                        assert!(error > 0.0 || distance(element, &once, &twice) == 0.0, "{name}, {element:?}: not what it was");
                        once = twice;
                    }
                }
            }
        }
    }
}

/// Equal numbers whose grid has a larger step than may be chosen, a number that no sample sees, numbers whose squares are subnormal.
#[test]
fn what_came_back_is_encoded_without_error_at_the_ends_of_the_range() {
    let mut codec = Codec::new();
    let peak = |at: usize, value: f64| (0..10_213).map(|i| if i == at { value } else { 0.0 }).collect::<Vec<f64>>();
    let cases = [
        (Element::C64, vec![3.2e31; 256], true),
        (Element::F64, vec![3.2e291; 256], true),
        (Element::F32, peak(5001, 23_101_568.0), true),
        (Element::F64, peak(5001, 1e12 + 1.0), true),
        (Element::F64, (0..5156).map(|i| if i % 3 == 0 { -2.886_333_220_034_475_7e-157 } else { 0.0 }).collect(), false),
    ];
    for (element, numbers, possible) in cases {
        let chunk = to_bytes(element, &numbers);
        let norm = numbers.iter().fold(0.0f64, |norm, x| norm.hypot(*x));
        for tolerance in [1.0 / 512.0, 1.0 / 1024.0, 1.0 / 2048.0] {
            for mode in PAIR {
                let request = Request { element, max_error: norm * tolerance, mode };
                let what =
                    format!("{element:?}, {} numbers around {}, {tolerance}", numbers.len(), numbers[5001 % numbers.len()]);
                let Ok((blob, _)) = codec.encode(request, &chunk) else {
                    assert!(!possible, "{what}: refused");
                    continue;
                };
                let once = codec.decode(&blob, chunk.len(), element).unwrap();
                let (blob, error) = codec.encode(request, &once).expect(&what);
                assert_eq!(error, 0.0, "{what}");
                assert!(codec.decode(&blob, chunk.len(), element).unwrap() == once, "{what}");
            }
        }
    }
}

/// A matrix of rank 1 gives their bits back, but not on every machine.
#[test]
fn rows_of_nan_are_no_matrix_of_low_rank() {
    let mut codec = Codec::new();
    for element in [Element::C64, Element::C128] {
        for row in 1..64 {
            let numbers = state(1 << 14, |i| if i / 128 == row { (f64::NAN, f64::NAN) } else { (1.0, 0.0) });
            for max_error in [0.0, 1.0] {
                let refused = codec.encode(Request { element, max_error, mode: Mode::Dense }, &to_bytes(element, &numbers));
                assert!(
                    matches!(refused, Err(Refusal::NotFinite | Refusal::Tolerance)),
                    "{element:?}, {row}, {max_error}: {refused:?}"
                );
            }
        }
    }
}

#[test]
fn a_thousand_recompressions_cost_what_is_accounted() {
    let mut codec = Codec::new();
    let mut random = Random(21);
    let numbers: Vec<f64> = (0..1 << 13).map(|_| random.gaussian()).collect();
    let mut now = to_bytes(Element::C128, &numbers);
    let norm = norm_squared(Element::C128, &now).sqrt();
    let (mut truth, mut accounted) = (now.clone(), 0.0);
    for pass in 0..1000 {
        let mode = PAIR[pass % 2];
        let request = Request { element: Element::C128, max_error: 1e-2 * norm, mode };
        let (blob, error) = codec.encode(request, &now).unwrap();
        assert!(pass == 0 || pass % 100 == 1 || error == 0.0, "pass {pass}: unchanged, yet {error}");
        accounted += error;
        now = codec.decode(&blob, now.len(), Element::C128).unwrap();
        let made = distance(Element::C128, &truth, &now);
        assert!(made <= accounted * (1.0 + 1e-12), "pass {pass}: {made} made, {accounted} accounted");
        if pass % 100 == 0 {
            // A rotation in place, of the true state and of the stored one: errors keep their size.
            for bytes in [&mut truth, &mut now] {
                for pair in bytes.as_chunks_mut::<16>().0 {
                    let [x, y] = pair.as_chunks::<8>().0 else { unreachable!() };
                    let (x, y) = (f64::from_le_bytes(*x), f64::from_le_bytes(*y));
                    pair.as_chunks_mut::<8>()
                        .0
                        .copy_from_slice(&[(0.6 * x - 0.8 * y).to_le_bytes(), (0.8 * x + 0.6 * y).to_le_bytes()]);
                }
            }
        }
    }
    assert!(accounted < 0.12 * norm, "ten changes and a start cost {accounted} of {norm}");
}

#[test]
fn sizes_are_what_the_design_asks_for() {
    let mut codec = Codec::new();
    let mut random = Random(3);
    let numbers: Vec<f64> = (0..1 << 18).map(|_| random.gaussian()).collect();
    let noise = to_bytes(Element::C128, &numbers);
    let wave = to_bytes(Element::C128, &state(1 << 17, |i| ((0.3 * i as f64).cos(), (0.3 * i as f64).sin())));
    let ratio = |codec: &mut Codec, chunk: &[u8], mode| {
        let max_error = 1e-2 * norm_squared(Element::C128, chunk).sqrt();
        let (blob, _) = codec.encode(Request { element: Element::C128, max_error, mode }, chunk).unwrap();
        chunk.len() as f64 / blob.len() as f64
    };
    for (chunk, mode, least) in
        [(&noise, Mode::Fast, 7.9), (&noise, Mode::Dense, 9.1), (&wave, Mode::Fast, 150.0), (&wave, Mode::Dense, 150.0)]
    {
        let got = ratio(&mut codec, chunk, mode);
        assert!(got >= least, "{mode:?}: {got}, not {least}");
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut codec = Codec::new();
    for element in ELEMENTS {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in [0, 4999, 9999] {
                let mut numbers = vec![1.0; 10_000];
                numbers[at] = odd;
                for max_error in [0.0, 1e-3, 1e300, f64::INFINITY] {
                    let request = Request { element, max_error, mode: Mode::Fast };
                    let got = codec.encode(request, &to_bytes(element, &numbers));
                    assert!(matches!(got, Err(Refusal::NotFinite | Refusal::Tolerance)), "{odd} at {at}: {got:?}");
                }
            }
        }
        let mut random = Random(1);
        let noise: Vec<f64> = (0..10_000).map(|_| random.gaussian()).collect();
        let chunk = to_bytes(element, &noise);
        for max_error in [f64::NAN, -1.0, 0.0, 1e-12, f64::MIN_POSITIVE] {
            let got = codec.encode(Request { element, max_error, mode: Mode::Dense }, &chunk);
            assert_eq!(got, Err(Refusal::Tolerance), "{max_error}");
        }
        // Beside the range of numbers whose products are safe.
        for scale in if element.width() == Width::Double { [1e-300, 1e300] } else { [1e-34, 1e34] } {
            let scaled: Vec<f64> = noise.iter().map(|x| x * scale).collect();
            let request = Request { element, max_error: scale, mode: Mode::Dense };
            assert_eq!(codec.encode(request, &to_bytes(element, &scaled)), Err(Refusal::Tolerance), "{scale}");
        }
        let request = Request { element, max_error: 1.0, mode: Mode::Fast };
        let whole = work_bytes(chunk.len(), element);
        let mut room = vec![0; bound(chunk.len(), element)];
        assert_eq!(encode(request, &mut codec.context, &chunk[1..], &mut vec![0; whole], &mut room), Err(Refusal::Size));
        assert_eq!(encode(request, &mut codec.context, &chunk, &mut vec![0; whole - 1], &mut room), Err(Refusal::Size));
        room.pop();
        assert_eq!(encode(request, &mut codec.context, &chunk, &mut vec![0; whole], &mut room), Err(Refusal::Size));
    }
}

#[test]
fn damage_never_escapes() {
    let mut codec = Codec::new();
    let mut random = Random(99);
    for (name, numbers) in chunks(1 << 13) {
        for element in [Element::C128, Element::C64, Element::F32] {
            let chunk = to_bytes(element, &numbers);
            for mode in PAIR {
                let max_error = 3e-3 * norm_squared(element, &chunk).sqrt();
                let Ok((blob, _)) = codec.encode(Request { element, max_error, mode }, &chunk) else { continue };
                for _ in 0..150 {
                    let mut bad = blob.clone();
                    for _ in 0..1 + random.next() % 4 {
                        // The head and the tables matter most.
                        let within = if random.next().is_multiple_of(2) { bad.len() } else { bad.len().min(64) };
                        bad[random.next() as usize % within] = random.next() as u8;
                    }
                    bad.truncate(bad.len() - (random.next() % 3) as usize);
                    let _ = codec.decode(&bad, chunk.len(), element);
                }
                assert!(codec.decode(&blob[..blob.len() - 1], chunk.len(), element).is_none(), "{name}: cut short");
                let mut longer = blob.clone();
                longer.push(0);
                assert!(codec.decode(&longer, chunk.len(), element).is_none(), "{name}: a byte more");
            }
        }
    }
}
