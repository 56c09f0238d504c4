//! Checkpoints and snapshots: a complete earlier state after every kind of death, only what changed is written, damage is told and
//! never restored, a snapshot costs what changes.

use qmem::monitor::account;
use qmem::paged::{self, Options, Request, Saved, Strategy};
use qmem::system::{dispatch::Detour, recovery};
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

static TURN: Mutex<()> = Mutex::new(());
const MIB: usize = 1 << 20;

fn start(budget: usize) -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(budget);
    paged::configure(&Options { strategy: Strategy::Adaptive, compression: true, deduplication: false, swapping: true })
        .expect("pager");
    turn
}

fn stop() {
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
}

fn request(size: usize, chunk_size: usize) -> Request {
    Request { size, align: 0, chunk_size, swappable: true, element: None, tolerance: 0.0, pooled: false, tag: 1 }
}

fn slice(start: *mut u8, bytes: usize) -> &'static mut [u64] {
    // SAFETY: the start of a region of that size, ours until `free`.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes / 8) }
}

fn region(bytes: usize, chunk_size: usize) -> &'static mut [u64] {
    slice(paged::allocate(&request(bytes, chunk_size)).expect("granted").as_ptr(), bytes)
}

fn free(words: &mut [u64]) {
    // SAFETY: made by `region` and not used after.
    unsafe { paged::free(words.as_mut_ptr().cast()).unwrap() };
}

