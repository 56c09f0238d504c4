//! System calls that read into paged memory or write from it: right data where the kernel may fault, EFAULT where it may not, right
//! data in both cases for what is held or pinned.

use super::*;
use std::os::fd::AsRawFd;

/// Reads the whole file into the buffer as the preload's wrapper does: as much at a time as is held.
fn read_held(fd: i32, buffer: &Buffer, offset: usize, len: usize) {
    let mut done = 0;
    while done < len {
        let hold = paged::hold(buffer.at(offset + done), len - done).unwrap();
        assert!(hold.bytes > 0 && hold.bytes <= len - done);
        let n = unsafe { libc::pread(fd, buffer.at(offset + done).cast(), hold.bytes, (offset + done) as i64) };
        assert!(n > 0, "read {n}, errno {}", errno());
        done += n as usize;
    }
}

fn write_held(fd: i32, buffer: &Buffer) {
    let mut done = 0;
    while done < buffer.size {
        let hold = paged::hold(buffer.at(done), buffer.size - done).unwrap();
        let n = unsafe { libc::pwrite(fd, buffer.at(done).cast(), hold.bytes, done as i64) };
        assert!(n > 0, "wrote {n}, errno {}", errno());
        done += n as usize;
    }
}

#[test]
fn reads_and_writes_of_more_than_the_budget() {
    let _turn = start();
    for direct in [false, true] {
        let Some(file) = file(direct) else {
            println!("skipped: no file for direct I/O can be made in /var/tmp");
            return;
        };
        let fd = file.as_raw_fd();
        for chunk in [0, 64 * KIB] {
            let (from, to) = (Buffer::full(96 * MIB, chunk, 1), Buffer::new(96 * MIB, chunk));
            from.evict();
            write_held(fd, &from);
            read_held(fd, &to, 0, to.size);
            to.evict();
            to.check(1);
            from.check(1);
            assert_eq!(paged::stats().pinned_bytes, 0);
        }
    }
}

/// Without holding anything: right, or EFAULT before anything is transferred, or a short transfer of right bytes.
#[test]
fn system_calls_on_what_is_not_resident() {
    let _turn = start();
    let file = file(false).unwrap();
    let fd = file.as_raw_fd();
    let (from, to) = (Buffer::full(8 * MIB, 0, 2), Buffer::full(8 * MIB, 0, 3));
    from.evict();
    let wrote = unsafe { libc::pwrite(fd, from.start.cast(), from.size, 0) };
    if kernel_faults() {
        assert_eq!(wrote, from.size as isize);
    } else {
        assert_eq!((wrote, errno()), (-1, libc::EFAULT));
        write_held(fd, &from);
    }
    to.evict();
    let read = unsafe { libc::pread(fd, to.start.cast(), to.size, 0) };
    if kernel_faults() {
        assert_eq!(read, to.size as isize);
        to.check(2);
    } else {
        assert_eq!((read, errno()), (-1, libc::EFAULT));
        to.check(3);
        paged::pin(to.start, 2 * MIB).unwrap();
        to.words()[0] = 7;
        paged::evict(to.at(2 * MIB), 6 * MIB).unwrap();
        let read = unsafe { libc::pread(fd, to.start.cast(), to.size, 0) };
        assert!((1..=2 * MIB as isize).contains(&read), "{read}");
        to.check_part(0, read as usize / 8 * 8, 2);
        to.check_part(2 * MIB, 6 * MIB, 3);
        paged::unpin(to.start, 2 * MIB).unwrap();
    }
    // A structure that the kernel fills.
    to.evict();
    let status = unsafe { libc::fstat(fd, to.at(4 * MIB).cast()) };
    assert_eq!(status == 0, kernel_faults());
    let vector = libc::iovec { iov_base: to.at(6 * MIB).cast(), iov_len: 4 * KIB };
    to.evict();
    let read = unsafe { libc::preadv(fd, &raw const vector, 1, 0) };
    assert_eq!(read, if kernel_faults() { 4 * KIB as isize } else { -1 });
}

