//! What the pager's mechanisms without UFFDIO_MOVE rely on in the kernel, asked of the kernel that runs: mremap that leaves its source
//! mapped, mappings of an empty file, populating as a question. Nothing of the pager is used but its system calls (`os`).
#![allow(clippy::undocumented_unsafe_blocks)] // every range is this test's own

use qmem::os::hollow::{Hollow, Raises};
use qmem::os::uffd::Uffd;
use qmem::os::vm::{self, HUGE, PAGE};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

/// Tests take turns: they count this process's mappings. The alarm ends one that waits for ever.
struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    unsafe { libc::alarm(60) };
    Turn(turn)
}

impl Drop for Turn {
    fn drop(&mut self) {
        unsafe { libc::alarm(0) };
    }
}

/// Anonymous memory, aligned to a huge page, released in the end whatever it has become.
struct Range {
    start: usize,
    len: usize,
}

impl Range {
    fn new(len: usize, advice: i32) -> Self {
        let range = Self { start: vm::reserve(len, HUGE).unwrap().as_ptr() as usize, len };
        unsafe { vm::advise(range.start as *mut u8, len, advice).unwrap() };
        range
    }

    fn filled(len: usize, advice: i32, salt: u64) -> Self {
        let range = Self::new(len, advice);
        (0..len).step_by(8).for_each(|offset| unsafe { range.word(offset).write(salt ^ offset as u64) });
        range
    }

    fn word(&self, offset: usize) -> *mut u64 {
        (self.start + offset) as *mut u64
    }

    fn holds(&self, from: usize, len: usize, salt: u64) -> bool {
        (from..from + len).step_by(8).all(|offset| unsafe { self.word(offset).read_volatile() } == salt ^ offset as u64)
    }

    /// How many of its pages are there; asks without touching.
    fn resident(&self) -> usize {
        let there = |page: &usize| {
            let mut answer = 0u8;
            unsafe { libc::mincore((self.start + page * PAGE) as *mut _, PAGE, &raw mut answer) == 0 && answer & 1 == 1 }
        };
        (0..self.len / PAGE).filter(there).count()
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        unsafe { vm::release(NonNull::new(self.start as *mut u8).unwrap(), self.len) };
    }
}

/// Does [`vm::shift`] work here?
fn shifts() -> bool {
    let shifts = vm::can_shift();
    if !shifts {
        println!("skipped: this kernel's mremap has no MREMAP_DONTUNMAP (Linux 5.7 or newer)");
    }
    shifts
}

/// Mappings of this process inside a range.
fn mappings(range: &Range) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().map(|line| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap());
    starts.filter(|start| (range.start..range.start + range.len).contains(start)).count()
}

/// Runs `work` in a child of fork and gives the signal that ended it, 0 for none.
fn ends_by(work: impl FnOnce()) -> i32 {
    let id = unsafe { libc::fork() };
    if id == 0 {
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            work();
            libc::_exit(0);
        }
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
}

#[test]
fn pages_move_whole_and_stay_huge() {
    let _turn = turn();
    if !shifts() {
        return;
    }
    for (len, advice) in [(HUGE, libc::MADV_HUGEPAGE), (16 * PAGE, libc::MADV_NOHUGEPAGE)] {
        let (from, to) = (Range::filled(len, advice, 1), Range::filled(len, advice, 2));
        let huge = vm::is_huge(from.start);
        for _ in 0..3 {
            unsafe { assert_eq!(vm::shift(from.start, to.start, len), (len, 0)) };
            assert_eq!((from.resident(), to.resident()), (0, len / PAGE), "the source stays mapped, without pages");
            assert!(to.holds(0, len, 1) && vm::is_huge(to.start) == huge);
            unsafe { assert_eq!(vm::shift(to.start, from.start, len), (len, 0)) };
            assert!(from.holds(0, len, 1) && vm::is_huge(from.start) == huge);
        }
        assert_eq!(unsafe { to.word(0).read() }, 0, "what is left reads as zeros where nobody is told");
    }
}