fn word(i: usize, salt: u64) -> u64 {
    let mixed = (i as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    match i * 8 / (2 * MIB) % 5 {
        0 => mixed ^ (mixed >> 29),
        1 if i.is_multiple_of(2) => mixed,
        2 => (i / 700) as u64 ^ salt,
        1 | 3 => salt,
        _ => 0,
    }
}

fn write(words: &mut [u64], salt: u64) {
    words.iter_mut().enumerate().for_each(|(i, w)| *w = word(i, salt));
}

fn wrong(words: &[u64], salt: u64) -> Option<usize> {
    (0..words.len()).find(|i| words[*i] != word(*i, salt))
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = path.join(format!("qmem-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn save(words: &mut [u64], path: &Path) {
    paged::write_checkpoint(Some(words.as_mut_ptr().cast()), &c(path)).unwrap();
}

/// A new region with what the file holds, or why there is none.
fn restore(path: &Path, name: Option<&str>) -> Result<&'static mut [u64], qmem::error::Error> {
    let saved = Saved::open(&c(path), name)?;
    let start = paged::allocate(&request(saved.size(), saved.chunk_size()))?.as_ptr();
    // SAFETY: a fresh region of the saved size.
    let loaded = unsafe { saved.load(start) };
    if let Err(error) = loaded {
        // SAFETY: not used after.
        unsafe { paged::free(start).unwrap() };
        return Err(error);
    }
    Ok(slice(start, saved.size()))
}

#[test]
fn what_was_saved_is_restored() {
    let folder = Folder::new("saved");
    for (chunk, bytes) in [(0, 130 * MIB), (64 << 10, 40 * MIB - 8), (8 * MIB, 60 * MIB + 4096)] {
        let _turn = start(64 * MIB);
        let path = folder.file(&format!("state-{chunk}"));
        let words = region(bytes, chunk);
        write(words, 1);
        save(words, &path);
        write(words, 2);
        let old = restore(&path, None).unwrap();
        assert_eq!((wrong(old, 1), old.len()), (None, bytes / 8));
        save(words, &path);
        free(old);
        let new = restore(&path, None).unwrap();
        assert_eq!(wrong(new, 2), None);
        free(new);
        free(words);
        stop();
    }
}

#[test]
fn only_what_changed_is_written() {
    let folder = Folder::new("changed");
    let _turn = start(96 * MIB);
    let path = folder.file("state");
    let words = region(400 * MIB, 0);
    words.iter_mut().enumerate().for_each(|(i, w)| *w = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)); // nothing to compress
    save(words, &path);
    let first = fs::metadata(&path).unwrap().len();
    assert!(first >= 400 * MIB as u64, "{first}");
    for at in [70, 150] {
        words[at * 2 * MIB / 8 + 5] ^= 1; // two of 200 chunks
    }
    save(words, &path);
    let grown = fs::metadata(&path).unwrap().len() - first;
    assert!(grown <= first / 50, "{grown} of {first} bytes were written for one percent of the chunks");
    save(words, &path);
    assert!(fs::metadata(&path).unwrap().len() - first - grown <= 64 << 10, "nothing changed");
    // A file that carries more of the past than of the present is written anew.
    for round in 0..5u64 {
        words.iter_mut().for_each(|w| *w = w.wrapping_mul(3).wrapping_add(round));
        save(words, &path);
    }
    let len = fs::metadata(&path).unwrap().len();
    assert!(len < 3 * first, "{len} bytes for a state of {first}");
    let again = restore(&path, None).unwrap();
    assert!(again == words);
    free(again);
    free(words);
    stop();
}

#[test]
fn names_tell_buffers_apart() {
    let folder = Folder::new("names");
    let _turn = start(64 * MIB);
    let path = folder.file("all");
    let (psi, phi, rest) = (region(10 * MIB, 0), region(20 * MIB, 0), region(MIB, 0));
    write(psi, 1);
    write(phi, 2);
    write(rest, 3);
    paged::set_name(psi.as_mut_ptr().cast(), "psi").unwrap();
    paged::set_name(phi.as_mut_ptr().cast(), "φ").unwrap();
    assert!(paged::set_name(rest.as_mut_ptr().cast(), "psi").unwrap_err().message.as_str().contains("already"));
    assert!(paged::set_name(rest.as_mut_ptr().cast(), &"x".repeat(64)).is_err());
    assert!(paged::set_name(rest.as_mut_ptr().cast(), "#1").is_err());
    // The name stays with a buffer that moves.
    // SAFETY: nobody uses the old address.
    let phi = slice(unsafe { paged::resize(phi.as_mut_ptr().cast(), 24 * MIB) }.unwrap().as_ptr(), 20 * MIB);
    paged::write_checkpoint(None, &c(&path)).unwrap();
    assert!(restore(&path, None).unwrap_err().message.as_str().contains("3 buffers"));
    assert!(restore(&path, Some("chi")).unwrap_err().message.as_str().contains("\"chi\""));
    let (a, b) = (restore(&path, Some("psi")).unwrap(), restore(&path, Some("φ")).unwrap());
    assert_eq!((wrong(a, 1), wrong(&b[..20 * MIB / 8], 2), b.len()), (None, None, 24 * MIB / 8));
    for words in [psi, phi, rest, a, b] {
        free(words);
    }
    stop();
}

#[test]
fn files_that_are_no_checkpoints_are_left_alone() {
    let folder = Folder::new("foreign");
    let _turn = start(64 * MIB);
    let words = region(4 * MIB, 0);
    for contents in [b"dear diary".to_vec(), vec![7; 100_000], Vec::new()] {
        let path = folder.file("diary");
        fs::write(&path, &contents).unwrap();
        let told = paged::write_checkpoint(Some(words.as_mut_ptr().cast()), &c(&path)).unwrap_err();
        assert!(told.message.as_str().contains("is no qmem checkpoint"), "{told}");
        assert_eq!(fs::read(&path).unwrap(), contents);
        assert!(restore(&path, None).is_err());
    }
    assert!(restore(&folder.file("nowhere"), None).unwrap_err().message.as_str().contains("no checkpoint"));
    let told = paged::write_checkpoint(None, &c(&folder.file("no/such/folder"))).unwrap_err();
    assert_eq!(told.status, qmem::error::Status::Io);
    free(words);
    stop();
}

/// Flipped bits, cut files, overwritten stretches: an error that says where, or the very state; never another one, never a crash.
#[test]
fn damage_is_told_and_never_restored() {
    let seconds: u64 = std::env::var("QMEM_TEST_SECONDS").map_or(10, |text| text.parse().unwrap());
    let rounds = if seconds > 60 { 10_000 } else { 400 };
    let folder = Folder::new("damage");
    let _turn = start(64 * MIB);
    let path = folder.file("state");
    let words = region(20 * MIB, 512 << 10);
    write(words, 1);
    save(words, &path);
    write(&mut words[..MIB], 1); // the same: nothing new
    words[MIB / 2] ^= 4;
    save(words, &path);
    let good = fs::read(&path).unwrap();
    let mut random = 88172645463325252u64;
    let mut next = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % n as u64) as usize
    };
    let (mut refused, mut named) = (0, 0);
    for round in 0..rounds {
        let mut bytes = good.clone();
        match round % 4 {
            0 => bytes.truncate(next(good.len())),
            1 => bytes[next(good.len())] ^= 1 << next(8),
            2 => {
                let at = next(good.len() - 4096);
                (0..1 + next(4096)).for_each(|i| bytes[at + i] = next(256) as u8);
            }
            _ => bytes[next(4 * 4096)] ^= 1 << next(8), // the headers
        }
        fs::write(&path, &bytes).unwrap();
        match restore(&path, None) {
            Ok(restored) => {
                assert!(restored == words, "round {round}: something else was restored");
                free(restored);
            }
            Err(error) => {
                assert_eq!(error.status, qmem::error::Status::Corrupt, "{error}");
                refused += 1;
                named += usize::from(error.message.as_str().contains("chunk "));
            }
        }
    }
    println!("{refused} of {rounds} refused, {named} with the chunk's number");
    assert!(refused > rounds / 4 && named > rounds / 10);
    free(words);
    stop();
}

