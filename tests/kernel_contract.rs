//! What the pager relies on in the kernel, asked of the kernel that runs: UFFDIO_MOVE, fault messages, POISON, MADV_DONTFORK,
//! direct I/O. Nothing of the pager is used but its system calls (`os`). A test prints why if it cannot be made here; times
//! are measured elsewhere.
#![allow(clippy::undocumented_unsafe_blocks)] // every range is this test's own

use qmem::os::file::{File, Piece};
use qmem::os::uffd::{Fault, Uffd};
use qmem::os::vm::{self, HUGE, PAGE};
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Tests take turns: a fork in one would share the pages of another. A failed assertion may leave a thread waiting for a page
/// for ever, so the alarm ends the process.
struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    unsafe { libc::alarm(120) };
    Turn(turn)
}

impl Drop for Turn {
    fn drop(&mut self) {
        unsafe { libc::alarm(0) };
    }
}

/// A userfaultfd as the pager's, or why there is none.
fn open() -> Option<Uffd> {
    Uffd::open().inspect_err(|error| println!("skipped: {error}")).ok()
}

/// Anonymous memory of a test's own, aligned to a huge page.
struct Range {
    start: usize,
    len: usize,
}

impl Range {
    fn new(len: usize, advice: i32) -> Self {
        let range = Self { start: vm::reserve(len, HUGE).unwrap().as_ptr() as usize, len };
        range.advise(0, len, advice).unwrap();
        range
    }

    /// One huge page, all there. None, and a line that says so, if the kernel gives small pages.
    fn huge(salt: u64) -> Option<Self> {
        let range = Self::new(HUGE, libc::MADV_HUGEPAGE);
        range.fill(0, HUGE, salt);
        if vm::is_huge(range.at(0)) {
            return Some(range);
        }
        println!("skipped: the kernel gave no huge page (transparent_hugepage is off, or memory is short)");
        None
    }

    /// `count` small pages, all there.
    fn small(count: usize, salt: u64) -> Self {
        let range = Self::new(count * PAGE, libc::MADV_NOHUGEPAGE);
        range.fill(0, count * PAGE, salt);
        range
    }

    fn registered(uffd: &Uffd, len: usize, advice: i32) -> Self {
        let range = Self::new(len, advice);
        uffd.register(range.at(0), len).unwrap();
        range
    }

    fn at(&self, offset: usize) -> usize {
        self.start + offset
    }

    fn advise(&self, from: usize, len: usize, advice: i32) -> Result<(), i32> {
        unsafe { vm::advise(self.at(from) as *mut u8, len, advice) }
    }

    fn fill(&self, from: usize, len: usize, salt: u64) {
        for offset in (from..from + len).step_by(8) {
            unsafe { (self.at(offset) as *mut u64).write(salt ^ offset as u64) };
        }
    }

    fn holds(&self, from: usize, len: usize, salt: u64) -> bool {
        (from..from + len).step_by(8).all(|offset| self.word(offset) == salt ^ offset as u64)
    }

    fn word(&self, offset: usize) -> u64 {
        unsafe { (self.at(offset) as *const u64).read_volatile() }
    }

    /// Which of its pages are mapped or in swap, by /proc/self/pagemap; asks without touching.
    fn present(&self) -> Vec<bool> {
        use std::os::unix::fs::FileExt;
        let mut entries = vec![0; self.len / PAGE * 8];
        std::fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, (self.at(0) / PAGE * 8) as u64).unwrap();
        entries.chunks_exact(8).map(|e| u64::from_le_bytes(e.try_into().unwrap()) >> 62 != 0).collect()
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        unsafe { vm::release(NonNull::new(self.start as *mut u8).unwrap(), self.len) };
    }
}

/// The next fault; the test fails if none comes at all.
fn fault(uffd: &Uffd) -> Fault {
    loop {
        if let Some(fault) = uffd.next_fault() {
            return fault;
        }
        let mut poll = libc::pollfd { fd: uffd.fd(), events: libc::POLLIN, revents: 0 };
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1, "no fault was raised");
    }
}

