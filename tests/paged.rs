//! The pager against what every program expects of memory: what was written is read, whatever was evicted meanwhile.
//! One process-wide pager, so the tests take turns.

use qmem::monitor::account;
use qmem::paged::{self, Options, Request, Strategy};
use std::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

fn start(budget: usize, compression: bool, swapping: bool) -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(budget);
    paged::configure(&Options { strategy: Strategy::Adaptive, compression, deduplication: false, swapping }).expect("pager");
    account::reset_peak();
    turn
}

fn stop() {
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!(account::resident(), 0, "everything charged was given back");
    assert_eq!(account::committed(), 0);
}

fn request(size: usize) -> Request {
    Request { size, align: 0, chunk_size: 0, swappable: true, element: None, tolerance: 0.0, pooled: false, tag: 1 }
}

fn region(size: usize, chunk_size: usize) -> &'static mut [u64] {
    let p = paged::allocate(&Request { chunk_size, ..request(size) }).expect("granted");
    // SAFETY: a fresh region of that size, ours until `free`.
    unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), size / 8) }
}

fn free(words: &mut [u64]) {
    // SAFETY: made by `region` and not used after.
    unsafe { paged::free(words.as_mut_ptr().cast()).unwrap() };
}

fn mix(i: u64, salt: u64) -> u64 {
    let x = (i ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Noise,
    Half,
    Smooth,
    Constant,
    Zero,
}

fn value(content: Content, i: usize, salt: u64) -> u64 {
    match content {
        Content::Noise => mix(i as u64, salt),
        Content::Half if i.is_multiple_of(2) => mix(i as u64, salt),
        Content::Half => salt,
        Content::Smooth => (i / 700) as u64 ^ salt,
        Content::Constant => salt,
        Content::Zero => 0,
    }
}

fn sweep(words: &mut [u64], content: Content, salt: u64, next: u64) {
    for (i, w) in words.iter_mut().enumerate() {
        assert_eq!(*w, value(content, i, salt), "word {i}, {content:?}");
        *w = value(content, i, next);
    }
}

#[test]
fn what_was_written_is_read_again() {
    for chunk in [0, 64 << 10, 256 << 10, 4 * MIB] {
        for content in [Content::Noise, Content::Half, Content::Smooth, Content::Constant, Content::Zero] {
            let _turn = start(48 * MIB, true, true);
            let words = region(160 * MIB, chunk);
            sweep(words, Content::Zero, 0, 1);
            for (i, w) in words.iter_mut().enumerate() {
                *w = value(content, i, 1);
            }
            for round in 1..4 {
                sweep(words, content, round, round + 1);
            }
            let stats = paged::stats();
            println!("{chunk} {content:?} {stats:?}");
            assert!(account::peak() <= 48 * MIB, "peak {} over budget", account::peak());
            assert!(stats.evictions > 40 && stats.logical_bytes == 160 * MIB, "{stats:?}");
            free(words);
            stop();
        }
    }
}

#[test]
fn many_threads_many_regions() {
    let _turn = start(64 * MIB, true, true);
    let regions: Vec<usize> = (0..4).map(|i| region(40 * MIB, [0, 64 << 10, 512 << 10, 0][i]).as_mut_ptr() as usize).collect();
    let words = 40 * MIB / 8;
    std::thread::scope(|s| {
        for t in 0..8usize {
            let regions = &regions;
            s.spawn(move || {
                // Each thread has every eighth 64 KiB block of every region, so chunks are shared and nothing else is.
                let mut seed = t as u64 + 1;
                let mut version = vec![0u64; 4 * 80];
                for _ in 0..1200 {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let (r, b) = ((seed >> 40) as usize % 4, (seed >> 33) as usize % 80);
                    let block = (b * 8 + t) * 8192;
                    // SAFETY: inside the region, and no other thread has this block.
                    let mine =
                        unsafe { std::slice::from_raw_parts_mut((regions[r] as *mut u64).add(block), 8192.min(words - block)) };
                    let old = version[r * 80 + b];
                    version[r * 80 + b] += 1;
                    for (i, w) in mine.iter_mut().enumerate() {
                        let want =
                            if old == 0 { 0 } else { value(if r == 3 { Content::Smooth } else { Content::Noise }, i, old) };
                        assert_eq!(*w, want, "region {r} block {b} of thread {t}, version {old}");
                        *w = value(if r == 3 { Content::Smooth } else { Content::Noise }, i, old + 1);
                    }
                    if seed.is_multiple_of(97) {
                        paged::evict(mine.as_ptr().cast(), 8192).ok();
                        paged::prefetch(mine.as_ptr().cast(), 8192).unwrap();
                    }
                }
            });
        }
    });
    assert!(account::peak() <= 64 * MIB, "peak {}", account::peak());
    for r in regions {
        // SAFETY: made above, and the threads have ended.
        unsafe { paged::free(r as *mut u8).unwrap() };
    }
    stop();
}

#[test]
fn pinned_chunks_stay_and_limits_are_told() {
    let _turn = start(64 * MIB, true, true);
    let words = region(128 * MIB, 0);
    for (i, w) in words.iter_mut().enumerate() {
        *w = value(Content::Noise, i, 1);
    }
    let base: *const u8 = words.as_ptr().cast();
    paged::pin(base, 8 * MIB).unwrap();
    let faults = paged::stats().page_faults;
    for w in &words[..MIB] {
        std::hint::black_box(w);
    }
    assert_eq!(paged::stats().page_faults, faults, "pinned means there");
    assert_eq!(paged::region_stats(base).unwrap().pinned_bytes, 8 * MIB);
    sweep(words, Content::Noise, 1, 2);
    let evicted = paged::evict(base, 128 * MIB).unwrap_err();
    assert!(evicted.message.as_str().contains("pinned"), "{evicted}");
    assert!(paged::region_stats(base).unwrap().resident_bytes >= 8 * MIB);
    assert_eq!(format!("{:?}", paged::pin(base, 100 * MIB).unwrap_err().status), "Limit");
    assert_eq!(paged::region_stats(base).unwrap().pinned_bytes, 8 * MIB, "nothing changed");
    paged::unpin(base, 8 * MIB).unwrap();
    assert!(paged::unpin(base, 8 * MIB).is_err() && paged::unpin(base, 128 * MIB).is_err());
    paged::evict(base, 128 * MIB).unwrap();
    assert_eq!(paged::region_stats(base).unwrap().resident_bytes, 0);
    sweep(words, Content::Noise, 2, 3);
    for (ptr, bytes) in [(base, 0), (base, 128 * MIB + 1), (base.wrapping_add(128 * MIB), 1), (core::ptr::null(), 1)] {
        assert!(paged::prefetch(ptr, bytes).is_err() && paged::pin(ptr, bytes).is_err() && paged::evict(ptr, bytes).is_err());
    }
    free(words);
    stop();
}

#[test]
fn pins_and_the_compressed_pool_share_the_budget() {
    for pin_first in [false, true] {
        let _turn = start(64 * MIB, true, true);
        let (shrinks, pinned) = (region(100 * MIB, 0), region(40 * MIB, 0));
        let third = |i: usize| if i.is_multiple_of(2) || i.is_multiple_of(3) { 7 } else { mix(i as u64, 1) };
        let fill = |words: &mut [u64]| words.iter_mut().enumerate().for_each(|(i, w)| *w = value(Content::Noise, i, 2));
        let base: *const u8 = pinned.as_ptr().cast();
        fill(pinned);
        if pin_first {
            paged::pin(base, 40 * MIB).unwrap();
        }
        shrinks.iter_mut().enumerate().for_each(|(i, w)| *w = third(i));
        assert!(shrinks.iter().enumerate().all(|(i, w)| *w == third(i)));
        if !pin_first {
            // The pool has what this would need, and what is in it stays in memory: refused, not waited for.
            assert_eq!(format!("{:?}", paged::pin(base, 40 * MIB).unwrap_err().status), "Limit");
            assert_eq!(paged::stats().pinned_bytes, 0);
            paged::pin(base, 2 * MIB).unwrap();
        }
        sweep(pinned, Content::Noise, 2, 3);
        assert!(shrinks.iter().enumerate().all(|(i, w)| *w == third(i)));
        paged::unpin(base, if pin_first { 40 * MIB } else { 2 * MIB }).unwrap();
        assert!(account::peak() <= 64 * MIB);
        free(shrinks);
        free(pinned);
        stop();
    }
}

#[test]
fn buffers_grow_and_shrink_with_their_contents() {
    let _turn = start(64 * MIB, true, true);
    for chunk in [0, 64 << 10] {
        let mut size = 5 * MIB + 4096;
        let mut words = region(size, chunk);
        for (i, w) in words.iter_mut().enumerate() {
            *w = value(Content::Noise, i, 7);
        }
        for next in [5 * MIB + 8192, 90 * MIB, 150 * MIB + 8, 33 * MIB, 33 * MIB - 8, 4096, 12 * MIB] {
            let kept = size.min(next) / 8;
            // SAFETY: the region is live and nobody else uses it.
            let p = unsafe { paged::resize(words.as_mut_ptr().cast(), next).unwrap() };
            // SAFETY: as many bytes as asked for.
            words = unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), next / 8) };
            for (i, w) in words.iter_mut().enumerate() {
                assert_eq!(*w, if i < kept { value(Content::Noise, i, 7) } else { 0 }, "word {i} after {size} -> {next}");
                *w = value(Content::Noise, i, 7);
            }
            size = next;
            assert_eq!(account::committed(), size.next_multiple_of(if chunk == 0 { 2 * MIB } else { chunk }), "whole frames");
        }
        free(words);
    }
    stop();
}