/// Run as a child: checkpoints for ever, telling how many are complete.
#[test]
#[ignore = "run as a child, and killed"]
fn child_saves() {
    let path = PathBuf::from(std::env::var("QMEM_TEST_FILE").unwrap());
    let bytes = std::env::var("QMEM_TEST_BYTES").unwrap().parse().unwrap();
    let _turn = start(64 * MIB);
    let words = region(bytes, 0);
    for salt in 1.. {
        // A few chunks change each time; the rest must come from earlier checkpoints.
        let chunks = words.len() * 8 / (2 * MIB);
        for chunk in (0..chunks).filter(|chunk| chunk % 7 == salt as usize % 7) {
            words[chunk * 2 * MIB / 8..][..2 * MIB / 8].iter_mut().enumerate().for_each(|(i, w)| *w = (i as u64 ^ salt) * salt);
        }
        words[0] = salt;
        save(words, &path);
        println!("saved {salt}");
    }
}

#[test]
fn killed_at_any_moment_an_earlier_state_is_there() {
    let seconds: u64 = std::env::var("QMEM_TEST_SECONDS").map_or(10, |text| text.parse().unwrap());
    let (kills, mib) = if seconds > 60 { (200, 256) } else { (12, 64) };
    let mib = std::env::var("QMEM_TEST_MIB").map_or(mib, |text| text.parse().unwrap()); // of the state, for a longer run
    let bytes = mib * MIB;
    let longest = 900 * (mib as u64).div_ceil(256);
    let folder = Folder::new("killed");
    let path = folder.file("state");
    let _turn = start(64 * MIB);
    let (mut last, mut missed) = (0, 0);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_saves", "--exact", "--ignored", "--nocapture"])
            .env("QMEM_TEST_FILE", &path)
            .env("QMEM_TEST_BYTES", bytes.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(120 + kill * 37 * longest / 900 % longest));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("saved ")).count() as u64;
        let Ok(words) = restore(&path, None) else {
            assert!(last == 0 && told == 0, "kill {kill}: {told} checkpoints were complete, and none is to be had");
            missed += 1;
            continue;
        };
        let salt = words[0];
        assert!(salt >= told, "kill {kill}: state {salt} although {told} was told to be complete");
        let chunks = bytes / (2 * MIB);
        for chunk in 0..chunks {
            let of = (1..=salt).rev().find(|s| *s as usize % 7 == chunk % 7).unwrap_or(0);
            let is = &words[chunk * 2 * MIB / 8..][..2 * MIB / 8];
            let good = (1..is.len()).all(|i| is[i] == (i as u64 ^ of).wrapping_mul(of));
            assert!(good, "kill {kill}: chunk {chunk} is not of state {salt}");
        }
        free(words);
        last = last.max(salt);
    }
    println!(
        "{kills} kills of a process that saves {mib} MiB, {missed} of them before its first checkpoint; state {last} was the latest"
    );
    assert!(last > 0, "no child was given the time for one checkpoint");
    stop();
}

