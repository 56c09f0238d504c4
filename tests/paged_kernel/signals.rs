//! The program's own signals beside the pager's: handlers of SIGSEGV set before and after it, faults that are the program's, signals
//! that arrive while an access waits, handlers that touch paged memory, stacks, a system-call filter.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static SEEN: AtomicUsize = AtomicUsize::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static mut BACK: [u64; 64] = [0; 64];

unsafe extern "C" {
    fn __sigsetjmp(environment: *mut u64, mask: i32) -> i32;
    fn siglongjmp(environment: *mut u64, value: i32) -> !;
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SEEN.fetch_add(1, SeqCst);
    unsafe {
        ADDRESS.store((*info).si_addr() as usize, SeqCst);
        assert!(signal == libc::SIGSEGV || signal == libc::SIGBUS);
        siglongjmp((&raw mut BACK).cast(), 1);
    }
}

fn action(handler: usize, flags: i32) -> libc::sigaction {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    (action.sa_sigaction, action.sa_flags) = (handler, flags);
    action
}

fn set(signal: i32, action: &libc::sigaction) {
    assert_eq!(unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) }, 0);
}

fn handler() -> libc::sigaction {
    action(on_signal as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
}

/// Does the access reach the program's handler, and with the right address?
fn caught(at: *mut u8, write: bool) -> bool {
    let before = SEEN.load(SeqCst);
    unsafe {
        if __sigsetjmp((&raw mut BACK).cast(), 1) == 0 {
            if write {
                at.write_volatile(1)
            } else {
                std::hint::black_box(at.read_volatile());
            }
        }
    }
    let seen = SEEN.load(SeqCst) == before + 1;
    assert!(!seen || ADDRESS.load(SeqCst) == at as usize);
    seen
}

#[test]
#[ignore = "run as a child"]
fn child_has_handlers() {
    let foreign =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    let foreign: *mut u8 = foreign.cast();
    set(libc::SIGSEGV, &handler()); // before there is a pager
    let _turn = start();
    let buffer = Buffer::full(96 * MIB, 64 * KIB, 1);
    assert!(caught(foreign, false) && caught(foreign, true), "a fault that is not the pager's");
    buffer.check(1);
    assert!(!caught(buffer.at(5), true));
    buffer.words()[0] = noise(0, 1);
    // Set again later, behind our back: the next buffer takes notice.
    set(libc::SIGSEGV, &handler());
    let second = Buffer::full(80 * MIB, 0, 2);
    second.check(2);
    buffer.check(1);
    assert!(caught(foreign, false));
    // And by whoever wraps sigaction: ours stays, theirs is called.
    let ours = qmem::os::segv::replace(Some(&action(libc::SIG_DFL, 0)));
    assert_eq!(ours.is_some(), kind() == Kind::Signal, "replaced only where it is in use");
    if let Some(old) = ours {
        assert_eq!(old.sa_sigaction, handler().sa_sigaction);
        assert_eq!(qmem::os::segv::replace(Some(&handler())).unwrap().sa_sigaction, libc::SIG_DFL);
    }
    second.check(2);
    assert!(caught(foreign, true));
    // The end of the last chunk is the end of what is mapped.
    let small = Buffer::full(64 * KIB, 64 * KIB, 3);
    assert!(caught(small.start.wrapping_add(64 * KIB), false), "behind the buffer");
    // What the program forbids itself is its own fault, whether it is resident or not.
    paged::pin(small.start, 64 * KIB).unwrap();
    assert_eq!(unsafe { libc::mprotect(small.start.cast(), 64 * KIB, libc::PROT_READ) }, 0);
    assert!(caught(small.at(4096), true) && !caught(small.at(4096), false));
    assert_eq!(unsafe { libc::mprotect(small.start.cast(), 64 * KIB, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    assert!(!caught(small.at(4096), true));
    paged::unpin(small.start, 64 * KIB).unwrap();
    println!("all of it");
}

#[test]
fn handlers_of_the_program_are_called_for_its_own_faults() {
    let out = child("signals::child_has_handlers").output().unwrap();
    assert!(out.status.success() && told(&out).contains("all of it"), "{}", told(&out));
}

#[test]
#[ignore = "run as a child"]
fn child_faults_elsewhere() {
    let _turn = start();
    let _buffer = Buffer::full(8 * MIB, 0, 1);
    set(libc::SIGBUS, &action(libc::SIG_DFL, 0));
    match std::env::var("TEST_HOW").unwrap().as_str() {
        "null" => {
            // The runtime's handler for stack overflows is the program's; without it the default applies.
            let default = action(libc::SIG_DFL, 0);
            if qmem::os::segv::replace(Some(&default)).is_none() {
                set(libc::SIGSEGV, &default);
            }
            unsafe { std::hint::black_box(8 as *mut u8).write_volatile(1) }
        }
        "kill" => {
            let default = action(libc::SIG_DFL, 0);
            if qmem::os::segv::replace(Some(&default)).is_none() {
                set(libc::SIGSEGV, &default);
            }
            unsafe { libc::kill(libc::getpid(), libc::SIGSEGV) };
            std::thread::sleep(std::time::Duration::from_secs(5));
        }
        _ => {
            let ignore = action(libc::SIG_IGN, 0);
            if qmem::os::segv::replace(Some(&ignore)).is_none() {
                set(libc::SIGSEGV, &ignore);
            }
            unsafe { libc::kill(libc::getpid(), libc::SIGSEGV) };
            println!("ignored");
        }
    }
}

#[test]
fn without_a_handler_the_default_applies() {
    for (how, signal) in [("null", Some(libc::SIGSEGV)), ("kill", Some(libc::SIGSEGV)), ("ignore", None)] {
        let out = child("signals::child_faults_elsewhere").env("TEST_HOW", how).output().unwrap();
        assert_eq!(out.status.signal(), signal, "{how}: {}", told(&out));
        assert!(signal.is_some() || told(&out).contains("ignored"));
    }
}

static BUFFER: AtomicUsize = AtomicUsize::new(0);
static TICKS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_alarm(_: i32) {
    let i = TICKS.fetch_add(1, SeqCst).wrapping_mul(40_961) % (96 * MIB / 8);
    let found = unsafe { (BUFFER.load(SeqCst) as *const u64).add(i).read_volatile() };
    if found != noise(i, 1) {
        unsafe { libc::abort() };
    }
}

#[test]
#[ignore = "run as a child"]
fn child_is_interrupted() {
    let _turn = start();
    let buffer = Buffer::full(96 * MIB, 64 * KIB, 1);
    BUFFER.store(buffer.start as usize, SeqCst);
    set(libc::SIGALRM, &action(on_alarm as *const () as usize, libc::SA_RESTART));
    let every = libc::timeval { tv_sec: 0, tv_usec: 300 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    for _ in 0..3 {
        unsafe { *libc::__errno_location() = 4711 };
        for i in (0..buffer.size / 8).step_by(512) {
            assert_eq!(unsafe { (buffer.start as *const u64).add(i).read_volatile() }, noise(i, 1));
        }
        assert_eq!(errno(), 4711, "a fault changed errno");
    }
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    println!("{} ticks", TICKS.load(SeqCst));
    assert!(TICKS.load(SeqCst) > 10);
}

/// Signals whose handlers touch paged memory arrive while an access waits for its chunk.
#[test]
fn signals_arrive_while_an_access_waits() {
    let out = child("signals::child_is_interrupted").output().unwrap();
    assert!(out.status.success() && told(&out).contains("ticks"), "{}", told(&out));
}

#[test]
fn threads_with_the_smallest_stacks() {
    extern "C" fn body(words: *mut libc::c_void) -> *mut libc::c_void {
        let words = words.cast::<u64>();
        let right = (0..32 * MIB / 8).step_by(512).all(|i| unsafe { words.add(i).read_volatile() } == noise(i, 9));
        usize::from(right) as *mut _
    }
    let _turn = start();
    let buffer = Buffer::full(96 * MIB, 64 * KIB, 9);
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut attributes);
        assert_eq!(libc::pthread_attr_setstacksize(&raw mut attributes, 16 * KIB), 0);
        let threads: Vec<libc::pthread_t> = (0..8)
            .map(|_| {
                let mut id = 0;
                assert_eq!(libc::pthread_create(&raw mut id, &raw const attributes, body, buffer.start.cast()), 0);
                id
            })
            .collect();
        for id in threads {
            let mut right = std::ptr::null_mut();
            assert_eq!(libc::pthread_join(id, &raw mut right), 0);
            assert_eq!(right as usize, 1);
        }
    }
}

/// The program that runs another one under a filter, compiled once.
fn confined() -> PathBuf {
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("confined-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/paged_kernel/confined.c");
    let status = Command::new("cc").args(["-O1", "-Wall", "-o"]).arg(&to).arg(source).status();
    assert!(status.expect("cc").success());
    to
}

#[test]
#[ignore = "run as a child"]
fn child_says_what_it_uses() {
    let info = {
        let _turn = start();
        let buffer = Buffer::full(96 * MIB, 0, 1);
        buffer.check(1);
        paged::backend_info().unwrap()
    };
    println!("uses {} {:?}", info.kind.name(), info.refused);
}

#[test]
fn without_userfaultfd_signals_do() {
    let confined = confined();
    let command = child("signals::child_says_what_it_uses");
    let mut filtered = Command::new(&confined);
    filtered.arg(command.get_program()).args(command.get_args()).env_remove("QMEM_BACKEND");
    if unsafe { libc::geteuid() } == 0 {
        use std::os::unix::process::CommandExt;
        filtered.uid(65534).gid(65534); // root may use the device whatever the filter says
    }
    let out = filtered.output();
    let _ = std::fs::remove_file(confined);
    if matches!(&out, Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied) {
        return println!("skipped: an ordinary user may not read {}", env!("CARGO_MANIFEST_DIR"));
    }
    let out = out.unwrap();
    if out.status.code() == Some(77) {
        return println!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let said = told(&out);
    assert!(out.status.success() && said.contains("uses signal"), "{said}");
    assert!(said.contains("Move") && said.contains("Remap") && said.contains("userfaultfd is refused (errno 1)"), "{said}");
}

#[test]
fn a_backend_can_be_forced() {
    for name in ["move", "remap", "signal", "auto", "magic"] {
        let out = child("signals::child_says_what_it_uses").env("QMEM_BACKEND", name).output().unwrap();
        let said = told(&out);
        match name {
            "magic" => assert!(!out.status.success() && said.contains("none of auto, move, remap, signal"), "{said}"),
            "auto" => assert!(out.status.success() && said.contains("uses "), "{said}"),
            _ if out.status.success() => assert!(said.contains(&format!("uses {name}")), "{said}"),
            _ => assert!(said.contains("cannot be used"), "{said}"),
        }
    }
}