/// Whoever reads and writes while pages go out and come back finds every write again: once by userfaultfd, once by protection.
#[test]
fn a_mapping_that_is_left_behind_still_reports_faults() {
    let _turn = turn();
    let uffd = match Uffd::open_older() {
        Ok(uffd) if shifts() => uffd,
        Ok(_) => return,
        Err(error) => return println!("skipped: {error}"),
    };
    let (region, bay) = (Range::new(HUGE, libc::MADV_HUGEPAGE), Range::filled(HUGE, libc::MADV_HUGEPAGE, 0));
    uffd.register(region.start, HUGE).unwrap();
    let rounds = AtomicU64::new(0);
    const ROUNDS: u64 = 300;
    unsafe { assert_eq!(vm::shift(bay.start, region.start, HUGE), (HUGE, 0)) };
    uffd.register(region.start, HUGE).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0u64;
            while rounds.load(SeqCst) < ROUNDS {
                let offset = (count as usize * 8) % HUGE;
                let want = if count < (HUGE / 8) as u64 { offset as u64 } else { count - (HUGE / 8) as u64 };
                assert_eq!(unsafe { region.word(offset).read_volatile() }, want, "a write was lost");
                unsafe { region.word(offset).write_volatile(count) };
                count += 1;
            }
        });
        for round in 0..ROUNDS {
            unsafe { assert_eq!(vm::shift(region.start, bay.start, HUGE), (HUGE, 0)) };
            let fault = loop {
                if let Some(fault) = uffd.next_fault() {
                    break fault;
                }
                std::thread::yield_now();
            };
            assert!((region.start..region.start + HUGE).contains(&fault.address));
            rounds.store(round + 1, SeqCst);
            unsafe { assert_eq!(vm::shift(bay.start, region.start, HUGE), (HUGE, 0)) };
            uffd.register(region.start, HUGE).unwrap();
            uffd.wake(region.start, HUGE);
        }
    });
}

/// Readers see what was there or what comes, in every page, and never something else.
#[test]
fn what_is_replaced_is_replaced_in_one_step() {
    let _turn = turn();
    if !shifts() {
        return;
    }
    let len = 64 * PAGE;
    let fill = |range: &Range, value: u64| (0..len).step_by(8).for_each(|offset| unsafe { range.word(offset).write(value) });
    let (shown, next) = (Range::new(len, libc::MADV_NOHUGEPAGE), Range::new(len, libc::MADV_NOHUGEPAGE));
    fill(&shown, 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 1;
            while !stop.load(SeqCst) {
                for offset in (0..len).step_by(PAGE) {
                    let now = unsafe { shown.word(offset).read_volatile() };
                    assert!(now >= last, "{now} after {last}: a page of an older state, or of none");
                    last = now;
                }
            }
        });
        for value in 2..2000 {
            fill(&next, value);
            unsafe { assert_eq!(vm::shift(next.start, shown.start, len), (len, 0)) };
        }
        stop.store(true, SeqCst);
    });
}

/// Linux 6.17 moves it in parts, before that it is refused; lost is nothing.
#[test]
fn a_split_mapping_moves_or_stays() {
    let _turn = turn();
    if !shifts() {
        return;
    }
    let (from, to) = (Range::filled(16 * PAGE, libc::MADV_NOHUGEPAGE, 3), Range::new(16 * PAGE, libc::MADV_NOHUGEPAGE));
    unsafe { vm::advise((from.start + 4 * PAGE) as *mut u8, PAGE, libc::MADV_SEQUENTIAL).unwrap() };
    assert_eq!(mappings(&from), 3);
    match unsafe { vm::shift(from.start, to.start, 16 * PAGE) } {
        (moved, 0) => assert!(moved == to.len && to.holds(0, to.len, 3) && from.resident() == 0),
        stayed => assert!(stayed == (0, libc::EFAULT) && from.holds(0, from.len, 3) && to.resident() == 0),
    }
}

