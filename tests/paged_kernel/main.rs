//! Paged memory and everything the kernel does with a program's memory behind its back: system calls, direct and asynchronous I/O,
//! pins, debuggers, core dumps, advice, locks, signals, system-call filters. Each gives right data or fails as documented, whichever
//! mechanism the pager uses; tools/test runs all of this for each of them, as root and as an ordinary user.
#![allow(clippy::undocumented_unsafe_blocks)] // every address is this test's own
#![allow(clippy::mut_from_ref)] // threads and the kernel write to a buffer, too: it is memory, not a value

mod advice;
mod observers;
mod ring;
mod signals;
mod transfers;

use qmem::monitor::account;
use qmem::paged::{self, Kind, Options, Request, Strategy};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const BUDGET: usize = 64 * MIB;

/// One pager per process: the tests take turns. The alarm ends a test that somebody is left waiting in.
pub(crate) struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

pub(crate) fn start() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    unsafe { libc::alarm(120) };
    account::set_budget(BUDGET);
    let options = Options { strategy: Strategy::Adaptive, compression: false, deduplication: false, swapping: true };
    paged::configure(&options).expect("a pager");
    account::reset_peak();
    Turn(turn)
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(account::peak() <= BUDGET, "peak {} over the budget", account::peak());
            paged::shutdown();
            account::set_budget(usize::MAX);
            assert_eq!((account::resident(), account::committed()), (0, 0), "everything charged was given back");
        }
        unsafe { libc::alarm(0) };
    }
}

/// May system calls touch what is not resident?
pub(crate) fn kernel_faults() -> bool {
    paged::backend_info().unwrap().kernel_faults
}

pub(crate) fn kind() -> Kind {
    paged::backend_info().unwrap().kind
}

/// A paged buffer that knows what it holds.
pub(crate) struct Buffer {
    pub(crate) start: *mut u8,
    pub(crate) size: usize,
}
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(size: usize, chunk_size: usize) -> Self {
        let request =
            Request { size, align: 0, chunk_size, swappable: true, element: None, tolerance: 0.0, pooled: false, tag: 1 };
        Self { start: paged::allocate(&request).expect("granted").as_ptr(), size }
    }

    /// Full of noise.
    pub(crate) fn full(size: usize, chunk_size: usize, salt: u64) -> Self {
        let buffer = Self::new(size, chunk_size);
        buffer.words().iter_mut().enumerate().for_each(|(i, w)| *w = noise(i, salt));
        buffer
    }

    pub(crate) fn words(&self) -> &mut [u64] {
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.size / 8) }
    }

    pub(crate) fn bytes(&self, from: usize, len: usize) -> &mut [u8] {
        assert!(from + len <= self.size);
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.size);
        unsafe { self.start.add(offset) }
    }

    /// Nothing of it is resident after this.
    pub(crate) fn evict(&self) {
        // Reading ahead for an earlier access may bring a chunk back after its turn, and the kernel may hold a page of another one for a
        // moment after direct I/O, which is Busy: tried again.
        let mut told = Ok(());
        for _ in 0..1000 {
            told = paged::evict(self.start, self.size);
            if told.is_ok() && paged::region_stats(self.start).unwrap().resident_bytes == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("{told:?} {:?}", paged::region_stats(self.start));
    }

    /// Whatever of it can go.
    pub(crate) fn try_evict(&self) {
        let _ = paged::evict(self.start, self.size);
    }

    pub(crate) fn check(&self, salt: u64) {
        self.check_part(0, self.size, salt);
    }

    pub(crate) fn check_part(&self, from: usize, len: usize, salt: u64) {
        for i in from / 8..(from + len) / 8 {
            assert_eq!(self.words()[i], noise(i, salt), "word {i}");
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            unsafe { paged::free(self.start).unwrap() };
        }
    }
}

pub(crate) fn noise(i: usize, salt: u64) -> u64 {
    let x = (i as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// This test program again, to run one ignored test as a child.
pub(crate) fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command
}

pub(crate) fn told(out: &Output) -> String {
    format!("{:?}\n{}\n{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// A file of the test's own, open and without a name.
pub(crate) fn file(direct: bool) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC | if direct { libc::O_DIRECT } else { 0 };
    let fd = unsafe { libc::open(c"/var/tmp".as_ptr(), flags, 0o600) };
    (fd >= 0).then(|| unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}
