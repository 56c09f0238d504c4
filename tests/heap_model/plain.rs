//! Plain blocks, as a program's malloc gives them: against a model, freed twice, freed wrongly, freed by others.

use super::*;
use qmem::heap::{Lookup, PLAIN_TAG};
use std::collections::BTreeMap;
use std::ptr::null_mut;

/// free as the preload does it; false: the heap says that it is no live block's start.
fn free(ptr: *mut u8) -> bool {
    let mut taken = true;
    unsafe {
        heap::free_or(ptr, |ptr| taken = heap::free_own(ptr) || heap::free_others(ptr, true) || heap::free(ptr));
    }
    taken
}

/// `free` looks at one byte of a block first; what is there may be anything.
#[test]
fn data_that_look_like_a_mark_are_freed_once() {
    let _guard = shared();
    let mut unsure = 0;
    for byte in 0..=255u8 {
        for size in [16, 100, 1024, 5000, 32 << 10] {
            let start = heap::malloc(size);
            unsafe { start.write_bytes(byte, size) };
            let mut taken = true;
            unsafe {
                heap::free_or(start, |start| {
                    unsure += 1;
                    taken = heap::free_own(start);
                });
            }
            assert!(taken, "{size} bytes of {byte:#x} are taken for a free block");
            assert!(!free(start), "a second free of {size} bytes of {byte:#x} was taken");
        }
    }
    assert!(unsure <= 5, "{unsure} of the blocks took the long way; one byte's value of 256 does");
}

#[test]
fn a_large_block_that_is_kept_is_known_as_freed() {
    let _guard = alone();
    let start = heap::malloc(3 << 20);
    assert!(free(start));
    assert!(matches!(heap::find(start), Lookup::Freed { start: found } if found == start));
    assert!(!free(start));
    heap::trim(); // unmapped now
    assert!(matches!(heap::find(start), Lookup::Freed { start: found } if found == start));
    assert!(!free(start));
}

#[test]
fn random_operations_agree_with_the_model() {
    let _guard = shared();
    for (seed, bits, most) in [(1, 7, 6000), (2, 11, 3000), (3, 16, 400), (4, 21, 40)] {
        let mut random = Random(seed);
        let mut live: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
        for step in 0..20_000u64 {
            let pick = |random: &mut Random, live: &BTreeMap<usize, (usize, u64)>| {
                let from = live.keys().nth(random.below(live.len().max(1))).copied();
                from.map(|at| (at, live[&at]))
            };
            match random.below(if live.len() < most { 8 } else { 12 }) {
                0..=4 => {
                    let size = random.size(bits);
                    let start = heap::malloc(size);
                    assert!((start as usize).is_multiple_of(16) && heap::usable(start) >= size);
                    let below = live.range(..start as usize).next_back();
                    assert!(below.is_none_or(|(at, (size, _))| at + size <= start as usize));
                    unsafe { fill(start, size, step) };
                    assert!(live.insert(start as usize, (size, step)).is_none(), "{start:?} is given twice");
                }
                5 => {
                    let Some((at, (size, seed))) = pick(&mut random, &live) else { continue };
                    let to = random.size(bits).max(1);
                    let own = if step % 4 == 0 { null_mut() } else { unsafe { heap::resize_own(at as *mut u8, to) } };
                    let moved = if own.is_null() { unsafe { heap::resize(at as *mut u8, to) }.unwrap().as_ptr() } else { own };
                    unsafe { check(moved, size, seed, to) };
                    assert!(matches!(heap::find(moved), Lookup::Live(block) if block.tag == PLAIN_TAG && block.usable >= to));
                    live.remove(&at);
                    unsafe { fill(moved, to, seed) };
                    live.insert(moved as usize, (to, seed));
                }
                _ => {
                    let Some((at, (size, seed))) = pick(&mut random, &live) else { continue };
                    unsafe { check(at as *const u8, size, seed, usize::MAX) };
                    assert!(free(at as *mut u8));
                    live.remove(&at);
                    assert!(!free(at as *mut u8), "a second free of {at:#x} was taken");
                }
            }
        }
        for (at, (size, seed)) in live {
            unsafe { check(at as *const u8, size, seed, usize::MAX) };
            assert!(free(at as *mut u8));
        }
    }
}