/// Near the bound on mappings a move that takes several may stop in the middle, and tells where.
#[test]
fn a_move_that_runs_out_of_mappings_says_how_far_it_came() {
    let _turn = turn();
    let most = qmem::os::limits::mappings();
    if !shifts() || most > 1 << 17 {
        return println!("skipped: vm.max_map_count = {most} is too many to use up");
    }
    let outcomes: Vec<i32> = (0..16)
        .map(|left| {
            let id = unsafe { libc::fork() };
            if id == 0 {
                unsafe { libc::_exit(runs_out(most, left)) };
            }
            let mut status = 0;
            assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
            assert!(libc::WIFEXITED(status), "{status:#x}");
            libc::WEXITSTATUS(status)
        })
        .collect();
    assert!(outcomes.iter().all(|outcome| *outcome <= 16), "{outcomes:?}");
    assert!(outcomes.contains(&0), "{outcomes:?}: the bound was never met");
}

const LOST: i32 = 99;

/// Moves a split mapping with so many mappings left: how many of its 16 pages moved, or LOST. (What did not move may be
/// missing as a mapping at its target.)
fn runs_out(most: usize, left: usize) -> i32 {
    let (from, to) = (Range::filled(16 * PAGE, libc::MADV_NOHUGEPAGE, 3), Range::new(16 * PAGE, libc::MADV_NOHUGEPAGE));
    for page in [1, 3, 5, 7, 9, 11, 13] {
        unsafe { vm::advise((from.start + page * PAGE) as *mut u8, PAGE, libc::MADV_SEQUENTIAL).unwrap() };
    }
    let stripes = Range::new(2 * most * PAGE, libc::MADV_NOHUGEPAGE);
    let now = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    for stripe in 0..(most - now - left) / 2 {
        if unsafe { vm::protect(stripes.start + (2 * stripe + 1) * PAGE, PAGE, libc::PROT_READ) }.is_err() {
            break;
        }
    }
    let (moved, error) = unsafe { vm::shift(from.start, to.start, 16 * PAGE) };
    // Room again, to look at all of it.
    unsafe { vm::protect(stripes.start, stripes.len, libc::PROT_NONE).unwrap() };
    let counted = to.resident() * PAGE == moved && from.resident() * PAGE == 16 * PAGE - moved;
    let right = counted && to.holds(0, moved, 3) && from.holds(moved, 16 * PAGE - moved, 3);
    let told = if moved == 16 * PAGE { error == 0 } else { matches!(error, libc::ENOMEM | libc::EFAULT) };
    if right && told { (moved / PAGE) as i32 } else { LOST }
}

#[test]
fn locks_move_with_the_pages_and_keep_none() {
    let _turn = turn();
    if !shifts() {
        return;
    }
    let (from, to) = (Range::filled(8 * PAGE, libc::MADV_NOHUGEPAGE, 5), Range::new(8 * PAGE, libc::MADV_NOHUGEPAGE));
    if unsafe { libc::mlock(from.start as *const _, from.len) } != 0 {
        return println!("skipped: mlock is refused (ulimit -l)");
    }
    unsafe { assert_eq!(vm::shift(from.start, to.start, to.len), (to.len, 0)) };
    assert!(to.holds(0, to.len, 5));
    assert_eq!(unsafe { vm::advise(to.start as *mut u8, to.len, libc::MADV_DONTNEED) }, Err(libc::EINVAL), "the lock came along");
    unsafe { vm::drop_pages(to.start, to.len) };
    assert_eq!(to.resident(), 0);
}

