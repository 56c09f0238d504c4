//! Compression with loss in the pager: the error that is measured never passes the one that is accounted, that one neither tolerance nor
//! budget; what may lose nothing loses nothing; and the account goes wherever the data goes.

use qmem::monitor::account;
use qmem::monitor::fidelity::PROCESS;
use qmem::paged::{self, Element, Options, Request, Saved, Strategy};
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::new(());
const MIB: usize = 1 << 20;
const CHUNK: usize = 64 << 10;

fn start(budget: usize, strategy: Strategy, deduplication: bool) -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(budget);
    paged::configure(&Options { strategy, compression: true, deduplication, swapping: true }).expect("pager");
    PROCESS.set_limit(0.0);
    turn
}

fn stop() {
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
}

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

/// Single or double, by the element.
trait Real: Copy + PartialEq + Send + 'static {
    const ELEMENT: Element;
    fn of(x: f64) -> Self;
    fn get(self) -> f64;
}
impl Real for f32 {
    const ELEMENT: Element = Element::C64;
    fn of(x: f64) -> Self {
        x as f32
    }
    fn get(self) -> f64 {
        f64::from(self)
    }
}
impl Real for f64 {
    const ELEMENT: Element = Element::C128;
    fn of(x: f64) -> Self {
        x
    }
    fn get(self) -> f64 {
        self
    }
}

fn region<R: Real>(bytes: usize, chunk_size: usize, tolerance: f64) -> &'static mut [R] {
    let element = Some(R::ELEMENT);
    let request = Request { size: bytes, align: 0, chunk_size, swappable: true, element, tolerance, pooled: false, tag: 1 };
    let start = paged::allocate(&request).expect("granted").as_ptr();
    // SAFETY: a fresh region of that size, ours until `free`; any bytes are floats.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes / size_of::<R>()) }
}

fn free<R: Real>(numbers: &mut [R]) {
    // SAFETY: made by `region` and not used after.
    unsafe { paged::free(numbers.as_mut_ptr().cast()).unwrap() };
}

fn evict<R: Real>(numbers: &[R]) {
    // Reading ahead for an earlier access may bring a chunk back after its turn: tried again.
    let start: *const u8 = numbers.as_ptr().cast();
    let whole = paged::find(start).is_some_and(|found| found.size == size_of_val(numbers));
    for _ in 0..1000 {
        let gone = paged::evict(start, size_of_val(numbers)).is_ok();
        if gone && (!whole || paged::region_stats(start).unwrap().resident_bytes == 0) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("chunks stay");
}

fn total<R: Real>(numbers: &[R]) -> f64 {
    paged::loss(numbers.as_ptr().cast()).unwrap().total
}

fn lossy_bytes<R: Real>(numbers: &[R]) -> usize {
    paged::region_stats(numbers.as_ptr().cast()).unwrap().lossy_bytes
}

fn norm<R: Real>(numbers: &[R]) -> f64 {
    numbers.iter().map(|x| x.get() * x.get()).sum::<f64>().sqrt()
}

fn distance<R: Real>(a: &[R], b: &[R]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a.get() - b.get()).powi(2)).sum::<f64>().sqrt()
}

fn same_bits<R: Real>(a: &[R], b: &[R]) -> bool {
    let bytes = |x: &[R]| {
        // SAFETY: floats are plain bytes.
        unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u8>(), size_of_val(x)) }.to_vec()
    };
    bytes(a) == bytes(b)
}

const KINDS: [&str; 5] = ["haar", "sparse", "waves", "product", "uneven"];

fn state<R: Real>(kind: &str, numbers: usize, seed: u64) -> Vec<R> {
    let mut random = Random(seed);
    let mut of = |i: usize| {
        let (amplitude, imaginary) = (i / 2, i % 2);
        let phase = |angle: f64| if imaginary == 1 { angle.sin() } else { angle.cos() };
        match kind {
            "haar" => random.gaussian(),
            "sparse" if amplitude % 61 == 3 => random.gaussian(),
            "sparse" => 0.0,
            "waves" => phase(0.37 * amplitude as f64) + 0.2 * phase(-0.0011 * amplitude as f64),
            "product" => phase((0..20).filter(|q| amplitude >> q & 1 == 1).map(|q| 0.3 + 0.1 * q as f64).sum()),
            // Chunks of very different norms, each without structure.
            _ => random.gaussian() * 10f64.powi(-((i * size_of::<R>() / CHUNK) as i32 % 7)),
        }
    };
    let raw: Vec<f64> = (0..numbers).map(&mut of).collect();
    let whole = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.iter().map(|x| R::of(x / whole)).collect()
}