/// Without swap: what is granted has frames, however small the buffers are.
#[test]
fn small_buffers_take_no_more_frames_than_they_are_granted() {
    let _turn = start(48 * MIB, false, false);
    let sizes = [64 << 10, 1000, (64 << 10) + 8, 200_000, 3 * MIB / 2, 2 * MIB + 8];
    let mut all: Vec<&'static mut [u64]> = Vec::new();
    for size in sizes.into_iter().cycle() {
        match paged::allocate(&request(size)) {
            // SAFETY: a fresh region of that size, ours until `free`.
            Ok(p) => all.push(unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), size / 8) }),
            Err(error) => {
                assert_eq!(format!("{:?}", error.status), "OutOfMemory");
                break;
            }
        }
    }
    let granted: usize =
        all.iter().map(|words| words.len() * 8).map(|n| n.next_multiple_of(n.next_power_of_two().clamp(64 << 10, 2 * MIB))).sum();
    assert_eq!(account::committed(), granted);
    assert!(granted > 43 * MIB, "{granted}");
    for round in 0..3 {
        for words in &mut all {
            for (i, w) in words.iter_mut().enumerate() {
                assert_eq!(*w, if round == 0 { 0 } else { value(Content::Noise, i, round) });
                *w = value(Content::Noise, i, round + 1);
            }
        }
    }
    assert!(account::peak() <= 48 * MIB, "peak {}", account::peak());
    all.into_iter().for_each(free);
    stop();
}