fn thread_id() -> u32 {
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Runs `work` in a child of fork and gives its wait status. `work` makes system calls only.
fn child(work: impl FnOnce() -> i32) -> i32 {
    let id = unsafe { libc::fork() };
    if id == 0 {
        let code = work();
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    status
}

/// Major and minor number of the running kernel.
fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn a_huge_page_moves_whole() {
    let _turn = turn();
    let (Some(uffd), Some(source)) = (open(), Range::huge(1)) else { return };
    let target = Range::registered(&uffd, 2 * HUGE, libc::MADV_HUGEPAGE);
    // The source is not registered.
    assert_eq!(unsafe { uffd.shift(target.at(HUGE), source.at(0), HUGE, true) }, (HUGE, 0));
    assert!(vm::is_huge(target.at(HUGE)), "the huge page was split");
    assert!((0..HUGE).step_by(8).all(|at| target.word(HUGE + at) == 1 ^ at as u64));
    assert!(source.present().iter().all(|there| !there), "what was moved is still in the source");
}

#[test]
fn a_fault_in_an_advised_range_leaves_no_page_table() {
    let _turn = turn();
    let (Some(uffd), Some(source)) = (open(), Range::huge(2)) else { return };
    let target = Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (thread_id(), target.word(5 * PAGE)));
        let fault = fault(&uffd);
        assert_eq!(fault.address, target.at(5 * PAGE));
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), HUGE, true) }, (HUGE, 0));
        assert_eq!(reader.join().unwrap(), (fault.thread, 2 ^ (5 * PAGE) as u64), "the thread that was named reads the data");
    });
    assert!(vm::is_huge(target.at(0)), "a fault before the move cost the huge page");
}

#[test]
fn the_target_must_be_registered() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (source, target) = (Range::small(4, 3), Range::new(4 * PAGE, libc::MADV_NOHUGEPAGE));
    let (moved, error) = unsafe { uffd.shift(target.at(0), source.at(0), 4 * PAGE, true) };
    assert!(moved == 0 && error != 0, "moved {moved} bytes into memory that is not registered");
    assert!(source.holds(0, 4 * PAGE, 3));
    let elsewhere = open().unwrap();
    elsewhere.register(target.at(0), 4 * PAGE).unwrap();
    let (moved, error) = unsafe { uffd.shift(target.at(0), source.at(0), 4 * PAGE, true) };
    assert!(moved == 0 && error != 0, "moved {moved} bytes into memory that is registered elsewhere");
}

/// A program that counts in a chunk while the chunk is moved out and back: no count is lost, and none happens while it is out.
#[test]
fn moving_out_is_atomic_for_whoever_touches() {
    let _turn = turn();
    const ROUNDS: usize = 300;
    let (Some(uffd), Some(frame)) = (open(), Range::huge(0)) else { return };
    let region = Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE);
    let bay = Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE);
    assert_eq!(unsafe { uffd.shift(region.at(0), frame.at(0), HUGE, true) }, (HUGE, 0));
    let (done, rounds) = (AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0u64;
            while rounds.load(SeqCst) < ROUNDS {
                let at = (region.at(0) + (count as usize * 8) % HUGE) as *mut u64;
                let before = unsafe { at.read_volatile() };
                let want = if count < (HUGE / 8) as u64 { (count as usize * 8) as u64 } else { count - (HUGE / 8) as u64 };
                assert_eq!(before, want, "a write was lost");
                unsafe { at.write_volatile(count) };
                count += 1;
                done.store(count, SeqCst);
            }
        });
        for round in 0..ROUNDS {
            assert_eq!(unsafe { uffd.shift(bay.at(0), region.at(0), HUGE, false) }, (HUGE, 0), "round {round}");
            let fault = fault(&uffd);
            assert!((region.at(0)..region.at(HUGE)).contains(&fault.address));
            let seen = done.load(SeqCst);
            for _ in 0..20 {
                std::thread::yield_now();
            }
            assert_eq!(done.load(SeqCst), seen, "the program went on in a chunk that was not there");
            rounds.store(round + 1, SeqCst);
            assert_eq!(unsafe { uffd.shift(region.at(0), bay.at(0), HUGE, true) }, (HUGE, 0), "round {round}");
        }
    });
    assert!(vm::is_huge(region.at(0)), "{ROUNDS} moves out and in split the huge page");
}

