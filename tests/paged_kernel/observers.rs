//! Other processes that look at paged memory: process_vm_readv, /proc/PID/mem, ptrace, a core dump. What is not resident is read
//! rightly or refused, never as zeros.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

const SIZE: usize = 8 * MIB;
const HALF: usize = SIZE / 2;

#[test]
#[ignore = "run as a child"]
fn child_is_observed() {
    let _turn = start();
    let buffer = Buffer::full(SIZE, 0, 1);
    paged::evict(buffer.start, HALF).unwrap();
    paged::pin(buffer.at(HALF), HALF).unwrap();
    println!("address {}", buffer.start as usize);
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        buffer.check(1);
        println!("touched");
        line.clear();
    }
    paged::unpin(buffer.at(HALF), HALF).unwrap();
}

/// A process with a buffer whose first half is not resident and whose second half is.
struct Observed {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    address: usize,
}

impl Observed {
    fn new() -> Self {
        let mut process = child("observers::child_is_observed").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let address = line_with(&mut output, "address ").parse().unwrap();
        Self { input: process.stdin.take(), process, output, address }
    }

    fn id(&self) -> i32 {
        self.process.id() as i32
    }

    /// All of it is right, in its own eyes, and then resident.
    fn touch(&mut self) {
        self.input.as_mut().unwrap().write_all(b"touch\n").unwrap();
        line_with(&mut self.output, "touched");
    }

    fn end(mut self) {
        self.touch();
        drop(self.input.take());
        assert!(self.process.wait().unwrap().success());
    }

    /// What process_vm_readv gives of a word.
    fn peek(&self, offset: usize) -> Result<u64, i32> {
        let mut word = 0u64;
        let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: (self.address + offset) as *mut _, iov_len: 8 };
        let n = unsafe { libc::process_vm_readv(self.id(), &raw const local, 1, &raw const remote, 1, 0) };
        if n == 8 { Ok(word) } else { Err(errno()) }
    }
}

fn line_with(output: &mut BufReader<ChildStdout>, start: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the observed process ended");
        // The test harness writes the test's name before the first line.
        if let Some(at) = line.find(start) {
            return line[at + start.len()..].trim().to_owned();
        }
    }
}

fn word(offset: usize) -> u64 {
    noise(offset / 8, 1)
}

#[test]
fn other_processes_read_right_or_not_at_all() {
    let faults = {
        let _turn = start();
        kernel_faults()
    };
    let mut observed = Observed::new();
    match observed.peek(HALF + 8) {
        Err(libc::EPERM) => return println!("skipped: process_vm_readv is not allowed here"),
        resident => assert_eq!(resident, Ok(word(HALF + 8))),
    }
    match observed.peek(MIB) {
        Ok(there) => assert!(faults && there == word(MIB), "{there:#x}"),
        Err(error) => assert!(!faults && error == libc::EFAULT, "{error}"),
    }
    observed.touch();
    assert_eq!(observed.peek(8), Ok(word(8)));
    observed.end();
}

#[test]
fn debuggers_read_right_or_not_at_all() {
    use std::os::unix::fs::FileExt;
    let observed = Observed::new();
    let read = |offset: usize| {
        let mut bytes = [0; 8];
        let memory = std::fs::File::open(format!("/proc/{}/mem", observed.id())).unwrap();
        memory.read_exact_at(&mut bytes, (observed.address + offset) as u64).map(|()| u64::from_ne_bytes(bytes))
    };
    assert_eq!(read(HALF).unwrap(), word(HALF));
    assert!(read(0).map_or(true, |there| there == word(0)), "{:?}", read(0));
    // And stopped: nobody serves faults now, so nothing may wait for that.
    let peek = |offset: usize| unsafe {
        *libc::__errno_location() = 0;
        let there = libc::ptrace(libc::PTRACE_PEEKDATA, observed.id(), (observed.address + offset) as *mut libc::c_void, 0);
        if errno() == 0 { Ok(there as u64) } else { Err(errno()) }
    };
    unsafe {
        if libc::ptrace(libc::PTRACE_ATTACH, observed.id(), 0, 0) != 0 {
            return println!("skipped: ptrace is not allowed here (errno {})", errno());
        }
        assert_eq!(libc::waitpid(observed.id(), std::ptr::null_mut(), 0), observed.id());
        assert_eq!(peek(HALF + 16), Ok(word(HALF + 16)));
        let absent = peek(2 * MIB);
        assert!(absent == Ok(word(2 * MIB)) || absent.is_err(), "{absent:?}");
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, observed.id(), 0, 0), 0);
    }
    observed.end();
}

const MARK: [u8; 24] = *b"found on the stack alone";

#[test]
#[ignore = "run as a child"]
fn child_dumps_core() {
    let _turn = start();
    let mark = std::hint::black_box(MARK.map(|c| c.to_ascii_uppercase()));
    let buffer = Buffer::full(SIZE, 0, 2);
    paged::evict(buffer.start, HALF).unwrap();
    paged::pin(buffer.at(HALF), HALF).unwrap();
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        std::hint::black_box(&mark);
        libc::abort();
    }
}

/// A core dump leaves paged memory out: it ends at once and is as small as the rest of the program.
#[test]
fn core_dumps_leave_paged_memory_out() {
    let _turn = start(); // the core is read into this process, whose memory another test counts
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    if pattern.trim() != "core" || limit.rlim_max != libc::RLIM_INFINITY {
        return println!("skipped: core dumps go to {:?} here, or are limited", pattern.trim());
    }
    let place = std::env::temp_dir().join(format!("qmem-core-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let out = child("observers::child_dumps_core").current_dir(&place).output().unwrap();
    let core = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()).next();
    let Some(core) = core else {
        std::fs::remove_dir_all(&place).unwrap();
        return println!("skipped: no core was dumped: {}", told(&out));
    };
    let bytes = std::fs::metadata(&core).unwrap().len();
    assert!((100_000..256 << 20).contains(&bytes), "a core of {bytes} bytes");
    let core = std::fs::read(core).unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    let holds = |part: &[u8]| core.windows(part.len()).any(|window| window == part);
    assert!(holds(&MARK.map(|c| c.to_ascii_uppercase())), "the rest of the program is not in the core");
    assert!(!holds(&noise(HALF / 8 + 1, 2).to_ne_bytes()), "paged memory is in the core");
}