/// Every block of a class, freed twice in every order, before and after other blocks went and came, and after the bins were refilled.
#[test]
fn no_second_free_of_a_block_that_was_not_given_again_is_taken() {
    let _guard = alone();
    for size in [1, 16, 17, 100, 128, 300, 1024, 1025, 5000, 32_768, 40_000, 1 << 20] {
        let mut random = Random(size as u64);
        // In larger heaps a second free is not refused but reported (c_tests/preload/bad_pointers.c).
        let count = ((2 << 20) / size).clamp(40, 3000);
        let blocks: Vec<*mut u8> = (0..count).map(|_| heap::malloc(size)).collect();
        let mut freed = Vec::new();
        for block in &blocks {
            if random.below(3) == 0 {
                assert!(free(*block) && !free(*block) && unsafe { heap::resize_own(*block, size) }.is_null());
                freed.push(*block);
            }
        }
        // Some are given again; those that are not stay free, wherever they wait.
        let again: Vec<*mut u8> = (0..freed.len() / 2).map(|_| heap::malloc(size)).collect();
        for block in freed.iter().filter(|block| !again.contains(block)) {
            assert!(!free(*block), "{block:?} of {size} bytes");
        }
        for block in blocks.iter().filter(|block| !freed.contains(block) || again.contains(block)) {
            assert!(free(*block), "{block:?} of {size} bytes");
        }
        again.iter().filter(|block| !blocks.contains(block)).for_each(|block| assert!(free(*block)));
    }
}

/// In a heap that is larger than caches, where freed blocks are looked at a few frees later.
#[test]
fn blocks_of_a_large_heap_are_given_once_and_keep_their_contents() {
    let _guard = shared();
    let mut random = Random(41);
    let fill = |block: *mut u8, size: usize, with: u64| {
        for at in (0..size / 8).step_by(3) {
            unsafe { block.cast::<u64>().add(at).write(with ^ at as u64) };
        }
    };
    let sizes = [24usize, 64, 64, 112, 400, 1000, 2000];
    let mut live: Vec<(*mut u8, usize, u64)> = Vec::new();
    for step in 0..400_000u64 {
        let at = if live.is_empty() { 0 } else { random.below(live.len()) };
        if live.len() >= 60_000 || (step > 200_000 && random.below(3) > 0 && !live.is_empty()) {
            let (block, size, with) = live.swap_remove(at);
            for at in (0..size / 8).step_by(3) {
                assert_eq!(unsafe { block.cast::<u64>().add(at).read() }, with ^ at as u64, "block {block:?} of {size} bytes");
            }
            assert!(free(block));
            if step.is_multiple_of(64) {
                assert!(matches!(heap::find(block), heap::Lookup::Freed { start } if start == block));
            }
        } else {
            let size = sizes[random.below(sizes.len())];
            let block = heap::malloc(size);
            fill(block, size, step);
            live.push((block, size, step));
        }
        if step.is_multiple_of(97) && !live.is_empty() {
            let at = random.below(live.len());
            let (block, size, with) = live[at];
            assert!(heap::usable(block) >= size && heap::usable_own(block as usize).is_some_and(|usable| usable >= size));
            let larger = size + size / 2;
            let moved = unsafe { heap::resize_own(block, larger) };
            assert!(!moved.is_null());
            assert_eq!(unsafe { moved.cast::<u64>().read() }, with, "{size} to {larger}");
            fill(moved, larger, with);
            live[at] = (moved, larger, with);
        }
    }
    live.drain(..).for_each(|(block, _, _)| assert!(free(block)));
    heap::trim();
}

#[test]
fn what_is_no_blocks_start_is_refused() {
    let _guard = shared();
    for size in [16, 48, 100, 640, 1024, 3000, 20_000, 100_000, 3 << 20] {
        let block = heap::malloc(size);
        for offset in [1, 8, 15, 16, 17, 32, size / 2, size - 1] {
            if offset < heap::usable(block) {
                assert!(!free(block.wrapping_add(offset)), "{offset} bytes into a block of {size}");
            }
        }
        let elsewhere = block as usize;
        let seen = std::thread::spawn(move || (1..16).all(|offset| !free((elsewhere + offset) as *mut u8))).join();
        assert!(seen.unwrap() && free(block));
    }
    let mut on_stack = [0u8; 64];
    assert!(!free(on_stack.as_mut_ptr()) && !free(std::ptr::without_provenance_mut(usize::MAX & !15)));
}