#[test]
fn waiters_sleep_until_woken_and_fault_again() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (source, target) = (Range::small(1, 4), Range::registered(&uffd, PAGE, libc::MADV_NOHUGEPAGE));
    let read = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(target.word(8), 4 ^ 8);
            read.store(1, SeqCst);
        });
        let first = fault(&uffd);
        uffd.wake(target.at(0), PAGE);
        let second = fault(&uffd); // woken with nothing there: the same access again
        assert_eq!((first.address, first.thread), (second.address, second.thread));
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), PAGE, false) }, (PAGE, 0));
        assert_eq!(read.load(SeqCst), 0, "a move that should wake nobody did");
        uffd.wake(target.at(0), PAGE);
    });
    assert_eq!(read.load(SeqCst), 1);
    assert!(uffd.next_fault().is_none());
}

#[test]
fn a_left_over_page_table_splits_and_dropping_the_chunk_cures() {
    let _turn = turn();
    let (Some(uffd), Some(first), Some(second)) = (open(), Range::huge(5), Range::huge(6)) else { return };
    let target = Range::registered(&uffd, 2 * HUGE, libc::MADV_HUGEPAGE);
    let page = Range::small(1, 7);
    for (chunk, source) in [(0, &first), (HUGE, &second)] {
        assert_eq!(unsafe { uffd.copy(target.at(chunk + 9 * PAGE), page.at(0), PAGE) }, (PAGE, 0));
        target.advise(chunk + 9 * PAGE, PAGE, libc::MADV_DONTNEED).unwrap();
        if chunk == HUGE {
            target.advise(chunk, HUGE, libc::MADV_DONTNEED).unwrap();
        }
        let mut done = 0;
        while done < HUGE {
            let (moved, error) = unsafe { uffd.shift(target.at(chunk + done), source.at(done), HUGE - done, true) };
            assert!(matches!(error, 0 | libc::EAGAIN), "errno {error} after {done}");
            done += moved;
        }
    }
    assert!(target.holds(0, HUGE, 5), "the split page's contents");
    assert!(!vm::is_huge(target.at(0)), "a page table in the way no longer splits: the pager could do without the cure");
    if kernel() >= (6, 14) {
        assert!(vm::is_huge(target.at(HUGE)), "the page table is still there after MADV_DONTNEED of the whole chunk");
    } else {
        println!("skipped in part: this kernel keeps empty page tables (before 6.14), so its chunks stay split");
    }
}

#[test]
fn holes_stop_a_move_with_enoent() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (source, target) = (Range::small(6, 8), Range::registered(&uffd, 6 * PAGE, libc::MADV_NOHUGEPAGE));
    source.advise(2 * PAGE, PAGE, libc::MADV_DONTNEED).unwrap();
    let (moved, error) = unsafe { uffd.shift(target.at(0), source.at(0), 6 * PAGE, true) };
    assert!(moved == 2 * PAGE && matches!(error, libc::EAGAIN | libc::ENOENT), "moved {moved}, errno {error}");
    let hole = unsafe { uffd.shift(target.at(moved), source.at(moved), 4 * PAGE, true) };
    assert_eq!(hole, (0, libc::ENOENT));
    let rest = unsafe { uffd.shift(target.at(3 * PAGE), source.at(3 * PAGE), 3 * PAGE, true) };
    assert_eq!(rest, (3 * PAGE, 0));
    assert_eq!(target.present(), [true, true, false, true, true, true]);
    assert!(target.holds(0, 2 * PAGE, 8) && target.holds(3 * PAGE, 3 * PAGE, 8));
    // And an empty huge page.
    let (empty, chunk) = (Range::new(HUGE, libc::MADV_HUGEPAGE), Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE));
    assert_eq!(unsafe { uffd.shift(chunk.at(0), empty.at(0), HUGE, true) }, (0, libc::ENOENT));
}

#[test]
fn what_is_present_is_never_overwritten() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (source, target) = (Range::small(2, 9), Range::registered(&uffd, 2 * PAGE, libc::MADV_NOHUGEPAGE));
    let old = Range::small(1, 10);
    assert_eq!(unsafe { uffd.copy(target.at(0), old.at(0), PAGE) }, (PAGE, 0));
    assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), PAGE, true) }, (0, libc::EEXIST));
    assert_eq!(unsafe { uffd.copy(target.at(0), source.at(0), PAGE) }, (0, libc::EEXIST));
    assert!(target.holds(0, PAGE, 10) && source.holds(0, PAGE, 9));
    let Some(huge) = Range::huge(11) else { return };
    let chunk = Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE);
    assert_eq!(unsafe { uffd.shift(chunk.at(0), huge.at(0), HUGE, true) }, (HUGE, 0));
    let Some(other) = Range::huge(12) else { return };
    assert_eq!(unsafe { uffd.shift(chunk.at(0), other.at(0), HUGE, true) }, (0, libc::EEXIST));
    assert!(chunk.holds(0, HUGE, 11) && other.holds(0, HUGE, 12));
}

