//! mlock, madvise and the kernel's own accounts on paged memory.

use super::*;

/// Comes and goes with more than the budget; whatever was advised, data stays what it is.
fn exercise(buffer: &Buffer, salt: u64) {
    let other = Buffer::full(80 * MIB, 0, salt + 1000);
    buffer.check(salt);
    other.check(salt + 1000);
    let _ = paged::evict(buffer.start, buffer.size);
    buffer.check(salt);
}

/// Locked memory is not promised to stay (that is what pinning is for), but it is right, and no more than the budget.
#[test]
fn locked_memory_is_right() {
    let _turn = start();
    for chunk in [0, 64 * KIB] {
        let buffer = Buffer::full(16 * MIB, chunk, 1);
        paged::evict(buffer.start, 8 * MIB).unwrap();
        // Parts of chunks, too: each lock splits a mapping.
        for (offset, len) in [(7 * MIB, 2 * MIB), (4096, 3 * 4096), (12 * MIB + 65536, 65536)] {
            let locked = unsafe { libc::mlock(buffer.at(offset).cast(), len) };
            assert!(locked == 0 || matches!(errno(), libc::ENOMEM | libc::EAGAIN | libc::EPERM), "errno {}", errno());
        }
        exercise(&buffer, 1);
        buffer.words().iter_mut().enumerate().for_each(|(i, w)| *w = noise(i, 2));
        exercise(&buffer, 2);
        unsafe { libc::munlock(buffer.start.cast(), buffer.size) };
        exercise(&buffer, 2);
        assert!(resident_bytes() < BUDGET + 40 * MIB, "{} bytes are resident", resident_bytes());
    }
}

/// By the kernel's count: this process, with all that is not the pager's.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn the_budget_holds_by_the_kernels_count() {
    let _turn = start();
    let before = resident_bytes();
    let mut most = 0;
    for (chunk, salt) in [(0, 1), (64 * KIB, 2), (512 * KIB, 3)] {
        let buffer = Buffer::new(192 * MIB, chunk);
        for round in 0..2 {
            for (i, w) in buffer.words().iter_mut().enumerate() {
                assert!(round == 0 || *w == noise(i, salt));
                *w = noise(i, salt);
                if i.is_multiple_of(MIB / 8) {
                    most = most.max(resident_bytes());
                }
            }
        }
    }
    // Beside the budget: the workers' buffers (2 MiB each), page by page what is in two places at a time, tables.
    assert!(most < before + BUDGET + 16 * MIB, "{most} bytes resident, {before} before");
    assert!(most > before + BUDGET / 2, "{most} bytes resident: the count is wrong");
}

#[test]
fn dropped_pages_are_zeros_where_they_are_resident() {
    let _turn = start();
    for chunk in [0, 64 * KIB] {
        let buffer = Buffer::full(8 * MIB, chunk, 3);
        paged::pin(buffer.start, 4 * MIB).unwrap();
        let dropped = MIB + 4096..MIB + 5 * 4096;
        assert_eq!(unsafe { libc::madvise(buffer.at(dropped.start).cast(), dropped.len(), libc::MADV_DONTNEED) }, 0);
        paged::unpin(buffer.start, 4 * MIB).unwrap();
        for again in [false, true] {
            for i in 0..8 * MIB / 8 {
                let want = if dropped.contains(&(i * 8)) { 0 } else { noise(i, 3) };
                assert_eq!(buffer.words()[i], want, "word {i}, evicted since: {again}");
            }
            buffer.evict();
        }
    }
}

/// Freed lazily: old or zero until it is written, and then what was written.
#[test]
fn lazily_freed_pages_are_old_or_zero() {
    let _turn = start();
    let buffer = Buffer::full(8 * MIB, 64 * KIB, 4);
    paged::pin(buffer.start, 4 * MIB).unwrap();
    let freed = unsafe { libc::madvise(buffer.at(MIB).cast(), MIB, libc::MADV_FREE) };
    assert!(freed == 0 || errno() == libc::EINVAL);
    paged::unpin(buffer.start, 4 * MIB).unwrap();
    buffer.words()[MIB / 8 + 100] = 5;
    buffer.evict();
    for i in 0..8 * MIB / 8 {
        let (found, old) = (buffer.words()[i], noise(i, 4));
        let inside = (MIB / 8..2 * MIB / 8).contains(&i);
        let right = if i == MIB / 8 + 100 { found == 5 } else { found == old || (inside && found == 0) };
        assert!(right, "word {i} is {found:#x}");
    }
}