/// Direct I/O pins pages for as long as it takes, and chunks are evicted meanwhile: MOVE refuses those, under the others they are
/// held, and nothing is lost.
#[test]
fn direct_reads_while_chunks_are_evicted() {
    let _turn = start();
    let Some(file) = file(true) else {
        println!("skipped: no file for direct I/O can be made in /var/tmp");
        return;
    };
    let fd = file.as_raw_fd();
    let buffer = Buffer::full(32 * MIB, 0, 4);
    write_held(fd, &buffer);
    buffer.words().fill(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                buffer.try_evict();
            }
        });
        for _ in 0..4 {
            for offset in (0..buffer.size).step_by(MIB) {
                read_held(fd, &buffer, offset, MIB);
                buffer.check_part(offset, MIB, 4);
                buffer.bytes(offset, MIB).fill(0);
            }
        }
        for offset in (0..buffer.size).step_by(MIB) {
            read_held(fd, &buffer, offset, MIB);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    buffer.check(4);
}

#[test]
fn a_hold_is_no_larger_than_the_budget_bears() {
    let _turn = start();
    let buffer = Buffer::full(60 * MIB, 0, 5);
    if kind() == Kind::Move && kernel_faults() {
        assert!((MIB..16 * MIB).contains(&paged::hold(buffer.start, buffer.size).unwrap().bytes));
        assert_eq!(paged::stats().pinned_bytes, 0, "the kernel looks after it");
    } else {
        let hold = paged::hold(buffer.at(3), buffer.size - 3).unwrap();
        assert!((MIB..16 * MIB).contains(&hold.bytes), "{}", hold.bytes);
        assert!(paged::stats().pinned_bytes >= hold.bytes);
        drop(hold);
        paged::pin(buffer.start, 46 * MIB).unwrap();
        let least = paged::hold(buffer.at(50 * MIB), 8 * MIB);
        assert!(least.is_ok_and(|hold| hold.bytes <= 2 * MIB), "one chunk where there is room for no more");
        paged::unpin(buffer.start, 46 * MIB).unwrap();
    }
    assert_eq!(paged::stats().pinned_bytes, 0);
    let plain = [0u8; 100];
    assert_eq!(paged::hold(plain.as_ptr(), 100).unwrap().bytes, 100);
}

/// The pages lie in a pipe by reference: pinned, they hold what was written until they are read.
#[test]
fn pages_given_to_a_pipe() {
    let _turn = start();
    let buffer = Buffer::full(8 * MIB, 64 * KIB, 6);
    let mut pipe = [0; 2];
    assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    paged::pin(buffer.at(MIB), 64 * KIB).unwrap();
    let vector = libc::iovec { iov_base: buffer.at(MIB).cast(), iov_len: 32 * KIB };
    assert_eq!(unsafe { libc::vmsplice(pipe[1], &raw const vector, 1, 0) }, 32 * KIB as isize);
    assert!(paged::evict(buffer.start, buffer.size).is_err());
    let mut got = vec![0u8; 32 * KIB];
    assert_eq!(unsafe { libc::read(pipe[0], got.as_mut_ptr().cast(), got.len()) }, 32 * KIB as isize);
    assert_eq!(got, buffer.bytes(MIB, 32 * KIB));
    paged::unpin(buffer.at(MIB), 64 * KIB).unwrap();
    // Unpinned and not resident, it is refused or right.
    buffer.evict();
    let moved = unsafe { libc::vmsplice(pipe[1], &raw const vector, 1, 0) };
    assert!(moved > 0 || errno() == libc::EFAULT);
    assert_eq!(moved > 0, kernel_faults(), "moved {moved}");
    unsafe {
        libc::close(pipe[0]);
        libc::close(pipe[1]);
    }
    buffer.check(6);
}