#[test]
fn pages_dropped_by_the_program_fault_again() {
    let _turn = turn();
    let (Some(uffd), Some(frame)) = (open(), Range::huge(13)) else { return };
    let region = Range::registered(&uffd, HUGE, libc::MADV_HUGEPAGE);
    assert_eq!(unsafe { uffd.shift(region.at(0), frame.at(0), HUGE, true) }, (HUGE, 0));
    region.advise(3 * PAGE, PAGE, libc::MADV_DONTNEED).unwrap();
    let zeros = Range::new(PAGE, libc::MADV_NOHUGEPAGE);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(region.word(3 * PAGE), 0));
        assert_eq!(fault(&uffd).address, region.at(3 * PAGE));
        assert_eq!(unsafe { uffd.copy(region.at(3 * PAGE), zeros.at(0), PAGE) }, (PAGE, 0));
    });
    assert!(region.holds(0, 3 * PAGE, 13) && region.holds(4 * PAGE, HUGE - 4 * PAGE, 13));
}

/// An io_uring that holds a range as a registered buffer, as I/O in flight does: the pages are pinned until it is closed.
struct Pinned(i32);

impl Pinned {
    fn new(range: &Range) -> Result<Self, i32> {
        let mut parameters = [0u8; 120];
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) } as i32;
        if ring < 0 {
            return Err(vm::errno());
        }
        let ring = Self(ring);
        let vector = libc::iovec { iov_base: range.start as *mut _, iov_len: range.len };
        const REGISTER_BUFFERS: u32 = 0;
        match unsafe { libc::syscall(libc::SYS_io_uring_register, ring.0, REGISTER_BUFFERS, &raw const vector, 1) } {
            0 => Ok(ring),
            _ => Err(vm::errno()),
        }
    }

    fn end(self) {
        const UNREGISTER_BUFFERS: u32 = 1;
        assert_eq!(unsafe { libc::syscall(libc::SYS_io_uring_register, self.0, UNREGISTER_BUFFERS, 0, 0) }, 0);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        unsafe { libc::close(self.0) };
    }
}

#[test]
fn pages_pinned_for_io_are_busy() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (small, huge) = (Range::small(2, 14), Range::huge(14));
    for source in [Some(small), huge].into_iter().flatten() {
        let target = Range::registered(&uffd, source.len, libc::MADV_HUGEPAGE);
        let pinned = match Pinned::new(&source) {
            Ok(pinned) => pinned,
            Err(error) => return println!("skipped: io_uring is refused (errno {error}), and nothing else pins for as long"),
        };
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), source.len, true) }, (0, libc::EBUSY));
        assert!(source.holds(0, source.len, 14));
        pinned.end();
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), source.len, true) }, (source.len, 0));
        assert!(target.holds(0, source.len, 14));
    }
}

#[test]
fn pages_shared_by_fork_are_busy() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    let (small, huge) = (Range::small(2, 15), Range::huge(15));
    for source in [Some(small), huge].into_iter().flatten() {
        let target = Range::registered(&uffd, source.len, libc::MADV_HUGEPAGE);
        let mut pipe = [0; 2];
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        let id = unsafe { libc::fork() };
        if id == 0 {
            unsafe {
                libc::close(pipe[1]);
                libc::read(pipe[0], [0u8].as_mut_ptr().cast(), 1); // until the parent closes its end
                libc::_exit(0);
            }
        }
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), source.len, true) }, (0, libc::EBUSY));
        unsafe {
            libc::close(pipe[1]);
            libc::close(pipe[0]);
            assert_eq!(libc::waitpid(id, std::ptr::null_mut(), 0), id);
        }
        // Alone again, but only a write makes the page its own again.
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), source.len, true) }, (0, libc::EBUSY));
        source.fill(0, source.len, 15);
        assert_eq!(unsafe { uffd.shift(target.at(0), source.at(0), source.len, true) }, (source.len, 0));
        assert!(target.holds(0, source.len, 15));
    }
}