#[test]
fn a_small_buffer_that_grows_has_larger_chunks_and_its_contents() {
    let _turn = start(48 * MIB, true, true);
    let mut words = region(100_000, 0);
    let mut written = 0;
    for (size, granted) in [(100_000, 128 << 10), (300_000, 512 << 10), (10 * MIB + 8, 12 * MIB), (64 << 10, 2 * MIB)] {
        // SAFETY: the region is live and nobody else uses it.
        let p = unsafe { paged::resize(words.as_mut_ptr().cast(), size).unwrap() };
        // SAFETY: as many bytes as asked for.
        words = unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), size / 8) };
        assert_eq!(account::committed(), granted, "{size} bytes");
        for (i, w) in words.iter_mut().enumerate() {
            assert_eq!(*w, if i < written { value(Content::Noise, i, 3) } else { 0 }, "word {i} of {size} bytes");
            *w = value(Content::Noise, i, 3);
        }
        paged::evict(words.as_ptr().cast(), size).unwrap();
        written = words.len();
    }
    free(words);
    stop();
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let _turn = start(64 * MIB, true, false);
    let error = paged::allocate(&request(65 * MIB)).unwrap_err();
    assert!(error.message.as_str().contains("68157440") && error.message.as_str().contains("67108864"), "{error}");
    let half = region(32 * MIB, 0);
    assert!(paged::allocate(&request(33 * MIB)).is_err());
    let rest = region(32 * MIB, 0);
    free(half);
    free(rest);
    assert!(paged::allocate(&Request { chunk_size: 3 << 20, ..request(MIB) }).is_err());
    assert!(paged::allocate(&Request { chunk_size: 4096, ..request(MIB) }).is_err());
    assert!(paged::allocate(&request(usize::MAX)).is_err() && paged::allocate(&request(0)).is_err());
    stop();
}