#[test]
fn blocks_freed_by_others_come_back_once() {
    // Alone: a heap that a thread of another test left may be a large one, in which a second free is not refused but reported.
    let _guard = alone();
    for size in [16, 200, 1024, 9000, 70_000] {
        for _ in 0..20 {
            let blocks: Vec<usize> = (0..500).map(|_| heap::malloc(size) as usize).collect();
            let sent = blocks.clone();
            let twice = move || sent.iter().all(|at| free(*at as *mut u8) && !free(*at as *mut u8));
            assert!(std::thread::spawn(twice).join().unwrap(), "blocks of {size}");
            assert!(blocks.iter().all(|at| !free(*at as *mut u8)), "a block of {size} that another thread freed was taken");
        }
    }
}

/// A block is known as freed by what the heap wrote into it; what lay there before in smaller blocks is no such word.
#[test]
fn what_smaller_blocks_left_does_not_count_as_freed() {
    let _guard = alone();
    let small: Vec<*mut u8> = (0..100_000).map(|_| heap::malloc(16)).collect();
    small.into_iter().for_each(|block| assert!(free(block)));
    let blocks: Vec<usize> = (0..500).map(|_| heap::malloc(1500) as usize).collect();
    let others = move || blocks.iter().all(|block| free(*block as *mut u8) && !free(*block as *mut u8));
    assert!(std::thread::spawn(others).join().unwrap());
}

/// Blocks of one slice that two threads freed, one of which has not sent its own yet.
#[test]
fn what_is_on_its_way_is_known_as_freed_until_all_of_it_came() {
    let _guard = alone();
    let work = || {
        for size in [1100usize, 2000] {
            let blocks: Vec<usize> = (0..5000).map(|_| heap::malloc(size) as usize).collect();
            let kept = blocks[4000];
            let sent: Vec<usize> = blocks.iter().copied().filter(|block| block ^ kept < 1 << 16 && *block != kept).collect();
            let (freed, wait) = std::sync::mpsc::channel();
            let (end, until) = std::sync::mpsc::channel::<()>();
            let keeps = std::thread::spawn(move || {
                assert!(!heap::malloc(16).is_null() && free(kept as *mut u8));
                freed.send(()).unwrap();
                until.recv().unwrap();
            });
            wait.recv().unwrap();
            let passed = sent.clone();
            let sends = move || assert!(!heap::malloc(16).is_null() && passed.into_iter().all(|block| free(block as *mut u8)));
            std::thread::spawn(sends).join().unwrap();
            let more: Vec<usize> = (0..5000).map(|_| heap::malloc(size) as usize).collect(); // takes in what was sent
            assert!(sent.iter().all(|block| more.contains(block)) && !more.contains(&kept));
            assert!(!free(kept as *mut u8), "a block of {size} bytes that another thread freed was taken");
            end.send(()).unwrap();
            keeps.join().unwrap();
            let rest = blocks.iter().filter(|block| !sent.contains(block) && **block != kept);
            assert!(more.iter().chain(rest).all(|block| free(*block as *mut u8)));
        }
    };
    std::thread::spawn(work).join().unwrap();
}

/// What lies ready of blocks of more than 1 KiB keeps no memory when the thread trims, ends, or has gone on for a while.
#[test]
fn blocks_that_lie_ready_go_back() {
    let _guard = alone();
    const SIZES: std::ops::RangeInclusive<usize> = 9..=256; // in units of 128 bytes
    // Freed in a random order, so that those that come last lie in many slices.
    let use_all = || {
        let mut random = Random(7);
        let mut blocks: Vec<*mut u8> = SIZES.flat_map(|size| (0..40).map(move |_| heap::malloc(size * 128))).collect();
        while !blocks.is_empty() {
            assert!(free(blocks.swap_remove(random.below(blocks.len()))));
        }
    };
    let charged = || heap::stats().charged >> 10;
    at_most(1);
    heap::trim();
    let before = charged();
    use_all();
    heap::trim();
    assert!(charged() <= before, "{} KiB after a trim, {before} before", charged());
    std::thread::spawn(use_all).join().unwrap();
    heap::trim();
    assert!(charged() <= before, "{} KiB after a thread, {before} before", charged());
    let goes_on = move || {
        use_all();
        let kept = charged();
        std::thread::sleep(std::time::Duration::from_millis(400));
        // Blocks of another size, enough for the heap to look around.
        for _ in 0..4 {
            let small: Vec<*mut u8> = (0..20_000).map(|_| heap::malloc(64)).collect();
            assert!(small.into_iter().all(free));
            std::thread::sleep(std::time::Duration::from_millis(400));
        }
        (kept, charged())
    };
    let (kept, after) = std::thread::spawn(goes_on).join().unwrap();
    assert!(after < before + (6 << 10), "{after} KiB after a while, {kept} at first, {before} before");
}

