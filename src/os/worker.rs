//! Worker threads: raw pthreads with all signals blocked, a name, a small stack; and waiting on descriptors. Called by the
//! pager only.

use crate::error::Error;
use crate::fail;
use core::ffi::{CStr, c_void};
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// A running worker.
pub struct Thread {
    id: libc::pthread_t,
}

/// What a worker runs: a function and one number.
pub type Body = fn(usize);

#[repr(C)]
struct Start {
    body: Body,
    argument: usize,
    name: &'static CStr,
    taken: core::sync::atomic::AtomicU32,
}

const STACK: usize = 256 << 10;

impl Thread {
    /// Starts `body(argument)` with every signal blocked.
    pub fn spawn(name: &'static CStr, body: Body, argument: usize) -> Result<Self, Error> {
        let start = Start { body, argument, name, taken: core::sync::atomic::AtomicU32::new(0) };
        // SAFETY: the attribute and signal sets are plain data initialised before use; `start` outlives the wait below, and
        // the thread reads it only before it sets `taken`.
        unsafe {
            let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
            libc::pthread_attr_init(&raw mut attributes);
            libc::pthread_attr_setstacksize(&raw mut attributes, STACK);
            let mut all: libc::sigset_t = core::mem::zeroed();
            let mut old: libc::sigset_t = core::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            let mut id: libc::pthread_t = core::mem::zeroed();
            let error = libc::pthread_create(&raw mut id, &raw const attributes, enter, (&raw const start).cast_mut().cast());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut());
            libc::pthread_attr_destroy(&raw mut attributes);
            if error != 0 {
                return Err(fail!(
                    OutOfMemory,
                    "a pager thread cannot be started (errno {error}): check ulimit -u and the cgroup's pids.max"
                ));
            }
            while start.taken.load(core::sync::atomic::Ordering::Acquire) == 0 {
                crate::sync::futex_wait(&start.taken, 0);
            }
            Ok(Self { id })
        }
    }

    /// Waits for its end.
    pub fn join(self) {
        // SAFETY: a joinable thread that is joined once, since `self` is consumed.
        unsafe { libc::pthread_join(self.id, ptr::null_mut()) };
    }
}

/// Lets the calling thread's own faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL) go to the program's signal handlers: for a thread that runs
/// the program's code.
pub fn take_own_faults() {
    // SAFETY: the set is plain data, initialised before use.
    unsafe {
        let mut faults: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&raw mut faults);
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
            libc::sigaddset(&raw mut faults, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const faults, ptr::null_mut());
    }
}

/// Leaves signals to the program's own threads, but for the calling thread's own faults: for a thread of ours that runs the program's code.
pub fn block_signals() {
    // SAFETY: the set is plain data, initialised before use.
    unsafe {
        let mut all: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
    take_own_faults();
}

extern "C" fn enter(argument: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn` passes a `Start` and keeps it alive until `taken` is set.
    let (body, value) = unsafe {
        let start = &*argument.cast::<Start>();
        libc::pthread_setname_np(libc::pthread_self(), start.name.as_ptr());
        let copy = (start.body, start.argument);
        start.taken.store(1, core::sync::atomic::Ordering::Release);
        crate::sync::futex_wake(&start.taken, 1);
        copy
    };
    body(value);
    ptr::null_mut()
}

/// An eventfd: something to wake a poll with.
pub struct Bell {
    /// Changes only in a child of fork, before it has a second thread.
    fd: AtomicI32,
}

impl Bell {
    /// A silent bell.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { fd: AtomicI32::new(Self::open()?) })
    }

    fn open() -> Result<i32, Error> {
        // SAFETY: creates a descriptor or fails.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE) };
        if fd < 0 {
            return Err(fail!(OutOfMemory, "no eventfd (errno {}): check ulimit -n", super::vm::errno()));
        }
        Ok(fd)
    }

    /// In a child of fork: a bell of its own, not the parent's.
    pub fn reopen(&self) -> Result<(), Error> {
        let fd = Self::open()?;
        // SAFETY: the parent's descriptor; the child has no use for it.
        unsafe { libc::close(self.fd.swap(fd, Relaxed)) };
        Ok(())
    }

    fn fd(&self) -> i32 {
        self.fd.load(Relaxed)
    }

    /// Wakes `count` waiters, now or as soon as they wait.
    pub fn ring(&self, count: u64) {
        // SAFETY: eight bytes of ours; a full counter means that waiters are woken anyway.
        unsafe { libc::write(self.fd(), (&raw const count).cast(), 8) };
    }

    /// Takes one ring if there is one.
    pub fn answer(&self) -> bool {
        let mut count = 0u64;
        // SAFETY: eight bytes of ours.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) == 8 }
    }

    /// Sleeps until the bell rings or `other` is readable.
    pub fn wait_with(&self, other: i32) {
        let mut fds = [
            libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: other, events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: two valid pollfds; EINTR and errors only make the caller look again.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.fd()) };
    }
}

/// The kernel's number of the calling thread.
pub fn thread_id() -> u32 {
    // SAFETY: only asks.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Lets others run for about `microseconds`.
pub fn pause(microseconds: i64) {
    let time = libc::timespec { tv_sec: microseconds / 1_000_000, tv_nsec: microseconds % 1_000_000 * 1000 };
    // SAFETY: a valid timespec; an early return is fine.
    unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
}

/// Seconds of the monotonic clock, plus one so that 0 is never now.
pub fn seconds() -> usize {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as usize + 1
}
