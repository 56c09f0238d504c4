//! The pager on a disk that is full or broken, in a kernel that refuses to move pages, and killed at any moment: nothing that
//! was written is lost but what the disk lost, and no file stays behind. Each case runs in a child under a preloaded shim.

use qmem::config;
use qmem::monitor::account;
use qmem::paged::{self, Options, Request, Strategy};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const CHUNK: usize = 2 * MIB;

/// The shim, compiled once.
fn shim() -> &'static PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/paged_faults/shim.c");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&to).arg(source).status();
        assert!(status.expect("cc").success(), "the shim compiles");
        to
    })
}

fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]).env("LD_PRELOAD", shim());
    command
}

/// Runs a child test to its end; what it printed on stderr.
fn passes(name: &str) -> String {
    let out: Output = child(name).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name}: {:?}\n{stdout}\n{stderr}", out.status);
    stderr.into_owned()
}

fn symbol(name: &std::ffi::CStr) -> *mut libc::c_void {
    // SAFETY: only looks the name up.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!found.is_null(), "run under the shim");
    found
}

/// One of the shim's variables.
fn plan(name: &std::ffi::CStr) -> &'static AtomicI32 {
    // SAFETY: an aligned int of the shim, for ever there.
    unsafe { &*symbol(name).cast::<AtomicI32>() }
}

/// Can this byte be read, or does that raise SIGBUS?
fn readable(at: *const u64) -> bool {
    // SAFETY: the shim's function of that type.
    let probe: extern "C" fn(*const u64) -> i32 = unsafe { std::mem::transmute(symbol(c"fault_probe")) };
    probe(at) != 0
}

fn start(budget: usize, compression: bool) {
    account::set_budget(budget);
    paged::configure(&Options { strategy: Strategy::Adaptive, compression, deduplication: false, swapping: true })
        .expect("pager");
}

fn stop(words: &mut [u64]) {
    // SAFETY: made by `region` and not used after.
    unsafe { paged::free(words.as_mut_ptr().cast()).unwrap() };
    paged::shutdown();
    assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
}

fn region(size: usize, chunk_size: usize) -> &'static mut [u64] {
    let request = Request { size, align: 0, chunk_size, swappable: true, element: None, tolerance: 0.0, pooled: false, tag: 1 };
    let p = paged::allocate(&request).expect("granted");
    // SAFETY: a fresh region of that size, ours until `stop`.
    unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), size / 8) }
}

fn noise(i: usize, salt: u64) -> u64 {
    let x = (i as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn write(words: &mut [u64], salt: u64) {
    words.iter_mut().enumerate().for_each(|(i, w)| *w = noise(i, salt));
}

fn check(words: &[u64], salt: u64) {
    words.iter().enumerate().for_each(|(i, w)| assert_eq!(*w, noise(i, salt), "word {i}"));
}

fn evict(words: &[u64]) -> bool {
    paged::evict(words.as_ptr().cast(), words.len() * 8).is_ok()
}

/// A disk that refuses writes: what is in memory stays there and right, and all goes on when it takes them again.
fn refused_writes(error: i32) {
    start(48 * MIB, false);
    let words = region(96 * MIB, 0);
    let few = words.len() / 4;
    write(&mut words[..few], 1);
    plan(c"fault_write").store(error, SeqCst);
    assert!(!evict(&words[..few]), "nowhere to go");
    check(&words[..few], 1);
    plan(c"fault_write").store(0, SeqCst);
    assert!(evict(&words[..few]));
    write(&mut words[..few], 2); // over copies in the swap file
    plan(c"fault_write").store(error, SeqCst);
    assert!(!evict(&words[..few]));
    check(&words[..few], 2);
    // More than the budget: accesses wait, and the disk recovers meanwhile.
    let repair = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(3));
        plan(c"fault_write").store(0, SeqCst);
    });
    write(words, 3);
    check(words, 3);
    assert!(plan(c"fault_writes").load(SeqCst) > 0);
    repair.join().unwrap();
    plan(c"fault_write_one_in").store(3, SeqCst);
    for salt in 4..8 {
        write(words, salt);
        check(words, salt);
    }
    plan(c"fault_write_one_in").store(0, SeqCst);
    stop(words);
}

