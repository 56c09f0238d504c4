//! Several threads: each block has one holder, no more than max_capacity are live, none is out of reach, and the numbers agree.

use super::*;
use qmem::error::Status;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, mpsc};

#[test]
fn threads_that_pass_blocks_around_share_a_pool() {
    let _guard = alone();
    const THREADS: usize = 5;
    const SIZES: [usize; 4] = [32, 100, 1000, 9000];
    const MAX: usize = 900;
    for cache in [false, true] {
        let handle = create(&SIZES, 10, MAX, cache);
        let channels: Vec<_> = (0..THREADS).map(|_| mpsc::channel::<Vec<(usize, usize)>>()).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        // Counted before a block is released and after it was given: never more than are live.
        let live: [AtomicUsize; 4] = std::array::from_fn(|_| AtomicUsize::new(0));
        let (given, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for (own, receiver) in receivers.into_iter().enumerate() {
                let next = senders[(own + 1) % THREADS].clone();
                let (live, given, refused) = (&live, &given, &refused);
                s.spawn(move || {
                    let mut random = Random(own as u64 + 100);
                    for round in 0..400 {
                        let mut batch = receiver.try_recv().unwrap_or_default();
                        batch.retain(|(start, size)| {
                            unsafe { check(*start, *size) };
                            let keep = random.below(3) == 0;
                            if !keep {
                                live[SIZES.iter().position(|s| s == size).unwrap()].fetch_sub(1, SeqCst);
                                unsafe { pool::release(handle, *start as *mut u8).unwrap() };
                            }
                            keep
                        });
                        for _ in 0..random.below(120) {
                            let class = random.below(4);
                            match pool::allocate(handle, SIZES[class] - 3) {
                                Ok(block) => {
                                    assert!(live[class].fetch_add(1, SeqCst) < MAX);
                                    unsafe { fill(block.as_ptr() as usize, SIZES[class]) };
                                    batch.push((block.as_ptr() as usize, SIZES[class]));
                                    given.fetch_add(1, SeqCst);
                                }
                                Err(error) => {
                                    assert_eq!(error.status, Status::Limit, "{error}");
                                    refused.fetch_add(1, SeqCst);
                                }
                            }
                        }
                        if round % 50 == own {
                            pool::trim(handle).unwrap();
                            let _ = pool::warm(handle, SIZES[own % 4], 20); // LIMIT where all are in use
                        }
                        let _ = next.send(batch);
                    }
                });
            }
        });
        drop(senders);
        let stats = pool::stats(handle).unwrap();
        let left: Vec<usize> = live.iter().map(|n| n.load(SeqCst)).collect();
        let bytes: usize = left.iter().zip(SIZES).map(|(n, size)| n * size).sum();
        assert_eq!((stats.given, stats.live), (given.load(SeqCst) as u64, bytes));
        assert_eq!((stats.given - stats.taken) as usize, left.iter().sum::<usize>());
        // Each thread may not have told of what its magazines hold: 16 KiB or two blocks of a size.
        let untold = THREADS * SIZES.len() * (18 << 10);
        let most = MAX * SIZES.iter().sum::<usize>() + untold;
        assert!(stats.peak >= stats.live && stats.peak <= most, "{stats:?}, at most {most}");
        assert!(refused.load(SeqCst) > 0 || left.iter().all(|n| *n < MAX));
        let mut ended = 0;
        unsafe { pool::destroy(handle, &mut |_, size| ended += size).unwrap() };
        assert_eq!(ended, bytes);
    }
}

/// A thread keeps blocks at hand, and another, or one that has ended, must not keep them from who needs them.
#[test]
fn what_threads_keep_at_hand_is_not_out_of_reach() {
    let _guard = alone();
    const MAX: usize = 300;
    let handle = create(&[48], 1, MAX, true);
    let all = || -> Vec<usize> {
        (0..MAX).map(|n| pool::allocate(handle, 48).unwrap_or_else(|e| panic!("{n}: {e}")).as_ptr() as usize).collect()
    };
    let back = |blocks: Vec<usize>| blocks.into_iter().for_each(|b| unsafe { pool::release(handle, b as *mut u8).unwrap() });
    let (idle, done) = (Barrier::new(9), Barrier::new(9));
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                let some: Vec<usize> = (0..30).map(|_| pool::allocate(handle, 48).unwrap().as_ptr() as usize).collect();
                back(some);
                idle.wait();
                done.wait();
            });
        }
        idle.wait();
        for _ in 0..3 {
            let blocks = all();
            assert_eq!(pool::allocate(handle, 48).unwrap_err().status, Status::Limit);
            back(blocks);
        }
        done.wait();
    });
    back(all());
    end(handle);
}