/// Gates on some runs of amplitudes of both: a phase, or a rotation between two runs.
fn gates<R: Real>(random: &mut Random, both: [&mut [R]; 2]) {
    const RUN: usize = 4096;
    let [one, two] = both;
    let runs = one.len() / RUN;
    for _ in 0..1 + random.next() as usize % runs {
        let (a, b) = (random.next() as usize % runs * RUN, random.next() as usize % runs * RUN);
        let (sin, cos) = (random.uniform() * 6.0).sin_cos();
        for numbers in [&mut *one, &mut *two] {
            for k in 0..RUN / 2 {
                let (i, j) = if a == b { (a + 2 * k, a + 2 * k + 1) } else { (a + 2 * k, b + 2 * k) };
                let (x, y) = (numbers[i].get(), numbers[j].get());
                (numbers[i], numbers[j]) = (R::of(cos * x - sin * y), R::of(sin * x + cos * y));
            }
        }
    }
}

/// Random passes of gates and evictions. Gives what was accounted.
fn passes<R: Real>(kind: &str, tolerance: f64, infidelity: f64, seed: u64) -> f64 {
    let mut random = Random(seed);
    let mut exact: Vec<R> = state(kind, 2 * MIB / size_of::<R>(), seed + 100);
    let numbers: &mut [R] = region(2 * MIB, CHUNK, tolerance);
    let before = PROCESS.spent();
    PROCESS.set_limit(if infidelity > 0.0 { before + infidelity } else { 0.0 });
    numbers.copy_from_slice(&exact);
    let rounding = if size_of::<R>() == 4 { 1e-6 } else { 1e-13 };
    let per_chunk = CHUNK / size_of::<R>();
    let mut most_lossy = 0;
    for pass in 0..12 {
        for _ in 0..1 + random.next() % 4 {
            let (first, count) = (random.next() as usize % 32, 1 + random.next() as usize % 32);
            let end = (first + count).min(32);
            evict(&numbers[if pass == 0 { 0..32 * per_chunk } else { first * per_chunk..end * per_chunk }]);
            most_lossy = most_lossy.max(lossy_bytes(numbers));
            // A reader of some of it.
            let at = random.next() as usize % numbers.len();
            std::hint::black_box(numbers[at]);
        }
        if pass > 0 {
            gates(&mut random, [&mut exact, numbers]);
        }
        evict(numbers);
        let made = distance(&exact, numbers) / norm(&exact);
        let accounted = total(numbers);
        let what = format!("{kind}, {} bytes, tolerance {tolerance}, budget {infidelity}, pass {pass}", size_of::<R>());
        assert!(made <= accounted + rounding * (pass + 1) as f64, "{what}: made {made}, accounted {accounted}");
        assert!(tolerance == 0.0 || accounted <= tolerance, "{what}: {accounted}");
        assert!(infidelity == 0.0 || PROCESS.spent() <= PROCESS.limit(), "{what}: {}", PROCESS.spent());
        assert!((PROCESS.spent() - before - accounted * accounted).abs() <= 1e-9 * (1e-6 + PROCESS.spent()), "{what}");
    }
    let accounted = total(numbers);
    assert!(most_lossy > 0 || kind == "sparse", "{kind}: nothing was compressed with loss");
    free(numbers);
    PROCESS.set_limit(0.0);
    accounted
}

