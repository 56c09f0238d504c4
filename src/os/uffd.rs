//! userfaultfd by raw ioctls: opening, registering, moving, copying, poisoning, reading events. Called by the pager's
//! backend only. The kernel's own description is ioctl_userfaultfd(2); what MOVE costs and when it refuses is measured in
//! `tests/kernel_contract.rs`.

use super::vm::errno;
use crate::error::Error;
use crate::fail;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`, and `uffdio_poison`, which has the same shape
#[repr(C)]
struct RangeMode {
    range: Range,
    mode: u64,
    out: i64,
}

/// `struct uffdio_copy` and `struct uffdio_move`
#[repr(C)]
struct Transfer {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffd_msg`
#[repr(C)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    ptid: u64,
}

const API: u64 = 0xAA;
const IOC_NEW: u64 = 0xAA00; // _IO(0xAA, 0) on /dev/userfaultfd
const IOC_API: u64 = 0xC018_AA3F;
const IOC_REGISTER: u64 = 0xC020_AA00;
const IOC_UNREGISTER: u64 = 0x8010_AA01;
const IOC_WAKE: u64 = 0x8010_AA02;
const IOC_COPY: u64 = 0xC028_AA03;
const IOC_MOVE: u64 = 0xC028_AA05;
const IOC_POISON: u64 = 0xC020_AA08;
const REGISTER_MISSING: u64 = 1;
const FEATURE_THREAD_ID: u64 = 1 << 8;
const FEATURE_POISON: u64 = 1 << 14;
const FEATURE_MOVE: u64 = 1 << 16;
const EVENT_PAGEFAULT: u8 = 0x12;
const USER_MODE_ONLY: i32 = 1;
const MODE_DONTWAKE: u64 = 1;

/// A page fault that waits for us.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The faulting address (rounded down to the page).
    pub address: usize,
    /// The kernel's id of the faulting thread.
    pub thread: u32,
    /// The access's number, by which a backend without userfaultfd knows it again.
    pub ticket: u32,
}

/// An open userfaultfd.
pub struct Uffd {
    /// Changes only in a child of fork, before it has a second thread.
    fd: AtomicI32,
    /// Faults inside system calls are served too (opened through the device or as a privileged user).
    pub kernel_faults: bool,
    features: u64,
    /// The features in words.
    what: &'static str,
}

impl Uffd {
    /// Opens the best userfaultfd this process may have: the device first, then the system call, then user mode only. With
    /// MOVE and POISON.
    pub fn open() -> Result<Self, Error> {
        Self::with(FEATURE_MOVE | FEATURE_POISON | FEATURE_THREAD_ID, "UFFDIO_MOVE (Linux 6.8 or newer)")
    }

    /// The same, without MOVE and POISON.
    pub fn open_older() -> Result<Self, Error> {
        Self::with(FEATURE_THREAD_ID, "thread ids (Linux 4.14 or newer)")
    }

    fn with(features: u64, what: &'static str) -> Result<Self, Error> {
        let (fd, kernel_faults) = open_fd()?;
        let uffd = Self { fd: AtomicI32::new(fd), kernel_faults, features, what };
        uffd.agree()?;
        Ok(uffd)
    }

    /// In a child of fork, whose memory the parent's userfaultfd does not serve: another one in its place.
    pub fn reopen(&self) -> Result<(), Error> {
        let (fd, _) = open_fd()?;
        // SAFETY: the parent's descriptor; the child has no use for it.
        unsafe { libc::close(self.fd.swap(fd, Relaxed)) };
        self.agree()
    }

    /// Tells the kernel which features are wanted.
    fn agree(&self) -> Result<(), Error> {
        let mut api = Api { api: API, features: self.features, ioctls: 0 };
        // SAFETY: `api` is a valid uffdio_api for the duration of the call.
        if unsafe { libc::ioctl(self.fd(), IOC_API, &raw mut api) } != 0 {
            return Err(fail!(Unsupported, "this kernel's userfaultfd has no {} (errno {})", self.what, errno()));
        }
        Ok(())
    }

    /// The descriptor, for poll(2).
    pub fn fd(&self) -> i32 {
        self.fd.load(Relaxed)
    }

    /// Missing pages of the range raise faults from now on.
    pub fn register(&self, start: usize, len: usize) -> Result<(), Error> {
        let mut arg = RangeMode { range: Range { start: start as u64, len: len as u64 }, mode: REGISTER_MISSING, out: 0 };
        // SAFETY: `arg` is a valid uffdio_register; registering changes no memory.
        if unsafe { libc::ioctl(self.fd(), IOC_REGISTER, &raw mut arg) } != 0 {
            return Err(fail!(
                OutOfMemory,
                "userfaultfd cannot register {len} bytes (errno {}): check vm.max_map_count",
                errno()
            ));
        }
        Ok(())
    }

    /// Faults of the range go to the kernel again; whoever waits in it is woken.
    pub fn unregister(&self, start: usize, len: usize) {
        let mut arg = Range { start: start as u64, len: len as u64 };
        // SAFETY: as in `register`.
        unsafe { libc::ioctl(self.fd(), IOC_UNREGISTER, &raw mut arg) };
    }