#[test]
fn pages_dropped_by_the_program_read_as_zeros() {
    let _turn = start(64 * MIB, true, true);
    let words = region(16 * MIB, 0);
    for (i, w) in words.iter_mut().enumerate() {
        *w = i as u64 + 1;
    }
    let base = words.as_mut_ptr();
    // SAFETY: our own region; what is dropped is expected to be gone.
    unsafe { libc::madvise(base.add(512).cast(), 4096, libc::MADV_DONTNEED) };
    assert_eq!((words[511], words[512], words[1023], words[1024]), (512, 0, 0, 1025));
    // SAFETY: as above; this time the eviction meets the hole.
    unsafe { libc::madvise(base.add(4096).cast(), 4096, libc::MADV_DONTNEED) };
    paged::evict(base.cast(), 16 * MIB).unwrap();
    assert_eq!((words[4095], words[4096], words[4607], words[4608]), (4096, 0, 0, 4609));
    free(words);
    stop();
}

/// Runs this test binary again as `name` in a child, which is to die or not.
fn child(name: &str, environment: &[(&str, &str)]) -> std::process::Output {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]).envs(environment.iter().copied());
    command.output().unwrap()
}

#[test]
#[ignore = "run as a child by a_lost_bet_is_a_bus_error_with_a_message"]
fn child_bets_on_compression() {
    let _turn = start(48 * MIB, true, false);
    paged::configure(&Options { strategy: Strategy::Compact, compression: true, deduplication: false, swapping: false }).unwrap();
    let words = region(96 * MIB, 0);
    for (i, w) in words.iter_mut().enumerate() {
        *w = value(Content::Smooth, i, 1); // the bet is won
    }
    sweep(words, Content::Smooth, 1, 2);
    println!("won");
    for (i, w) in words.iter_mut().enumerate() {
        *w = value(Content::Noise, i, 1); // and lost
    }
    println!("not reached");
}

#[test]
fn a_lost_bet_is_a_bus_error_with_a_message() {
    use std::os::unix::process::ExitStatusExt;
    let out = child("child_bets_on_compression", &[]);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(stdout.contains("won") && !stdout.contains("not reached"), "{stdout}\n{stderr}");
    assert_eq!(out.status.signal(), Some(libc::SIGBUS), "{stderr}");
    assert!(stderr.contains("no memory for a paged chunk") && stderr.contains("enable swapping"), "{stderr}");
}

#[test]
fn bad_swap_directories_are_told() {
    for (dir, what) in [("/dev/shm", "tmpfs"), ("/nonexistent", "cannot be used"), ("/proc", "no swap file")] {
        let out = child("child_opens_swap", &[("QMEM_SWAP_DIR", dir)]);
        let stdout = String::from_utf8_lossy(&out.stdout);
        assert!(stdout.contains("refused") && stdout.contains(what) && stdout.contains(dir), "{dir}: {stdout}");
    }
}