#[test]
fn the_measured_error_never_passes_the_accounted_one() {
    for (round, strategy) in
        [Strategy::Adaptive, Strategy::Compact, Strategy::Latency, Strategy::Throughput].into_iter().enumerate()
    {
        let _turn = start(64 * MIB, strategy, round % 2 == 1);
        for (k, kind) in KINDS.into_iter().enumerate() {
            for (b, (tolerance, infidelity)) in [(1e-2, 0.0), (1e-1, 1e-4), (0.0, 1e-3)].into_iter().enumerate() {
                let seed = (round * 100 + k * 10 + b) as u64;
                let accounted = if (k + b + round) % 2 == 0 {
                    passes::<f64>(kind, tolerance, infidelity, seed)
                } else {
                    passes::<f32>(kind, tolerance, infidelity, seed)
                };
                println!("{kind} {tolerance} {infidelity} {strategy:?}: {accounted}");
            }
        }
        stop();
    }
}

#[test]
fn an_unchanged_chunk_is_stored_again_for_nothing() {
    let _turn = start(64 * MIB, Strategy::Adaptive, false);
    for kind in KINDS {
        let numbers: &mut [f64] = region(4 * MIB, 0, 1e-2);
        numbers.copy_from_slice(&state::<f64>(kind, numbers.len(), 3));
        evict(numbers);
        let (cost, held) = (total(numbers), lossy_bytes(numbers));
        let once = numbers.to_vec();
        for _ in 0..6 {
            evict(numbers);
            assert!(distance(&once, numbers) <= 1e-13, "{kind}: changed by being read");
        }
        assert!(total(numbers) <= cost * (1.0 + 1e-9) + 1e-13, "{kind}: {} after {cost}", total(numbers));
        // And when nothing may be lost any more, what was rounded keeps its short form.
        PROCESS.set_limit(f64::MIN_POSITIVE);
        evict(numbers);
        if kind == "haar" {
            let stats = paged::region_stats(numbers.as_ptr().cast()).unwrap();
            assert!(held > 0 && stats.lossy_bytes == 4 * MIB && stats.compressed_bytes < MIB, "{stats:?}");
        }
        assert!(distance(&once, numbers) <= 1e-13);
        PROCESS.set_limit(0.0);
        free(numbers);
    }
    stop();
}

#[test]
fn nothing_is_lost_when_the_budget_is_spent_or_never_was() {
    let _turn = start(64 * MIB, Strategy::Adaptive, false);
    let numbers: &mut [f64] = region(4 * MIB, CHUNK, 1e-2);
    numbers.copy_from_slice(&state::<f64>("haar", numbers.len(), 4));
    evict(numbers);
    assert!(total(numbers) > 1e-4 && lossy_bytes(numbers) == 4 * MIB);
    let spent = total(numbers);
    PROCESS.set_limit(PROCESS.spent());
    for seed in 0..3 {
        let mut fresh = state::<f64>("haar", numbers.len(), 5 + seed);
        fresh.iter_mut().step_by(97).for_each(|x| *x = -0.0); // zeros have a sign, and keep it
        numbers.copy_from_slice(&fresh);
        evict(numbers);
        assert!(same_bits(&fresh, numbers), "lost although nothing was left to lose");
        assert_eq!(total(numbers), total(numbers).max(spent));
    }
    assert!(total(numbers) <= spent * (1.0 + 1e-9));
    free(numbers);
    // An element type without tolerance and budget permits nothing; bytes never do.
    PROCESS.set_limit(0.0);
    let numbers: &mut [f64] = region(4 * MIB, CHUNK, 0.0);
    let mut fresh = state::<f64>("haar", numbers.len(), 9);
    numbers.copy_from_slice(&fresh);
    evict(numbers);
    assert!(same_bits(&fresh, numbers) && total(numbers) == 0.0);
    PROCESS.set_limit(PROCESS.spent() + 1e-3);
    let start = numbers.as_mut_ptr().cast();
    paged::set_element(start, None).unwrap();
    evict(numbers);
    assert!(same_bits(&fresh, numbers) && total(numbers) == 0.0);
    paged::set_element(start, Some(Element::C128)).unwrap();
    numbers.copy_from_slice(&fresh); // what is in the swap file and did not change stays there
    evict(numbers);
    assert!(same_bits(&fresh, numbers) && total(numbers) == 0.0);
    numbers.iter_mut().zip(&mut fresh).for_each(|(x, y)| (*x, *y) = (-*x, -*y));
    evict(numbers);
    assert!(!same_bits(&fresh, numbers) && total(numbers) > 0.0);
    assert!(paged::set_element(start.wrapping_add(8), Some(Element::C128)).is_err());
    free(numbers);
    PROCESS.set_limit(0.0);
    stop();
}