    /// Lets threads that wait in the range try again.
    pub fn wake(&self, start: usize, len: usize) {
        let mut arg = Range { start: start as u64, len: len as u64 };
        // SAFETY: a valid range; only wakes.
        unsafe { libc::ioctl(self.fd(), IOC_WAKE, &raw mut arg) };
    }

    /// UFFDIO_MOVE: bytes moved and the error that ended it (0 = all moved). Wakes waiters in `dst` if `wake`.
    ///
    /// # Safety
    /// Both ranges are private anonymous mappings of this process that the pager owns; `dst` holds no pages.
    pub unsafe fn shift(&self, dst: usize, src: usize, len: usize, wake: bool) -> (usize, i32) {
        let mode = if wake { 0 } else { MODE_DONTWAKE };
        // SAFETY: the caller's promise.
        unsafe { self.transfer(IOC_MOVE, dst, src, len, mode) }
    }

    /// UFFDIO_COPY: as [`Self::shift`], leaving `src` as it is.
    ///
    /// # Safety
    /// `src` is readable; `dst` lies in a registered range that the pager owns.
    pub unsafe fn copy(&self, dst: usize, src: usize, len: usize) -> (usize, i32) {
        // SAFETY: the caller's promise.
        unsafe { self.transfer(IOC_COPY, dst, src, len, 0) }
    }

    /// # Safety
    /// As [`Self::shift`] and [`Self::copy`].
    unsafe fn transfer(&self, request: u64, dst: usize, src: usize, len: usize, mode: u64) -> (usize, i32) {
        let mut arg = Transfer { dst: dst as u64, src: src as u64, len: len as u64, mode, done: 0 };
        // SAFETY: `arg` is a valid uffdio_copy/uffdio_move; the ranges are the caller's promise.
        let r = unsafe { libc::ioctl(self.fd(), request, &raw mut arg) };
        let error = if r == 0 { 0 } else { errno() };
        (usize::try_from(arg.done).unwrap_or(0), error)
    }

    /// Accesses to the range raise SIGBUS until it is unmapped or dropped.
    pub fn poison(&self, start: usize, len: usize) -> bool {
        let mut arg = RangeMode { range: Range { start: start as u64, len: len as u64 }, mode: 0, out: 0 };
        // SAFETY: `arg` is a valid uffdio_poison; it only installs markers where no page is.
        unsafe { libc::ioctl(self.fd(), IOC_POISON, &raw mut arg) == 0 }
    }

    /// The next waiting fault, if there is one; never blocks.
    pub fn next_fault(&self) -> Option<Fault> {
        loop {
            let mut message = Message { event: 0, reserved: [0; 7], flags: 0, address: 0, ptid: 0 };
            // SAFETY: the buffer is one uffd_msg long.
            let n = unsafe { libc::read(self.fd(), (&raw mut message).cast(), size_of::<Message>()) };
            if n == size_of::<Message>() as isize {
                if message.event == EVENT_PAGEFAULT {
                    return Some(Fault { address: message.address as usize, thread: message.ptid as u32, ticket: 0 });
                }
            } else if n >= 0 || errno() != libc::EINTR {
                return None;
            }
        }
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.fd()) };
    }
}

/// Does valgrind run this program? It runs one thread at a time, and one that waits for a page in the kernel keeps that turn: nobody
/// could serve it. Valgrind knows the instructions below, which do nothing on a processor.
#[cfg(target_arch = "x86_64")]
fn under_valgrind() -> bool {
    const RUNNING_ON_VALGRIND: u64 = 0x1001;
    let request = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let mut answer = 0u64;
    // SAFETY: four rotations that make one whole turn, and an exchange of a register with itself; valgrind writes to rdx alone.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            inout("rdx") answer, in("rax") request.as_ptr(), inout("rdi") 0u64 => _,
        );
    }
    answer != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn under_valgrind() -> bool {
    false
}

fn open_fd() -> Result<(i32, bool), Error> {
    if under_valgrind() {
        return Err(fail!(Unsupported, "valgrind runs one thread at a time: userfaultfd would wait for ever"));
    }
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: plain open, ioctl and userfaultfd(2) calls that create a descriptor or fail.
    unsafe {
        let device = libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if device >= 0 {
            let fd = libc::ioctl(device, IOC_NEW, flags);
            libc::close(device);
            if fd >= 0 {
                return Ok((fd, true));
            }
        }
        let fd = libc::syscall(libc::SYS_userfaultfd, flags) as i32;
        if fd >= 0 {
            return Ok((fd, true));
        }
        let fd = libc::syscall(libc::SYS_userfaultfd, flags | USER_MODE_ONLY) as i32;
        if fd >= 0 {
            return Ok((fd, false));
        }
    }
    Err(fail!(
        Unsupported,
        "userfaultfd is refused (errno {}): it takes a kernel that has it (Linux 5.11 or newer for ordinary users), and a seccomp profile that allows the call or access to /dev/userfaultfd",
        errno()
    ))
}
