//! fork(2) with paged buffers: child and parent each have their own copy of everything, like of any other memory, whatever of it
//! was resident, compressed or swapped, and whatever other threads did at that moment. Children end by _exit: 0 is well.

use qmem::config;
use qmem::monitor::account;
use qmem::paged::{self, Options, Request, Strategy};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());
const MIB: usize = 1 << 20;
/// A child that takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(budget: usize, compression: bool, swapping: bool) -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    account::set_budget(budget);
    paged::configure(&Options { strategy: Strategy::Adaptive, compression, deduplication: true, swapping }).expect("pager");
    turn
}

fn stop() {
    paged::shutdown();
    account::set_budget(usize::MAX);
    assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
}

fn region(bytes: usize, chunk_size: usize) -> &'static mut [u64] {
    let request =
        Request { size: bytes, align: 0, chunk_size, swappable: true, element: None, tolerance: 0.0, pooled: false, tag: 1 };
    let p = paged::allocate(&request).expect("granted");
    // SAFETY: a fresh region of that size, ours until `free`.
    unsafe { std::slice::from_raw_parts_mut(p.as_ptr().cast(), bytes / 8) }
}

fn free(words: &mut [u64]) {
    // SAFETY: made by `region` and not used after.
    unsafe { paged::free(words.as_mut_ptr().cast()).unwrap() };
}

