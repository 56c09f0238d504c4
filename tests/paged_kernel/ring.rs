//! io_uring by raw system calls: reads into paged memory, and registered buffers, which pin their pages for as long as they are
//! registered, as a GPU's driver does.

use super::*;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// The first fields of `struct io_uring_params`, whole.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    cpu: u32,
    idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: [u32; 10],
    cq: [u32; 10],
}

/// `struct io_uring_sqe`, as far as it is used.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    rw_flags: u32,
    user: u64,
    buffer: u16,
    rest: [u16; 11],
}

const READ: u8 = 22;
const READ_FIXED: u8 = 4;
const REGISTER_BUFFERS: u32 = 0;
const UNREGISTER_BUFFERS: u32 = 1;
const GETEVENTS: u32 = 1;

/// A ring of one entry.
struct Ring {
    fd: i32,
    queue: *mut u8,
    entries: *mut Entry,
    completions: *mut u8,
    p: Parameters,
}

impl Ring {
    fn new() -> Result<Self, i32> {
        let mut p = Parameters::default();
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut p) } as i32;
        if fd < 0 {
            return Err(errno());
        }
        let map = |offset: i64| unsafe {
            let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, offset);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>()
        };
        Ok(Self { fd, queue: map(0), entries: map(0x1000_0000).cast(), completions: map(0x800_0000), p })
    }

    fn word(base: *mut u8, offset: u32) -> &'static AtomicU32 {
        unsafe { &*base.add(offset as usize).cast() }
    }

    /// One operation, to its end: bytes or a negative error number.
    fn run(&self, entry: Entry) -> i32 {
        // sq: head, tail, mask, entries, flags, dropped, array; cq: head, tail, mask, entries, overflow, cqes.
        let tail = Self::word(self.queue, self.p.sq[1]);
        unsafe { self.entries.write(entry) };
        Self::word(self.queue, self.p.sq[6]).store(0, SeqCst);
        tail.store(tail.load(SeqCst) + 1, SeqCst);
        let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd, 1, 1, GETEVENTS, 0, 0) };
        assert_eq!(done, 1, "errno {}", errno());
        let head = Self::word(self.completions, self.p.cq[0]);
        let mask = Self::word(self.completions, self.p.cq[2]).load(SeqCst);
        let slot = self.p.cq[5] + (head.load(SeqCst) & mask) * 16;
        let result = Self::word(self.completions, slot + 8).load(SeqCst) as i32;
        head.store(head.load(SeqCst) + 1, SeqCst);
        result
    }

    /// Closing the ring does it too, but a moment later.
    fn unregister(&self) {
        assert_eq!(unsafe { libc::syscall(libc::SYS_io_uring_register, self.fd, UNREGISTER_BUFFERS, 0, 0) }, 0);
    }

    fn register(&self, at: *mut u8, len: usize) -> Result<(), i32> {
        let vector = libc::iovec { iov_base: at.cast(), iov_len: len };
        match unsafe { libc::syscall(libc::SYS_io_uring_register, self.fd, REGISTER_BUFFERS, &raw const vector, 1) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        unsafe {
            libc::munmap(self.queue.cast(), 4096);
            libc::munmap(self.entries.cast(), 4096);
            libc::munmap(self.completions.cast(), 4096);
            libc::close(self.fd);
        }
    }
}

/// A ring, and a file of noise to read from.
fn ring_and_file(salt: u64) -> Option<(Ring, std::os::fd::OwnedFd)> {
    use std::io::Write;
    let ring = match Ring::new() {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: io_uring is refused (errno {error})");
            return None;
        }
    };
    let mut file = std::fs::File::from(file(false)?);
    for i in 0..4 * MIB / 8 {
        file.write_all(&noise(i, salt).to_ne_bytes()).unwrap();
    }
    Some((ring, file.into()))
}