#[test]
#[ignore = "run as a child"]
fn child_full() {
    refused_writes(libc::ENOSPC);
}

#[test]
#[ignore = "run as a child"]
fn child_broken() {
    refused_writes(libc::EIO);
}

#[test]
fn a_disk_that_refuses_writes_loses_nothing() {
    for (name, error) in [("child_full", "errno 28, no space"), ("child_broken", "errno 5")] {
        let told = passes(name);
        let times = told.matches("could not be written").count();
        assert!(told.contains(error) && told.contains("the data stays in memory"), "{told}");
        assert!((1..20).contains(&times), "told {times} times: {told}");
    }
}

#[test]
#[ignore = "run as a child"]
fn child_full_for_good() {
    start(48 * MIB, false);
    let words = region(96 * MIB, 0);
    plan(c"fault_write").store(libc::ENOSPC, SeqCst);
    let reached = (0..words.len()).step_by(CHUNK / 8).take_while(|i| {
        let there = readable(&raw const words[*i]);
        if there {
            write(&mut words[*i..i + CHUNK / 8], *i as u64);
        }
        there
    });
    let reached = reached.count();
    assert!((16..=24).contains(&reached), "{reached} chunks fit");
    for i in (0..reached).map(|c| c * CHUNK / 8) {
        check(&words[i..i + CHUNK / 8], i as u64);
    }
    stop(words);
}