/// Linux 6.18 moves pages that change under its hands without counting them, finds them at their target, and says EEXIST. What the pager
/// relies on: such a page is at its target and gone from its source, and no write to it is lost. Here two threads write to pages that
/// are moved away and back, while children share them for moments. Where the kernel does better, it is not seen.
#[test]
fn a_page_that_a_move_found_at_its_target_was_moved_there() {
    let _turn = turn();
    let Some(uffd) = open() else { return };
    const PAGES: usize = 32;
    const LEN: usize = PAGES * PAGE;
    let (source, target) = (Range::small(PAGES, 0), Range::registered(&uffd, LEN, libc::MADV_NOHUGEPAGE));
    source.advise(0, LEN, libc::MADV_POPULATE_WRITE).unwrap();
    uffd.register(source.at(0), LEN).unwrap();
    let counter = |range: &Range, page: usize, writer: usize| unsafe {
        AtomicU64::from_ptr(range.at(page * PAGE + 64 * (writer + 1)) as *mut u64)
    };
    (0..PAGES * 2).for_each(|i| counter(&source, i / 2, i % 2).store(0, Relaxed));
    let (stop, mut found, mut forks) = (AtomicBool::new(false), 0, 0);
    // All of a range, however often it takes: how many pages were found where they should go.
    let mut shift = |to: &Range, from: &Range| {
        let mut done = 0;
        while done < LEN {
            let (moved, error) = unsafe { uffd.shift(to.at(done), from.at(done), LEN - done, true) };
            done += moved;
            match error {
                libc::EBUSY => {
                    let there = from.present();
                    let shared = (done / PAGE..PAGES).filter(|page| there[*page]);
                    for page in shared {
                        unsafe { AtomicU64::from_ptr(from.at(page * PAGE) as *mut u64) }.fetch_add(1, Relaxed);
                    }
                }
                libc::EEXIST => {
                    assert!(
                        to.present()[done / PAGE] && !from.present()[done / PAGE],
                        "EEXIST, and page {} is not moved",
                        done / PAGE
                    );
                    found += 1;
                    done += PAGE;
                }
                0 | libc::EAGAIN => {}
                other => panic!("errno {other} after {done} bytes"),
            }
        }
    };
    let written = std::thread::scope(|scope| {
        let writers = [0, 1].map(|writer| {
            let (stop, source) = (&stop, &source);
            scope.spawn(move || {
                let mut written = [0u64; PAGES];
                for i in 0.. {
                    let page = i * 7 % PAGES;
                    counter(source, page, writer).store(written[page] + 1, Relaxed);
                    written[page] += 1;
                    if stop.load(Relaxed) {
                        break;
                    }
                }
                written
            })
        });
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let id = unsafe { libc::fork() };
            if id == 0 {
                unsafe {
                    libc::usleep(300);
                    libc::_exit(0);
                }
            }
            forks += 1;
            for _ in 0..3 {
                shift(&target, &source);
                shift(&source, &target);
                uffd.wake(source.at(0), LEN); // what was not counted woke nobody
            }
            unsafe { assert_eq!(libc::waitpid(id, std::ptr::null_mut(), 0), id) };
        }
        stop.store(true, Relaxed);
        writers.map(|writer| writer.join().unwrap())
    });
    for page in 0..PAGES {
        for (writer, written) in written.iter().enumerate() {
            assert_eq!(
                counter(&source, page, writer).load(Relaxed),
                written[page],
                "page {page} lost a write of thread {writer}"
            );
        }
    }
    println!("{forks} forks, {found} pages found at their target");
}