#[test]
fn a_tolerance_lasts_long_and_is_never_passed() {
    let _turn = start(64 * MIB, Strategy::Adaptive, false);
    let numbers: &mut [f64] = region(MIB, CHUNK, 5e-3);
    let mut before = 0.0;
    let mut state = state::<f64>("haar", numbers.len(), 6);
    numbers.copy_from_slice(&state);
    for pass in 0..40 {
        evict(numbers);
        let held = lossy_bytes(numbers);
        numbers.iter_mut().zip(&mut state).for_each(|(x, y)| (*x, *y) = (-*y, -*y)); // new numbers, as if from a gate
        let now = total(numbers);
        assert!(now <= 5e-3 && (pass >= 30 || now > before && held == MIB), "pass {pass}: {now} after {before}, {held} bytes");
        before = now;
    }
    let report = paged::loss(numbers.as_ptr().cast()).unwrap();
    assert!(report.passes > 30 && report.last_pass < report.mean_pass && report.total > 4.9e-3, "{report:?}");
    free(numbers);
    stop();
}

#[test]
fn what_is_no_amplitude_is_left_alone() {
    let _turn = start(64 * MIB, Strategy::Adaptive, false);
    let numbers: &mut [f64] = region(16 * CHUNK, CHUNK, 1e-2);
    let mut want = state::<f64>("haar", numbers.len(), 1);
    let per = CHUNK / 8;
    want[per + 5] = f64::NAN;
    want[2 * per + 77] = f64::INFINITY;
    want[3 * per] = f64::from_bits(4711); // subnormal: a small integer
    for (i, x) in want[4 * per..5 * per].iter_mut().enumerate() {
        *x = f64::from_bits(Random(i as u64).next() & 0xFFFF_FFFF); // indices
    }
    for (i, x) in want[5 * per..6 * per].iter_mut().enumerate() {
        *x = f64::from_bits(-(i as i64 * 7919) as u64); // negative ones
    }
    numbers.copy_from_slice(&want);
    evict(numbers);
    for chunk in 0..16 {
        let range = chunk * per..(chunk + 1) * per;
        assert_eq!(same_bits(&want[range.clone()], &numbers[range]), (1..6).contains(&chunk), "chunk {chunk}");
    }
    free(numbers);
    stop();
}