#[test]
fn a_disk_that_stays_full_is_a_bus_error_with_a_message() {
    let begin = Instant::now();
    let told = passes("child_full_for_good");
    assert!(told.contains("no memory for a paged chunk") && told.contains("errno 28"), "{told}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

/// A place of the disk that cannot be read, or is read wrongly, costs the chunk that lies there and nothing else.
fn lost_chunk(how: i32, compression: bool, chunk: usize) {
    config::PREFETCH_DEPTH.set(1).unwrap();
    start(48 * MIB, compression);
    let words = region(24 * MIB, chunk);
    write(words, 1);
    assert!(evict(words));
    let (per, lost) = (chunk / 8, 5);
    plan(c"fault_read").store(how, SeqCst);
    assert!(!readable(&raw const words[lost * per + 77]), "damaged bytes were mapped");
    assert!(plan(c"fault_reads").load(SeqCst) > 0);
    for c in 0..words.len() / per {
        let first = &raw const words[c * per];
        assert_eq!(readable(first), c != lost, "chunk {c}");
        if c != lost {
            (c * per..(c + 1) * per).for_each(|i| assert_eq!(words[i], noise(i, 1), "word {i}"));
        }
    }
    let (from, bytes) = (words.as_ptr().cast::<u8>(), words.len() * 8);
    assert!(paged::pin(from, bytes).is_err(), "a lost chunk cannot be pinned");
    assert_eq!(paged::stats().pinned_bytes, 0);
    // SAFETY: the region is live and nobody uses it; a lost chunk moves as such.
    let moved = unsafe { paged::resize(words.as_mut_ptr().cast(), bytes + 8 * MIB).unwrap() };
    // SAFETY: as large as asked for.
    let words = unsafe { std::slice::from_raw_parts_mut(moved.as_ptr().cast::<u64>(), bytes / 8 + MIB) };
    assert!(!readable(&raw const words[lost * per]) && readable(&raw const words[lost * per + per]));
    assert_eq!(words[lost * per - 1], noise(lost * per - 1, 1));
    stop(words);
}

#[test]
#[ignore = "run as a child"]
fn child_unreadable() {
    lost_chunk(1, false, CHUNK);
}

#[test]
#[ignore = "run as a child"]
fn child_unreadable_small() {
    lost_chunk(1, true, 65536);
}

#[test]
#[ignore = "run as a child"]
fn child_damaged() {
    lost_chunk(2, false, CHUNK);
}

#[test]
#[ignore = "run as a child"]
fn child_damaged_small() {
    lost_chunk(2, true, 65536);
}

#[test]
fn a_bad_place_costs_its_chunk_alone() {
    for (name, why) in [
        ("child_unreadable", "cannot be read"),
        ("child_unreadable_small", "cannot be read"),
        ("child_damaged", "checksum"),
        ("child_damaged_small", "checksum"),
    ] {
        let told = passes(name);
        assert!(told.contains("chunk 5 of the paged buffer") && told.contains(why), "{name}: {told}");
        assert_eq!(told.matches("is lost").count(), 1, "{name}: {told}");
    }
}

/// A region twice the budget, written and read three times.
fn come_and_go(chunk: usize) {
    let words = region(96 * MIB, chunk);
    for salt in 1..4 {
        write(words, salt);
        check(words, salt);
    }
    stop(words);
}

#[test]
#[ignore = "run as a child"]
fn child_short() {
    for chunk in [CHUNK, 65536] {
        plan(c"fault_move").store(0, SeqCst); // a start that tries a move and sees it fail looks for another mechanism
        start(48 * MIB, chunk == CHUNK);
        plan(c"fault_short").store(1, SeqCst);
        plan(c"fault_move").store(3, SeqCst);
        come_and_go(chunk);
    }
    assert!(plan(c"fault_writes").load(SeqCst) > 0 && plan(c"fault_moves").load(SeqCst) > 0);
}

#[test]
fn half_done_writes_reads_and_moves_are_finished() {
    passes("child_short");
}

#[test]
#[ignore = "run as a child"]
fn child_hidden_moves() {
    for chunk in [CHUNK, 65536] {
        plan(c"fault_hidden").store(0, SeqCst);
        start(48 * MIB, chunk == CHUNK);
        plan(c"fault_hidden").store(3, SeqCst);
        come_and_go(chunk);
    }
    let moves = matches!(paged::backend_info().unwrap().kind, paged::Kind::Move);
    assert!(!moves || plan(c"fault_moves").load(SeqCst) > 0);
}

/// What Linux 6.18 does with pages that change under its hands.
#[test]
fn pages_that_moved_without_being_counted_are_found() {
    passes("child_hidden_moves");
}

#[test]
#[ignore = "run as a child, and killed"]
fn child_sweeps() {
    start(48 * MIB, false);
    let words = region(96 * MIB, 0);
    for salt in 1.. {
        write(words, salt);
        check(words, salt);
    }
}

#[test]
fn a_killed_process_leaves_no_file() {
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("swap-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let names = || std::fs::read_dir(&place).unwrap().count();
    let seconds: u64 = std::env::var("QMEM_TEST_SECONDS").map_or(10, |text| text.parse().unwrap());
    let waits = if seconds > 20 { (0..200).map(|n| n * 379 % 901).collect() } else { vec![30, 150, 400, 900] };
    for wait in waits {
        let mut process = child("child_sweeps").env("QMEM_SWAP_DIR", &place).stdout(Stdio::null()).spawn().unwrap();
        let descriptors = format!("/proc/{}/fd", process.id());
        let open = || {
            let links = std::fs::read_dir(&descriptors).unwrap().filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
            links.filter(|to| to.starts_with(&place)).collect::<Vec<_>>()
        };
        let begin = Instant::now();
        while open().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(20), "no swap file in {}", place.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(wait));
        assert!(open().iter().all(|to| to.to_string_lossy().ends_with("(deleted)")), "{:?}", open());
        assert_eq!(names(), 0, "the swap file has a name");
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(names(), 0, "a file was left behind");
    }
    std::fs::remove_dir(&place).unwrap();
}

/// Where the shim's place of the bad read is: kept here so that a renamed variable is noticed at once.
#[test]
#[ignore = "run as a child"]
fn child_names() {
    // SAFETY: an aligned int64_t of the shim.
    let place = unsafe { &*symbol(c"fault_place").cast::<AtomicI64>() };
    assert_eq!(place.load(SeqCst), -1);
}

#[test]
fn the_shim_is_there() {
    passes("child_names");
}
