//! SIGSEGV as a page fault: one handler for the process that asks a hook first and passes what is not the hook's on to whichever
//! handler the program has. Called by the pager's signal backend, and by whoever wraps sigaction. The handler runs on the
//! alternate stack of the thread if it has one, uses little of it, takes no lock and keeps errno.

use super::vm::errno;
use crate::error::Error;
use crate::fail;
use crate::sync::Mutex;
use core::ffi::c_void;
use core::mem::zeroed;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// An access that raised SIGSEGV.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Where.
    pub address: usize,
    /// By whom, the kernel's number.
    pub thread: u32,
    /// A write, as far as this processor tells (x86-64), else a read.
    pub write: bool,
}

/// True: the access may be tried again. Runs in the signal handler, on the thread that made the access.
pub type Hook = fn(&Access) -> bool;

static HOOK: AtomicPtr<()> = AtomicPtr::new(null_mut());
static CHANGING: Mutex<()> = Mutex::new(());

/// What the program would have had called: `struct sigaction` in words that a handler can read while another thread writes the
/// next one.
struct Program {
    handler: AtomicUsize,
    flags: AtomicI32,
    mask: [AtomicU64; WORDS],
}

const WORDS: usize = size_of::<libc::sigset_t>() / 8;
/// The program's handlers in turn: one that is being read is overwritten only after so many changes.
const KEPT: usize = 16;
static PROGRAM: [Program; KEPT] = [const {
    Program { handler: AtomicUsize::new(libc::SIG_DFL), flags: AtomicI32::new(0), mask: [const { AtomicU64::new(0) }; WORDS] }
}; KEPT];
static CURRENT: AtomicUsize = AtomicUsize::new(0);

fn read_program() -> libc::sigaction {
    // SAFETY: zeros are a valid sigaction; the mask has WORDS words.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        if let Some(now) = PROGRAM.get(CURRENT.load(Ordering::Acquire) % KEPT) {
            action.sa_sigaction = now.handler.load(Ordering::Relaxed);
            action.sa_flags = now.flags.load(Ordering::Relaxed);
            let words = (&raw mut action.sa_mask).cast::<u64>();
            for (i, word) in now.mask.iter().enumerate() {
                words.add(i).write(word.load(Ordering::Relaxed));
            }
        }
        action
    }
}

/// Called with CHANGING held, or where nobody else changes anything (a handler that is to be called once).
fn write_program(action: &libc::sigaction) {
    let next = CURRENT.load(Ordering::Relaxed).wrapping_add(1);
    if let Some(place) = PROGRAM.get(next % KEPT) {
        place.handler.store(action.sa_sigaction, Ordering::Relaxed);
        place.flags.store(action.sa_flags, Ordering::Relaxed);
        let words = (&raw const action.sa_mask).cast::<u64>();
        for (i, word) in place.mask.iter().enumerate() {
            // SAFETY: the mask has WORDS words.
            word.store(unsafe { words.add(i).read() }, Ordering::Relaxed);
        }
    }
    CURRENT.store(next, Ordering::Release);
}

fn ours() -> libc::sighandler_t {
    on_segv as *const () as libc::sighandler_t
}

/// Has `hook` asked about every SIGSEGV from now on. Called again, it takes back what the program has replaced since, and passes
/// on to that.
pub fn install(hook: Hook) -> Result<(), Error> {
    let _changing = CHANGING.lock();
    HOOK.store(hook as *mut (), Ordering::Release);
    // SAFETY: plain data; the handler does only what a handler may.
    unsafe {
        let mut now: libc::sigaction = zeroed();
        if libc::sigaction(libc::SIGSEGV, null(), &raw mut now) == 0 && now.sa_sigaction == ours() {
            return Ok(());
        }
        write_program(&now);
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = ours();
        // Other signals wait as they do while the kernel reads a page: an alternate stack is too small for a second frame.
        libc::sigfillset(&raw mut action.sa_mask);
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGSEGV, &raw const action, null_mut()) != 0 {
            return Err(fail!(Unsupported, "no handler for SIGSEGV can be installed (errno {})", errno()));
        }
    }
    Ok(())
}

/// sigaction(2) for SIGSEGV where this module's handler is to stay: `new`, if given, is called for what is not the hook's, and
/// the answer is what would have been called before. None if the handler is not installed, or is itself what is set: then the
/// call is the kernel's.
pub fn replace(new: Option<&libc::sigaction>) -> Option<libc::sigaction> {
    if HOOK.load(Ordering::Acquire).is_null() || new.is_some_and(|new| new.sa_sigaction == ours()) {
        return None;
    }
    let _changing = CHANGING.lock();
    // SAFETY: plain data, only asked.
    let there = unsafe {
        let mut now: libc::sigaction = zeroed();
        libc::sigaction(libc::SIGSEGV, null(), &raw mut now) == 0 && now.sa_sigaction == ours()
    };
    if !there {
        return None;
    }
    let old = read_program();
    if let Some(new) = new {
        write_program(new);
    }
    Some(old)
}

extern "C" fn on_segv(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let error = errno();
    let hook = HOOK.load(Ordering::Acquire);
    // SAFETY: the kernel passes a valid siginfo; si_addr is set for faults, which have a positive code.
    let (fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    let mut served = false;
    if fault && !hook.is_null() {
        // SAFETY: HOOK holds null or a `Hook`; fn pointers and data pointers have one size here.
        let hook: Hook = unsafe { core::mem::transmute(hook) };
        // SAFETY: gettid only asks.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
        served = hook(&Access { address, thread, write: is_write(context) });
    }
    if !served {
        pass_on(signal, info, context, fault);
    }
    // SAFETY: glibc's errno location is valid for the calling thread.
    unsafe { *libc::__errno_location() = error };
}

#[cfg(target_arch = "x86_64")]
fn is_write(context: *mut c_void) -> bool {
    const WRITE: i64 = 2; // the processor's page fault error code
    // SAFETY: the kernel passes the interrupted thread's context.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs.get(libc::REG_ERR as usize).is_some_and(|code| code & WRITE != 0)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_write(_: *mut c_void) -> bool {
    false
}

/// As the kernel would have called the program's handler.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void, fault: bool) {
    let program = read_program();
    if program.sa_sigaction == libc::SIG_IGN && !fault {
        return;
    }
    // SAFETY: sigaction and masks are plain data, and what the program has set is called as it asked to be.
    unsafe {
        if program.sa_sigaction == libc::SIG_DFL || program.sa_sigaction == libc::SIG_IGN {
            // What cannot be ignored ends the process: a fault by happening again, another's signal by being sent again.
            let mut default: libc::sigaction = zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const default, null_mut());
            if !fault {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), signal);
            }
            return;
        }
        if program.sa_flags & libc::SA_RESETHAND != 0 {
            write_program(&zeroed());
        }
        let mut before: libc::sigset_t = zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const (*context.cast::<libc::ucontext_t>()).uc_sigmask, &raw mut before);
        let mut blocked = program.sa_mask;
        if program.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&raw mut blocked, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, null_mut());
        if program.sa_flags & libc::SA_SIGINFO != 0 {
            let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) = core::mem::transmute(program.sa_sigaction);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(i32) = core::mem::transmute(program.sa_sigaction);
            call(signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
    }
}