/// Where blocks are more than 1 KiB, of slices that are cut block by block, also in large heaps.
#[test]
fn only_blocks_that_were_given_and_not_freed_are_freed() {
    let _guard = alone();
    let work = || {
        for size in [1100usize, 3000, 5000, 20_000, 32_768] {
            let class = heap::usable(heap::malloc(size));
            let mut blocks: Vec<*mut u8> = (0..(64 << 20) / size).map(|_| heap::malloc(size)).collect();
            let highest = blocks.iter().max().copied().unwrap();
            assert!(!free(highest.wrapping_add(class)), "a block of {size} bytes that was never given");
            let mut random = Random(size as u64);
            for _ in 0..20_000 {
                let at = random.below(blocks.len());
                assert!(free(blocks[at]) && !free(blocks[at]), "{size} bytes");
                assert!(!free(blocks[at].wrapping_add(1024)));
                blocks[at] = heap::malloc(size);
            }
            let mut sorted = blocks.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(sorted.len(), blocks.len(), "a block of {size} bytes was given twice");
            assert!(blocks.into_iter().all(free));
        }
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn a_thread_that_ends_gives_back_what_it_had_put_aside() {
    let _guard = alone();
    let charged = || {
        at_most(1);
        heap::trim();
        heap::stats().charged
    };
    let before = charged();
    for seed in 0..10 {
        // In a random order, so that they are cold, and the last of many slices are among the last that are freed.
        let work = move || {
            let mut random = Random(seed);
            let mut blocks: Vec<*mut u8> = (0..300_000).map(|_| heap::malloc(64)).collect();
            for _ in 0..1_000_000 {
                let at = random.below(blocks.len());
                assert!(free(blocks[at]));
                blocks[at] = heap::malloc(64);
            }
            while !blocks.is_empty() {
                assert!(free(blocks.swap_remove(random.below(blocks.len()))));
            }
        };
        std::thread::spawn(work).join().unwrap();
    }
    let after = charged();
    assert!(after <= before, "{after} bytes stay charged, {before} at the start");
}

/// Blocks of a heap that nobody runs, and that is not the next one that a thread would get.
fn left_behind() -> Vec<usize> {
    let (has_heap, wait) = std::sync::mpsc::channel();
    let (end, until) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        assert!(free(heap::malloc(64)));
        has_heap.send(()).unwrap();
        until.recv().unwrap();
    });
    wait.recv().unwrap();
    let blocks = std::thread::spawn(|| (0..5000).map(|_| heap::malloc(64) as usize).collect()).join().unwrap();
    end.send(()).unwrap();
    other.join().unwrap();
    blocks
}

/// Threads that hand their blocks on: the next one need not send them back.
#[test]
fn who_frees_an_idle_heaps_blocks_goes_on_with_that_heap() {
    let _guard = alone();
    for own_first in [false, true] {
        let blocks = left_behind();
        let work = move || {
            let own = if own_first { heap::malloc(64) } else { null_mut() };
            for block in &blocks {
                assert!(free(*block as *mut u8));
                if !own_first {
                    break;
                }
            }
            let new = heap::malloc(64);
            assert!(new as usize == blocks[0] || (new as usize).abs_diff(blocks[0]) < 64 << 20, "{new:?} is of another heap");
            assert!(free(new));
            let rest = if own_first { vec![own] } else { blocks[1..].iter().map(|block| *block as *mut u8).collect() };
            rest.into_iter().for_each(|block| assert!(free(block)));
        };
        std::thread::spawn(work).join().unwrap();
    }
}

/// Of each class one bin has blocks: what is free is given from one place.
#[test]
fn blocks_of_no_bytes_come_from_where_blocks_of_sixteen_come_from() {
    let _guard = alone();
    let work = || {
        // What lies ready goes first, in whatever order.
        let mut blocks: Vec<*mut u8> = (0..200_000).map(|_| heap::malloc(16)).collect();
        let pairs: Vec<_> = (0..500).map(|_| (heap::malloc(0), heap::malloc(16))).collect();
        let together = pairs.iter().filter(|(none, some)| (*none as usize).abs_diff(*some as usize) == 16).count();
        blocks.extend(pairs.iter().flat_map(|(none, some)| [*none, *some]));
        blocks.into_iter().for_each(|block| assert!(free(block)));
        assert!(together > 450, "{together} of 500 pairs lie side by side");
    };
    std::thread::spawn(work).join().unwrap();
}