#[test]
fn a_snapshot_costs_what_changes() {
    let _turn = start(64 * MIB);
    let words = region(200 * MIB, 0);
    write(words, 1);
    let before = paged::stats();
    let copy = slice(paged::snapshot(words.as_mut_ptr().cast(), 1, false).unwrap().as_ptr(), 200 * MIB);
    let after = paged::stats();
    let held = |s: &paged::PagedStats| s.compressed_bytes + s.swapped_bytes;
    // What was resident is stored now; nothing is stored twice.
    assert!(held(&after) <= held(&before) + 64 * MIB, "{before:?} {after:?}");
    assert!(after.deduplicated_bytes >= held(&after) / 2, "{after:?}");
    assert_eq!((wrong(words, 1), wrong(copy, 1)), (None, None));
    write(&mut words[..50 * MIB / 8], 2);
    write(&mut copy[..20 * MIB / 8], 3);
    assert_eq!((wrong(&words[..50 * MIB / 8], 2), wrong(&copy[..20 * MIB / 8], 3)), (None, None));
    assert!((50 * MIB / 8..words.len()).all(|i| words[i] == word(i, 1)));
    assert!((20 * MIB / 8..copy.len()).all(|i| copy[i] == word(i, 1)));
    free(words);
    assert!((20 * MIB / 8..copy.len()).all(|i| copy[i] == word(i, 1)), "after the original was freed");
    free(copy);
    stop();
}

#[test]
fn pinned_chunks_are_copied_into_a_snapshot() {
    let _turn = start(64 * MIB);
    let words = region(20 * MIB, 0);
    write(words, 4);
    paged::pin(words.as_ptr().cast(), 6 * MIB).unwrap();
    let copy = slice(paged::snapshot(words.as_mut_ptr().cast(), 1, false).unwrap().as_ptr(), 20 * MIB);
    write(words, 5);
    assert_eq!((wrong(words, 5), wrong(copy, 4)), (None, None));
    paged::unpin(words.as_ptr().cast(), 6 * MIB).unwrap();
    free(words);
    free(copy);
    stop();
}

#[test]
fn recovery_keeps_the_last_two() {
    let folder = Folder::new("interval");
    let _turn = start(64 * MIB);
    // SAFETY: the tests take turns, and no other one reads this variable.
    unsafe { std::env::set_var("QMEM_CHECKPOINT_DIR", &folder.0) };
    let settings = recovery::Settings { max_retries: 1, checkpoint_interval: 10, logging: false, fallback: Detour::None };
    recovery::start(&settings).unwrap();
    let files = || [0, 1].map(|n| folder.file(&format!("qmem-checkpoint.{n}")));
    let state = |path: &Path| restore(path, None).ok().map(|words| (words[0], free(words)).0);
    (0..10).for_each(|_| recovery::tick().unwrap()); // due, and nothing to save yet
    let words = region(3 * MIB, 0);
    for call in 1..=35u64 {
        words[0] = call;
        if call % 2 == 0 {
            recovery::called()
        } else {
            recovery::tick().unwrap()
        }
        std::thread::sleep(Duration::from_millis(2)); // the clock of files
    }
    let mut found = files().map(|path| state(&path));
    found.sort();
    assert_eq!(found, [Some(20), Some(30)]);
    fs::remove_dir_all(&folder.0).unwrap();
    (0..4).for_each(|_| recovery::tick().unwrap());
    assert_eq!(recovery::tick().unwrap_err().status, qmem::error::Status::Io); // due, and nowhere to write
    recovery::stop().unwrap();
    recovery::clean().unwrap();
    recovery::tick().unwrap();
    free(words);
    stop();
}