#[test]
fn a_hollow_range_is_never_read_as_zeros() {
    let _turn = turn();
    let hollow = Hollow::open().unwrap();
    let range = Range::filled(4 * PAGE, libc::MADV_NOHUGEPAGE, 6);
    let read = |address: usize| drop(std::hint::black_box(unsafe { vec![(address as *const u8).read_volatile()] }));
    for (raises, signal) in [(Raises::Segv, libc::SIGSEGV), (Raises::Bus, libc::SIGBUS)] {
        unsafe { hollow.cover(range.start, range.len, raises).unwrap() };
        // A child of fork has no part of it; whoever has it gets the signal.
        assert_eq!(ends_by(|| read(range.start)), libc::SIGSEGV);
        unsafe { vm::advise(range.start as *mut u8, range.len, libc::MADV_DOFORK).unwrap() };
        assert_eq!(ends_by(|| read(range.start + PAGE)), signal);
        // System calls fail, and so do those who may read what the process itself may not.
        let mut pipe = [0; 2];
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            assert_eq!(libc::write(pipe[1], range.start as *const _, 8), -1);
            assert_eq!(vm::errno(), libc::EFAULT);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        assert!(memory.read_exact_at(&mut [0; 8], range.start as u64).is_err());
        // Even a program that allows itself the access finds no zeros.
        unsafe { vm::protect(range.start, range.len, libc::PROT_READ | libc::PROT_WRITE).unwrap() };
        assert_eq!(ends_by(|| read(range.start)), libc::SIGBUS);
    }
}

#[test]
fn parts_of_a_hollow_range_are_one_mapping_again() {
    let _turn = turn();
    let hollow = Hollow::open().unwrap();
    let range = Range::new(64 * PAGE, libc::MADV_NOHUGEPAGE);
    let frame = Range::filled(4 * PAGE, libc::MADV_NOHUGEPAGE, 7);
    unsafe { hollow.cover(range.start, range.len, Raises::Segv).unwrap() };
    for part in [8, 4, 12, 60, 0] {
        let start = range.start + part * PAGE;
        let piece = Range::filled(4 * PAGE, libc::MADV_NOHUGEPAGE, 8);
        unsafe {
            vm::remap(NonNull::new(piece.start as *mut u8).unwrap(), piece.len, piece.len, NonNull::new(start as *mut u8))
                .unwrap()
        };
        std::mem::forget(piece); // it is a part of the range now
    }
    assert!(mappings(&range) > 4);
    for part in [0, 4, 8, 12, 60] {
        unsafe { hollow.cover(range.start + part * PAGE, 4 * PAGE, Raises::Segv).unwrap() };
    }
    assert_eq!(mappings(&range), 1);
    assert!(frame.holds(0, frame.len, 7));
}

/// Whether an access is allowed can be asked without making it.
#[test]
fn populating_asks_whether_an_access_is_allowed() {
    let _turn = turn();
    let populate = |range: &Range, advice| unsafe { vm::advise(range.start as *mut u8, PAGE, advice) };
    let range = Range::filled(PAGE, libc::MADV_NOHUGEPAGE, 9);
    if populate(&range, libc::MADV_POPULATE_READ) == Err(libc::EINVAL) {
        return println!("skipped: this kernel has no MADV_POPULATE_READ (Linux 5.14 or newer)");
    }
    assert_eq!(populate(&range, libc::MADV_POPULATE_WRITE), Ok(()));
    unsafe { vm::protect(range.start, PAGE, libc::PROT_READ).unwrap() };
    assert_eq!(populate(&range, libc::MADV_POPULATE_READ), Ok(()));
    assert!(populate(&range, libc::MADV_POPULATE_WRITE).is_err());
    unsafe { vm::protect(range.start, PAGE, libc::PROT_NONE).unwrap() };
    assert!(populate(&range, libc::MADV_POPULATE_READ).is_err());
    unsafe { vm::protect(range.start, PAGE, libc::PROT_READ).unwrap() };
    assert!(range.holds(0, PAGE, 9), "contents are as they were");
}