#[test]
fn asynchronous_reads() {
    let _turn = start();
    let Some((ring, file)) = ring_and_file(1) else { return };
    let buffer = Buffer::full(4 * MIB, 64 * KIB, 2);
    let read = |at: *mut u8, offset: usize| {
        ring.run(Entry {
            opcode: READ,
            fd: file.as_raw_fd(),
            offset: offset as u64,
            address: at as u64,
            len: MIB as u32,
            ..Entry::default()
        })
    };
    buffer.evict();
    let done = read(buffer.at(MIB), MIB);
    if kernel_faults() {
        assert_eq!(done, MIB as i32);
        buffer.check_part(MIB, MIB, 1);
    } else {
        assert_eq!(done, -libc::EFAULT);
        buffer.check_part(MIB, MIB, 2);
    }
    let hold = paged::hold(buffer.at(2 * MIB), MIB).unwrap();
    assert_eq!((hold.bytes, read(buffer.at(2 * MIB), 2 * MIB)), (MIB, MIB as i32));
    drop(hold);
    buffer.evict();
    buffer.check_part(2 * MIB, MIB, 1);
    buffer.check_part(3 * MIB, MIB, 2);
}

#[test]
fn registered_buffers_that_are_pinned() {
    let _turn = start();
    let Some((ring, file)) = ring_and_file(3) else { return };
    for chunk in [0, 64 * KIB] {
        let buffer = Buffer::full(32 * MIB, chunk, 4);
        paged::pin(buffer.at(4 * MIB), MIB).unwrap();
        let ring = Ring::new().unwrap_or_else(|_| panic!("a ring a moment ago")); // of its own: registered until it is closed
        if let Err(error) = ring.register(buffer.at(4 * MIB), MIB) {
            println!("skipped: the buffer cannot be registered (errno {error}): check ulimit -l");
            return paged::unpin(buffer.at(4 * MIB), MIB).unwrap();
        }
        // All that is not pinned comes and goes.
        for salt in 5..8 {
            let _ = paged::evict(buffer.start, buffer.size);
            let other = Buffer::full(80 * MIB, chunk, salt);
            other.check(salt);
        }
        let entry = Entry {
            opcode: READ_FIXED,
            fd: file.as_raw_fd(),
            address: buffer.at(4 * MIB) as u64,
            len: MIB as u32,
            ..Entry::default()
        };
        assert_eq!(ring.run(entry), MIB as i32);
        ring.unregister();
        let noise_at = |offset: usize, salt: u64| (0..MIB / 8).all(|i| buffer.words()[offset / 8 + i] == noise(i, salt));
        assert!(noise_at(4 * MIB, 3), "what the kernel wrote to the pinned buffer");
        paged::unpin(buffer.at(4 * MIB), MIB).unwrap();
        buffer.evict();
        assert!(noise_at(4 * MIB, 3));
        buffer.check_part(0, 4 * MIB, 4);
        buffer.check_part(5 * MIB, 27 * MIB, 4);
    }
    drop(ring);
}

/// What the kernel has pinned without our knowing: MOVE sees it and leaves the chunk where it is. The others cannot see it, which
/// is why whoever hands memory to a device must pin it.
#[test]
fn registered_buffers_that_are_not_pinned() {
    let _turn = start();
    if kind() != Kind::Move {
        return println!("skipped: only MOVE is told by the kernel that a page is in use; documented at qmem_pin");
    }
    let Some((ring, file)) = ring_and_file(5) else { return };
    let buffer = Buffer::full(32 * MIB, 0, 6);
    buffer.words()[4 * MIB / 8] = noise(4 * MIB / 8, 6); // resident
    if let Err(error) = ring.register(buffer.at(4 * MIB), MIB) {
        return println!("skipped: the buffer cannot be registered (errno {error}): check ulimit -l");
    }
    assert!(paged::evict(buffer.start, buffer.size).is_err(), "the chunk that is in use stays");
    let entry = Entry {
        opcode: READ_FIXED,
        fd: file.as_raw_fd(),
        address: buffer.at(4 * MIB) as u64,
        len: MIB as u32,
        ..Entry::default()
    };
    assert_eq!(ring.run(entry), MIB as i32);
    ring.unregister();
    let arrived = || (0..MIB / 8).all(|i| buffer.words()[4 * MIB / 8 + i] == noise(i, 5));
    assert!(arrived());
    buffer.evict();
    assert!(arrived());
    buffer.check_part(0, 4 * MIB, 6);
}