#[test]
fn a_child_of_fork_lacks_what_is_kept_from_it() {
    let _turn = turn();
    let (kept, given) = (Range::small(2, 16), Range::small(2, 17));
    kept.advise(0, kept.len, libc::MADV_DONTFORK).unwrap();
    let mapped = |range: &Range| {
        let mut there = [0u8; 2];
        unsafe { libc::mincore(range.start as *mut _, range.len, there.as_mut_ptr()) == 0 }
    };
    assert!(mapped(&kept) && mapped(&given));
    let status = child(|| i32::from(mapped(&kept)) * 2 + i32::from(!mapped(&given)));
    assert!(libc::WIFEXITED(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "2: the range is in the child; 1: another one is not");
    // And so it is not shared: it can be moved while a child runs, as the test of shared pages shows for others.
    let Some(uffd) = open() else { return };
    let target = Range::registered(&uffd, kept.len, libc::MADV_NOHUGEPAGE);
    let status = child(|| i32::from(unsafe { uffd.shift(target.at(0), kept.at(0), kept.len, true) } == (kept.len, 0)));
    assert_eq!(libc::WEXITSTATUS(status), 0, "a child moved pages through its parent's userfaultfd");
    assert_eq!(unsafe { uffd.shift(target.at(0), kept.at(0), kept.len, true) }, (kept.len, 0));
    assert!(target.holds(0, kept.len, 16));
}

#[test]
fn poison_is_a_bus_error_there_and_nowhere_else() {
    let _turn = turn();
    if open().is_none() {
        return;
    }
    let touch = |poisoned: bool, dropped: bool| {
        child(move || {
            let (Ok(uffd), page) = (Uffd::open(), [7u8; PAGE]) else { return 2 };
            let Ok(start) = vm::reserve(2 * HUGE, HUGE) else { return 3 };
            let at = start.as_ptr() as usize;
            if uffd.register(at, 2 * HUGE).is_err() || unsafe { uffd.copy(at + HUGE, page.as_ptr() as usize, PAGE) }.1 != 0 {
                return 4;
            }
            if !uffd.poison(at, HUGE) {
                return 5;
            }
            if dropped {
                // Gone with the mapping's contents: a missing page again, which a copy can fill.
                let _ = unsafe { vm::advise(start.as_ptr(), HUGE, libc::MADV_DONTNEED) };
                if unsafe { uffd.copy(at + 5 * PAGE, page.as_ptr() as usize, PAGE) }.1 != 0 {
                    return 6;
                }
            }
            let offset = if poisoned { 5 * PAGE + 1 } else { HUGE };
            i32::from(unsafe { ((at + offset) as *const u8).read_volatile() } != 7)
        })
    };
    let status = touch(true, false);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "wait status {status:#x}");
    for (poisoned, dropped) in [(false, false), (true, true)] {
        let status = touch(poisoned, dropped);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "wait status {status:#x}");
    }
}

#[test]
fn an_unnamed_file_takes_direct_io() {
    let _turn = turn();
    let place = env!("CARGO_TARGET_TMPDIR");
    let dir = std::ffi::CString::new(place).unwrap();
    let names = || std::fs::read_dir(place).unwrap().count();
    let before = names();
    let file = match File::unnamed(&dir) {
        Ok(file) => file,
        Err(error) => return println!("skipped: {error}"),
    };
    if !file.direct {
        return println!("skipped: the file system of {place} has no direct I/O; the swap file goes through its page cache");
    }
    assert_eq!(names(), before, "the file has a name");
    let (pages, back) = (Range::small(64, 18), Range::new(64 * PAGE, libc::MADV_NOHUGEPAGE));
    // Gathered from two places, behind a hole, in units of a page.
    let pieces = [Piece { start: pages.at(32 * PAGE), len: 32 * PAGE }, Piece { start: pages.at(0), len: 32 * PAGE }];
    unsafe {
        file.write(&pieces, 3 * PAGE as u64).unwrap();
        file.read(back.at(0), 32 * PAGE, 35 * PAGE as u64).unwrap();
        file.read(back.at(32 * PAGE), 32 * PAGE, 3 * PAGE as u64).unwrap();
    }
    assert!(back.holds(0, 64 * PAGE, 18));
    assert_eq!(unsafe { file.read(back.at(0), PAGE, 67 * PAGE as u64) }, Err(libc::EIO), "beyond the end");
    file.punch(3 * PAGE as u64, PAGE as u64);
    unsafe { file.read(back.at(0), 2 * PAGE, 3 * PAGE as u64).unwrap() };
    assert!((0..PAGE).step_by(8).all(|at| back.word(at) == 0), "a punched hole reads as zeros");
    assert!((PAGE..2 * PAGE).step_by(8).all(|at| back.word(at) == 18 ^ (32 * PAGE + at) as u64), "and only there");
}