#[test]
fn discarding_reaches_what_is_not_resident() {
    let _turn = start();
    for chunk in [0, 64 * KIB, 512 * KIB] {
        for evicted in [false, true] {
            let buffer = Buffer::full(24 * MIB + 4096, chunk, 5);
            if evicted {
                buffer.evict();
            }
            paged::prefetch(buffer.at(20 * MIB), 4 * MIB).unwrap();
            let ranges = [(3 * MIB + 8, 9 * MIB), (13 * MIB, 16), (20 * MIB, 4 * MIB + 4096)];
            for (from, len) in ranges {
                unsafe { paged::discard(buffer.at(from), len).unwrap() };
            }
            for again in [false, true] {
                for i in 0..buffer.size / 8 {
                    let gone = ranges.iter().any(|(from, len)| (*from..from + len).contains(&(i * 8)));
                    let want = if gone { 0 } else { noise(i, 5) };
                    assert_eq!(buffer.words()[i], want, "word {i}, chunks of {chunk}, evicted {evicted}, again {again}");
                }
                buffer.evict();
            }
            unsafe { paged::discard(buffer.start, buffer.size).unwrap() };
            let stats = paged::region_stats(buffer.start).unwrap();
            assert_eq!((stats.resident_bytes, stats.swapped_bytes, stats.compressed_bytes), (0, 0, 0));
            assert!(buffer.words().iter().all(|w| *w == 0));
        }
    }
    assert!(unsafe { paged::discard(std::ptr::null_mut(), 1) }.is_err());
}

/// Discarding while others read: they find what was there or zeros, and nobody is left waiting.
#[test]
fn discarding_beside_readers_and_evictors() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let _turn = start();
    let buffer = Buffer::full(4 * MIB, 64 * KIB, 6);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (buffer, stop) = (&buffer, &stop);
            scope.spawn(move || {
                let mut i = reader;
                while !stop.load(SeqCst) {
                    let found = unsafe { (buffer.start as *const u64).add(i).read_volatile() };
                    assert!(found == 0 || found == noise(i, 6), "word {i} is {found:#x}");
                    i = (i + 4099) % (4 * MIB / 8);
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                buffer.try_evict();
            }
        });
        let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
        let mut chunk = 0;
        while std::time::Instant::now() < end {
            chunk = (chunk + 7) % 64;
            unsafe { paged::discard(buffer.at(chunk * 64 * KIB), 64 * KIB).unwrap() };
            for i in (chunk * 64 * KIB / 8..).take(8 * KIB) {
                unsafe { buffer.start.cast::<u64>().add(i).write_volatile(noise(i, 6)) };
            }
        }
        stop.store(true, SeqCst);
    });
    let _ = paged::evict(buffer.start, buffer.size);
    buffer.check(6);
}

#[test]
fn other_advice_changes_no_data() {
    let _turn = start();
    for chunk in [0, 64 * KIB] {
        let buffer = Buffer::full(8 * MIB, chunk, 7);
        let all = [
            libc::MADV_WILLNEED,
            libc::MADV_COLD,
            libc::MADV_PAGEOUT,
            libc::MADV_SEQUENTIAL,
            libc::MADV_NOHUGEPAGE,
            libc::MADV_HUGEPAGE,
            libc::MADV_DONTDUMP,
            libc::MADV_POPULATE_READ,
            libc::MADV_POPULATE_WRITE,
        ];
        for advice in all {
            // Some are refused for what is not resident; parts of chunks split mappings.
            unsafe { libc::madvise(buffer.at(3 * 4096).cast(), 5 * MIB, advice) };
            exercise(&buffer, 7);
        }
    }
}