/// The exhausted collect from threads that allocate and release all the time; a free block is always found by somebody.
#[test]
fn collecting_from_busy_threads_loses_no_block() {
    let _guard = alone();
    const MAX: usize = 64;
    let handle = create(&[64], 1, MAX, true);
    let (stop, spare) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|s| {
        // Each has at most 8 at a time: 5 of them never need more than there are.
        for own in 0..5u64 {
            let (stop, spare) = (&stop, &spare);
            s.spawn(move || {
                let mut random = Random(own);
                let mut mine = Vec::new();
                while !stop.load(SeqCst) {
                    if mine.len() < 8 && random.below(2) == 0 {
                        let block = pool::allocate(handle, 64).expect("at most 40 of 64 blocks are live").as_ptr();
                        unsafe { block.cast::<u64>().write(own) };
                        mine.push(block);
                        spare.fetch_add(1, SeqCst);
                    } else if let Some(block) = mine.pop() {
                        assert_eq!(unsafe { block.cast::<u64>().read() }, own);
                        unsafe { pool::release(handle, block).unwrap() };
                    }
                }
                mine.into_iter().for_each(|block| unsafe { pool::release(handle, block).unwrap() });
            });
        }
        while spare.load(SeqCst) < 300_000 {
            std::thread::yield_now();
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(pool::stats(handle).unwrap().live, 0);
    end(handle);
}

#[test]
fn of_two_threads_that_release_one_block_exactly_one_succeeds() {
    let _guard = alone();
    let handle = create(&[64, 100_000], 4, 64, true);
    for round in 0..3000 {
        let block = pool::allocate(handle, if round % 2 == 0 { 64 } else { 100_000 }).unwrap().as_ptr() as usize;
        let (go, wins) = (Barrier::new(2), AtomicUsize::new(0));
        let race = || {
            go.wait();
            wins.fetch_add(unsafe { pool::release(handle, block as *mut u8) }.is_ok() as usize, SeqCst);
        };
        if round % 30 < 2 {
            std::thread::scope(|s| {
                s.spawn(race);
                race();
            });
            assert_eq!(wins.load(SeqCst), 1);
        } else {
            unsafe { pool::release(handle, block as *mut u8).unwrap() };
        }
    }
    end(handle);
}

#[test]
fn a_child_of_fork_finds_its_pools_whole() {
    let _guard = alone();
    let handle = create(&[64, 2000], 10, 4000, true);
    let stop = AtomicBool::new(false);
    let mut failed = None;
    std::thread::scope(|s| {
        for own in 0..3u64 {
            let stop = &stop;
            s.spawn(move || {
                let mut random = Random(own);
                let mut mine = Vec::new();
                while !stop.load(SeqCst) {
                    if mine.len() < 500 && random.below(3) > 0 {
                        mine.push(pool::allocate(handle, if random.below(2) == 0 { 64 } else { 2000 }).unwrap().as_ptr());
                    } else {
                        mine.drain(..).for_each(|block| unsafe { pool::release(handle, block).unwrap() });
                    }
                }
                mine.drain(..).for_each(|block| unsafe { pool::release(handle, block).unwrap() });
            });
        }
        for round in 0..150 {
            pool::before_fork();
            qmem::heap::before_fork();
            let child = unsafe { libc::fork() };
            unsafe {
                qmem::heap::after_fork();
                pool::after_fork(child == 0);
            }
            if child == 0 {
                unsafe { libc::alarm(20) };
                let mut blocks = Vec::new();
                while let Ok(block) = pool::allocate(handle, 64) {
                    blocks.push(block.as_ptr());
                }
                let enough = blocks.len() >= 4000 - 1500;
                let back = blocks.into_iter().all(|block| unsafe { pool::release(handle, block) }.is_ok());
                let code = if enough && back && pool::trim(handle).is_ok() { 0 } else { 1 };
                unsafe { libc::_exit(code) };
            }
            let mut status = -1;
            unsafe { libc::waitpid(child, &mut status, 0) };
            if status != 0 {
                failed = Some((round, status));
                break;
            }
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(failed, None, "a child hung or ended badly: (round, wait status)");
    end(handle);
}