/// Runs of every kind of content, by MiB: noise, half noise, smooth, constant, zero.
fn word(i: usize, salt: u64) -> u64 {
    let mixed = (i as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    match i * 8 / (3 * MIB) % 5 {
        0 => mixed,
        1 if i.is_multiple_of(2) => mixed,
        1 => salt,
        2 => (i / 700) as u64 ^ salt,
        3 => salt,
        _ => 0,
    }
}

fn write(words: &mut [u64], salt: u64) {
    words.iter_mut().enumerate().for_each(|(i, w)| *w = word(i, salt));
}

/// The first word that is not what it should be.
fn wrong(words: &[u64], salt: u64) -> Option<usize> {
    (0..words.len()).find(|i| words[*i] != word(*i, salt))
}

/// Forks; the child runs `work`, which may use nothing but its own memory and system calls, and ends with what it returns.
fn fork(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child ends by _exit without returning to the test.
    let id = unsafe { libc::fork() };
    assert!(id >= 0, "fork");
    if id == 0 {
        let code = work();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    id
}

fn wait(id: i32) -> i32 {
    let since = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: our own child.
        if unsafe { libc::waitpid(id, &raw mut status, libc::WNOHANG) } == id {
            return status;
        }
        if since.elapsed() > PATIENCE {
            // SAFETY: our own child.
            unsafe { libc::kill(id, libc::SIGKILL) };
            panic!("the child {id} is stuck");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn well(id: i32) {
    assert_eq!(wait(id), 0, "the child's wait status (exit code << 8, or a signal)");
}

/// Two pipes: `tell` lets the other side go on, `hear` waits for that.
struct Talk([i32; 2]);

impl Talk {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        Self(ends)
    }
    fn tell(&self) {
        // SAFETY: one byte of ours.
        unsafe { libc::write(self.0[1], [0u8].as_ptr().cast(), 1) };
    }
    fn hear(&self) {
        let mut byte = 0u8;
        // SAFETY: one byte of ours.
        unsafe { libc::read(self.0[0], (&raw mut byte).cast(), 1) };
    }
}

#[test]
fn child_and_parent_have_their_own_copies() {
    for (compression, swapping, chunk) in [(true, true, 0), (false, true, 0), (true, true, 64 << 10), (false, true, 256 << 10)] {
        let _turn = start(40 * MIB, compression, swapping);
        let words = region(if chunk == 0 { 90 * MIB } else { 60 * MIB }, chunk);
        write(words, 1);
        let (to_child, to_parent) = (Talk::new(), Talk::new());
        let child = fork(|| {
            to_child.hear(); // the parent has overwritten everything, so all of its chunks went through memory and swap again
            if wrong(words, 1).is_some() {
                return 1;
            }
            write(words, 3);
            to_parent.tell();
            to_child.hear();
            i32::from(wrong(words, 3).is_some()) * 2
        });
        assert_eq!(wrong(words, 1), None);
        write(words, 2);
        assert_eq!(wrong(words, 2), None);
        to_child.tell();
        to_parent.hear();
        assert_eq!(wrong(words, 2), None, "after the child wrote");
        to_child.tell();
        well(child);
        assert_eq!(wrong(words, 2), None, "after the child ended");
        write(words, 4);
        assert_eq!(wrong(words, 4), None);
        free(words);
        stop();
    }
}

#[test]
fn a_child_may_do_everything() {
    let _turn = start(64 * MIB, true, true);
    let words = region(150 * MIB, 0);
    write(words, 5);
    let child = fork(|| {
        let more = region(100 * MIB, 0);
        write(more, 6);
        if wrong(words, 5).is_some() || wrong(more, 6).is_some() {
            return 1;
        }
        // SAFETY: nobody uses the old address.
        let Ok(moved) = (unsafe { paged::resize(words.as_mut_ptr().cast(), 160 * MIB) }) else { return 2 };
        // SAFETY: the resized region.
        let moved = unsafe { std::slice::from_raw_parts_mut(moved.as_ptr().cast::<u64>(), 150 * MIB / 8) };
        if wrong(moved, 5).is_some() {
            return 3;
        }
        if paged::pin(more.as_ptr().cast(), 4 * MIB).is_err() || paged::unpin(more.as_ptr().cast(), 4 * MIB).is_err() {
            return 4;
        }
        free(moved);
        free(more);
        paged::shutdown();
        i32::from(account::resident() != 0) * 5
    });
    well(child);
    assert_eq!(wrong(words, 5), None);
    free(words);
    stop();
}

#[test]
fn without_swap_or_compression_a_child_reads_what_is_resident() {
    let _turn = start(96 * MIB, false, false);
    let words = region(64 * MIB, 0);
    write(words, 7);
    well(fork(|| {
        if wrong(words, 7).is_some() {
            return 1;
        }
        write(words, 8);
        i32::from(wrong(words, 8).is_some()) * 2
    }));
    assert_eq!(wrong(words, 7), None);
    free(words);
    stop();
}

#[test]
fn grandchildren_read_what_every_ancestor_stored() {
    let _turn = start(64 * MIB, false, true);
    let words = region(100 * MIB, 0);
    write(words, 0);
    // Each generation replaces its own tenth and leaves the rest to be read through all files.
    fn generation(words: &mut [u64], depth: u64) -> i32 {
        let tenth = words.len() / 10;
        for part in 0..10 {
            let salt = if part < depth { part + 100 } else { 0 };
            let from = part as usize * tenth;
            if (from..from + tenth).any(|i| words[i] != word(i, salt)) {
                return depth as i32 + 1;
            }
        }
        if depth == 5 {
            return 0;
        }
        let from = depth as usize * tenth;
        (from..from + tenth).for_each(|i| words[i] = word(i, depth + 100));
        let status = wait(fork(|| generation(words, depth + 1)));
        if status == 0 { 0 } else { 100 + depth as i32 }
    }
    well(fork(|| generation(words, 0)));
    assert_eq!(wrong(words, 0), None);
    free(words);
    stop();
}

#[test]
fn too_many_generations_end_in_a_clean_fault() {
    let _turn = start(64 * MIB, false, true);
    let words = region(4 * MIB, 0);
    write(words, 9);
    fn generation(words: &[u64], depth: i32) -> i32 {
        if wrong(words, 9).is_some() {
            return 255;
        }
        let status = wait(fork(|| generation(words, depth + 1)));
        if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV { depth } else { libc::WEXITSTATUS(status) }
    }
    let status = wait(fork(|| generation(words, 1)));
    assert_eq!(libc::WEXITSTATUS(status), 15, "the last generation that reads");
    assert_eq!(wrong(words, 9), None);
    free(words);
    stop();
}

#[test]
fn a_child_behind_our_back_faults_and_reads_no_zeros() {
    let _turn = start(64 * MIB, true, true);
    let words = region(8 * MIB, 0);
    write(words, 10);
    // SAFETY: a bare fork without the C library; the child only reads and exits.
    let id = unsafe { libc::syscall(libc::SYS_fork) } as i32;
    if id == 0 {
        let seen = words[0];
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(seen == 0)) };
    }
    let status = wait(id);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    free(words);
    stop();
}

#[test]
fn swap_space_that_a_child_read_is_used_again() {
    config::SWAP_MAX.set(256 * MIB).unwrap();
    let _turn = start(48 * MIB, false, true);
    let words = region(100 * MIB, 0);
    write(words, 1);
    for round in 0..12 {
        let talk = Talk::new();
        let child = fork(|| {
            talk.hear();
            i32::from(wrong(words, round + 1).is_some())
        });
        write(words, round + 2); // most of it frozen, as much written anew: no room for a third time
        talk.tell();
        well(child);
        assert_eq!(wrong(words, round + 2), None);
    }
    free(words);
    stop();
    config::SWAP_MAX.set(0).unwrap();
}

/// Threads read, write, evict, prefetch, allocate and free while the process forks 60 times, or 200 and more where QMEM_TEST_SECONDS gives it longer; each child reads everything that
/// does not change and writes what it likes.
#[test]
fn forks_under_load() {
    let seconds = std::env::var("QMEM_TEST_SECONDS").map_or(20, |text| text.parse().expect("QMEM_TEST_SECONDS"));
    let _turn = start(48 * MIB, true, true);
    let fixed = region(80 * MIB, 0);
    let small = region(10 * MIB, 64 << 10);
    write(fixed, 11);
    write(small, 12);
    let stop_load = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let (fixed, small) = (&*fixed, &*small);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (stop_load, rounds) = (&stop_load, &rounds);
            scope.spawn(move || {
                let own = region(16 * MIB, [0, 128 << 10, 0][thread as usize]);
                let mut salt = thread * 1000;
                write(own, salt);
                while !stop_load.load(SeqCst) {
                    assert_eq!(wrong(own, salt), None, "thread {thread}");
                    salt += 1;
                    write(own, salt);
                    match salt % 5 {
                        0 => drop(paged::evict(fixed.as_ptr().cast(), 16 * MIB).err()),
                        1 => drop(paged::prefetch(fixed.as_ptr().cast(), 80 * MIB).err()),
                        2 => {
                            let brief = region(3 * MIB, 0);
                            write(brief, salt);
                            assert_eq!(wrong(brief, salt), None);
                            free(brief);
                        }
                        3 => {
                            if paged::pin(small.as_ptr().cast(), MIB).is_ok() {
                                paged::unpin(small.as_ptr().cast(), MIB).unwrap();
                            }
                        }
                        _ => drop(paged::stats()),
                    }
                    rounds.fetch_add(1, SeqCst);
                }
                free(own);
            });
        }
        let (end, mut forks) = (Instant::now() + Duration::from_secs(seconds), 0);
        let mut children = Vec::new();
        while forks < if seconds > 20 { 200 } else { 60 } || (seconds > 60 && Instant::now() < end) {
            children.push(fork(|| {
                let step = 1 + forks % 7;
                // Every chunk, not every word: 200 children must read it all.
                let seen = (0..fixed.len()).step_by(509 * step).all(|i| fixed[i] == word(i, 11));
                let seen_small = (0..small.len()).step_by(101).all(|i| small[i] == word(i, 12));
                i32::from(!seen) + 2 * i32::from(!seen_small)
            }));
            forks += 1;
            if children.len() == 3 || forks.is_multiple_of(50) {
                children.drain(..).for_each(well);
            }
        }
        children.drain(..).for_each(well);
        assert_eq!((wrong(fixed, 11), wrong(small, 12)), (None, None));
        stop_load.store(true, SeqCst);
        println!("{forks} forks, {} rounds of load", rounds.load(SeqCst));
    });
    for words in [fixed, small] {
        // SAFETY: made by `region` and not used after.
        unsafe { paged::free(words.as_ptr().cast_mut().cast()).unwrap() };
    }
    stop();
}