#[test]
#[ignore = "run as a child by bad_swap_directories_are_told"]
fn child_opens_swap() {
    account::set_budget(64 * MIB);
    match paged::configure(&Options { strategy: Strategy::Adaptive, compression: true, deduplication: false, swapping: true }) {
        Ok(()) => println!("taken"),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
#[ignore = "run as a child by a_full_swap_file_loses_nothing"]
fn child_fills_swap() {
    qmem::config::load().unwrap();
    let _turn = start(48 * MIB, false, true);
    let words = region(96 * MIB, 0);
    for round in 0..3 {
        for (i, w) in words.iter_mut().enumerate() {
            assert_eq!(*w, if round == 0 { 0 } else { value(Content::Noise, i, round) });
            *w = value(Content::Noise, i, round + 1);
        }
    }
    let more = paged::allocate(&request(1)).unwrap_err();
    println!("whole, and: {more}");
    free(words);
}

#[test]
fn a_full_swap_file_loses_nothing() {
    // 48 MiB of frames, 64 MiB of swap less 16 in flight: the buffer is the largest that is granted, and it works.
    let out = child("child_fills_swap", &[("QMEM_SWAP_MAX", "64M")]);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && stdout.contains("whole, and: ") && stdout.contains("refused"), "{stdout}\n{stderr}");
}

#[test]
fn equal_chunks_share_one_copy_until_they_differ() {
    for (content, compression) in [(Content::Noise, false), (Content::Half, true)] {
        let _turn = start(64 * MIB, compression, true);
        let both = Options { strategy: Strategy::Adaptive, compression, deduplication: true, swapping: true };
        paged::configure(&both).unwrap();
        let twins: Vec<_> = (0..3).map(|_| region(40 * MIB, 0)).collect();
        let [a, b, c] = twins.try_into().unwrap();
        for words in [&mut *a, &mut *b, &mut *c] {
            for (i, w) in words.iter_mut().enumerate() {
                *w = value(content, i, 5);
            }
            paged::evict(words.as_ptr().cast(), 40 * MIB).unwrap();
        }
        let stats = paged::stats();
        let (held, saved) = (stats.swapped_bytes + stats.compressed_bytes, stats.deduplicated_bytes);
        assert!(held <= 41 * MIB && saved >= 2 * held - MIB, "{content:?}: {stats:?}");
        sweep(b, content, 5, 6);
        for words in [&mut *a, &mut *b, &mut *c] {
            paged::evict(words.as_ptr().cast(), 40 * MIB).unwrap();
        }
        let apart = paged::stats();
        assert!(apart.deduplicated_bytes < saved && apart.deduplicated_bytes > 0, "{content:?}: {apart:?}");
        sweep(a, content, 5, 6);
        sweep(c, content, 5, 5);
        free(c);
        sweep(b, content, 6, 7);
        sweep(a, content, 6, 7);
        free(a);
        sweep(b, content, 7, 8);
        free(b);
        stop();
    }
}

#[test]
fn a_freed_twin_takes_nothing_from_the_disk_that_the_other_needs() {
    let turn = start(48 * MIB, false, true);
    paged::configure(&Options { strategy: Strategy::Adaptive, compression: false, deduplication: true, swapping: true }).unwrap();
    let (one, other) = (region(64 * MIB, 0), region(64 * MIB, 0));
    for words in [&mut *one, &mut *other] {
        words.iter_mut().enumerate().for_each(|(i, w)| *w = value(Content::Noise, i, 3));
        paged::evict(words.as_ptr().cast(), 64 * MIB).unwrap();
    }
    assert!(paged::stats().deduplicated_bytes > 32 * MIB, "{:?}", paged::stats());
    free(other);
    sweep(one, Content::Noise, 3, 4);
    free(one);
    stop();
    drop(turn);
}

#[test]
fn a_buffer_that_shrank_is_unpinned_as_it_was_pinned() {
    let turn = start(48 * MIB, true, true);
    let words = region(3 * MIB, 0);
    paged::pin(words.as_ptr().cast(), 3 * MIB).unwrap();
    // SAFETY: nobody uses what is cut off.
    unsafe { paged::resize(words.as_mut_ptr().cast(), 3 * MIB - 4096) }.unwrap();
    paged::unpin(words.as_ptr().cast(), 3 * MIB).unwrap();
    assert_eq!(paged::stats().pinned_bytes, 0);
    free(words);
    stop();
    drop(turn);
}