#[test]
fn the_account_goes_where_the_data_goes() {
    let _turn = start(96 * MIB, Strategy::Adaptive, true);
    let numbers: &mut [f64] = region(8 * MIB, CHUNK, 1e-2);
    let exact = state::<f64>("haar", numbers.len(), 8);
    numbers.copy_from_slice(&exact);
    evict(numbers);
    let lost = total(numbers);
    assert!(lost > 1e-4);
    // A snapshot has the same error, and goes on by itself.
    let copy = paged::snapshot(numbers.as_mut_ptr().cast(), 1, false).unwrap().as_ptr();
    // SAFETY: the start of a region of that size, ours until it is freed.
    let copy: &mut [f64] = unsafe { std::slice::from_raw_parts_mut(copy.cast(), numbers.len()) };
    assert!(total(copy) >= lost && total(copy) <= total(numbers) && same_bits(copy, numbers));
    copy.iter_mut().for_each(|x| *x *= -1.0);
    evict(copy);
    assert!(distance(&exact, &copy.iter().map(|x| -*x).collect::<Vec<_>>()) <= total(copy) && total(copy) < 1e-2);
    free(copy);
    // A buffer that moves.
    evict(numbers);
    // SAFETY: the old slice is not used after.
    let moved = unsafe { paged::resize(numbers.as_mut_ptr().cast(), 12 * MIB) }.unwrap().as_ptr();
    // SAFETY: as above.
    let numbers: &mut [f64] = unsafe { std::slice::from_raw_parts_mut(moved.cast(), 12 * MIB / 8) };
    assert!(total(numbers) >= lost && distance(&exact, &numbers[..exact.len()]) <= total(numbers));
    let before = total(numbers);
    numbers[..exact.len()].iter_mut().for_each(|x| *x *= -1.0);
    evict(numbers);
    assert!(lossy_bytes(numbers) == 8 * MIB && total(numbers) <= 1e-2, "it is still an array of amplitudes: {before}");
    // A checkpoint, of what is stored and of what is in memory.
    let saved = numbers.to_vec();
    let path = std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, std::path::PathBuf::from);
    let path = path.join(format!("qmem-lossy-{}", std::process::id()));
    let name = CString::new(path.to_str().unwrap()).unwrap();
    evict(&numbers[..exact.len() / 2]);
    paged::write_checkpoint(Some(numbers.as_mut_ptr().cast()), &name).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 5 * MIB as u64, "a checkpoint of rounded amplitudes takes {bytes} bytes");
    let lost = total(numbers);
    free(numbers);
    let image = Saved::open(&name, None).unwrap();
    let request = Request {
        size: image.size(),
        align: 0,
        chunk_size: image.chunk_size(),
        swappable: true,
        element: None,
        tolerance: image.tolerance(),
        pooled: false,
        tag: 1,
    };
    let restored = paged::allocate(&request).unwrap().as_ptr();
    // SAFETY: a fresh region of the saved size.
    unsafe { image.load(restored) }.unwrap();
    // SAFETY: as above.
    let numbers: &mut [f64] = unsafe { std::slice::from_raw_parts_mut(restored.cast(), image.size() / 8) };
    assert!(same_bits(&saved, numbers));
    let account = paged::loss(restored).unwrap();
    assert!(account.total >= lost * (1.0 - 1e-12) && account.passes >= 1, "the account was restored: {account:?} after {lost}");
    numbers.copy_from_slice(&state::<f64>("haar", numbers.len(), 12));
    evict(numbers);
    assert!(total(numbers) > lost && total(numbers) < 1e-2, "and bounds what may be lost further");
    std::fs::remove_file(&path).unwrap();
    free(numbers);
    stop();
}

/// The program, evictions of its own and background eviction, all at once, in a quarter of the memory.
#[test]
fn many_threads_in_a_quarter_of_the_memory() {
    let _turn = start(32 * MIB, Strategy::Adaptive, true);
    const PARTS: usize = 4;
    let numbers: &mut [f64] = region(96 * MIB, 256 << 10, 5e-2);
    let mut exact = vec![0.0f64; numbers.len()];
    let part = numbers.len() / PARTS;
    let run = 32 << 10;
    std::thread::scope(|scope| {
        for (t, (mine, truth)) in numbers.chunks_mut(part).zip(exact.chunks_mut(part)).enumerate() {
            scope.spawn(move || {
                let mut random = Random(t as u64);
                for (x, y) in mine.iter_mut().zip(truth.iter_mut()) {
                    *x = random.gaussian() / 4000.0;
                    *y = *x;
                }
                for _ in 0..4 {
                    for at in (0..part).step_by(run) {
                        let (sin, cos) = (random.uniform() * 6.0).sin_cos();
                        for numbers in [&mut *mine, &mut *truth] {
                            for i in (at..at + run).step_by(2) {
                                let (x, y) = (numbers[i], numbers[i + 1]);
                                (numbers[i], numbers[i + 1]) = (cos * x - sin * y, sin * x + cos * y);
                            }
                        }
                        if random.next().is_multiple_of(11) {
                            let _ = paged::evict(mine[at..].as_ptr().cast(), run * 8); // it may be in use
                        }
                    }
                }
            });
        }
    });
    let made = distance(&exact, numbers) / norm(&exact);
    let report = paged::loss(numbers.as_ptr().cast()).unwrap();
    println!("made {made}, {report:?}, {:?}", paged::region_stats(numbers.as_ptr().cast()).unwrap());
    assert!(made <= report.total + 1e-13 && report.total <= 5e-2 && report.passes > 1);
    free(numbers);
    stop();
}
