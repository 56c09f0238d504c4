//! Memory: what is charged, resident, kept and given back.

use super::*;
use qmem::error::Status;
use qmem::heap::Lookup;
use qmem::monitor::account::{self, Holder};

#[test]
fn the_budget_is_charged_before_and_uncharged_after() {
    let _guard = alone();
    let warm = heap::allocate(10, 16, false, 0).unwrap();
    assert!(unsafe { heap::free(warm.as_ptr()) });
    heap::trim();
    let start = account::held(Holder::Heap);
    let budget = account::resident() + (24 << 20);
    account::set_budget(budget);
    let mut random = Random(77);
    for round in 0..20 {
        let bits = [8, 14, 19, 22][round % 4];
        let mut blocks = Vec::new();
        let error = loop {
            match heap::allocate(random.size(bits), 16, false, 5) {
                Ok(block) => blocks.push(block.as_ptr()),
                Err(error) => break error,
            }
            assert!(account::resident() <= budget);
        };
        assert_eq!(error.status, Status::OutOfMemory);
        assert!(error.to_string().contains(&budget.to_string()), "{error}");
        let used: usize = blocks.iter().map(|b| heap::usable(*b)).sum();
        assert!(used > 12 << 20, "only {used} bytes of 24 MiB could be had in blocks up to 1 << {bits}");
        let live = blocks.last().copied().unwrap();
        let refused = unsafe { heap::resize(live, 64 << 20) };
        assert_eq!(refused.unwrap_err().status, Status::OutOfMemory);
        assert!(matches!(heap::find(live), Lookup::Live(_)), "a refused resize lost the block");
        for at in (1..blocks.len()).rev() {
            blocks.swap(at, random.below(at + 1));
        }
        assert!(blocks.into_iter().all(|b| unsafe { heap::free(b) }));
        heap::trim();
        assert!(account::held(Holder::Heap) <= start, "{} bytes stay charged, {start} at the start", account::held(Holder::Heap));
    }
    account::set_budget(usize::MAX);
}

#[test]
fn what_is_charged_covers_what_is_resident() {
    let _guard = alone();
    let resident = || {
        // Without the program's own pages, which come as they are needed.
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        anonymous.unwrap().parse::<usize>().unwrap() << 10
    };
    heap::trim();
    let (before, charged) = (resident(), account::resident());
    let mut blocks = Vec::new();
    let mut random = Random(5);
    while account::resident() < charged + (64 << 20) {
        let size = random.size(21);
        let block = heap::allocate(size, 16, false, 6).unwrap().as_ptr();
        unsafe { block.write_bytes(1, heap::usable(block)) };
        blocks.push(block);
    }
    let (full, before_sparse) = (blocks.len(), resident());
    for _ in 0..60 {
        let block = heap::allocate(500 << 10, 16, false, 6).unwrap().as_ptr();
        unsafe { block.write(1) };
        blocks.push(block);
    }
    let sparse = resident() - before_sparse;
    assert!(sparse < 4 << 20, "{sparse} bytes became resident for 60 touched pages");
    assert!(blocks.drain(full..).all(|b| unsafe { heap::free(b) }));
    heap::trim();
    let (grown, promised) = (resident() - before, account::resident() - charged);
    assert!(grown <= promised + (1 << 20), "{grown} bytes became resident, {promised} were charged");
    assert!(grown * 10 >= promised * 7, "{promised} bytes were charged for {grown} resident");
    assert!(blocks.into_iter().all(|b| unsafe { heap::free(b) }));
    heap::trim();
    let left = resident().saturating_sub(before);
    assert!(left < 4 << 20, "{left} bytes stay resident after everything was freed");
}

/// A huge page in a segment would make more resident than is charged.
#[test]
fn segments_refuse_huge_pages() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return;
    }
    let _guard = shared();
    let block = heap::allocate(100, 16, false, 0).unwrap().as_ptr();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let flags = maps.lines().find(|line| {
        if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let bound = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            inside = (bound(from)..bound(to)).contains(&(block as usize));
        }
        inside && line.starts_with("VmFlags:")
    });
    assert!(flags.unwrap().contains(" nh"), "{flags:?}");
    assert!(unsafe { heap::free(block) });
}

#[test]
fn several_threads_at_the_budgets_edge_stay_inside_it() {
    let _guard = alone();
    heap::trim();
    let budget = account::resident() + (12 << 20);
    account::set_budget(budget);
    std::thread::scope(|s| {
        for n in 0..4 {
            s.spawn(move || {
                let mut random = Random(n);
                let mut blocks = Vec::new();
                let mut refused = 0;
                for _ in 0..20_000 {
                    let bits = [8, 13, 17, 20][random.below(4)];
                    match heap::allocate(random.size(bits), 16, true, 4) {
                        Ok(block) => blocks.push(block.as_ptr()),
                        Err(error) => {
                            assert_eq!(error.status, Status::OutOfMemory);
                            refused += 1;
                            for _ in 0..blocks.len() / 2 {
                                let at = random.below(blocks.len());
                                assert!(unsafe { heap::free(blocks.swap_remove(at)) });
                            }
                        }
                    }
                    assert!(account::resident() <= budget);
                }
                assert!(refused > 0);
                assert!(blocks.into_iter().all(|b| unsafe { heap::free(b) }));
            });
        }
    });
    account::set_budget(usize::MAX);
}

#[test]
fn freed_blocks_are_used_again_before_new_memory() {
    let _guard = alone();
    for size in [16, 100, 1500, 20_000, 100_000] {
        let count = (4 << 20) / size;
        let mut blocks: Vec<_> = (0..count).map(|_| heap::allocate(size, 16, false, 0).unwrap().as_ptr()).collect();
        let before = account::held(Holder::Heap);
        for round in 0..4 {
            for block in blocks.iter_mut().skip(round % 2).step_by(2) {
                assert!(unsafe { heap::free(*block) });
                *block = std::ptr::null_mut();
            }
            for block in blocks.iter_mut().filter(|block| block.is_null()) {
                *block = heap::allocate(size, 16, false, 0).unwrap().as_ptr();
            }
        }
        let after = account::held(Holder::Heap);
        assert!(after <= before + (64 << 10), "blocks of {size}: {before} bytes grew to {after}");
        assert!(blocks.into_iter().all(|b| unsafe { heap::free(b) }));
    }
}

#[test]
fn what_is_kept_for_reuse_is_bounded_and_given_up_when_needed() {
    let _guard = alone();
    heap::trim();
    let before = account::held(Holder::Heap);
    for bits in [8, 12, 15, 19] {
        let mut random = Random(bits as u64);
        let mut blocks = Vec::new();
        heap::trim(); // what was missed in the round before would raise the bound
        while account::held(Holder::Heap) < before + (80 << 20) {
            blocks.push(heap::allocate(random.size(bits), 16, false, 0).unwrap().as_ptr());
        }
        assert!(blocks.into_iter().all(|b| unsafe { heap::free(b) }));
        let (kept, stats) = (account::held(Holder::Heap) - before, heap::stats());
        assert!(stats.cached <= qmem::config::HEAP_CACHE.get(), "{stats:?}");
        let current = 2 * 72 * (64 << 10); // a slice of each class, plain and described
        assert!(kept <= stats.cached + qmem::config::HEAP_KEPT_RUNS + current, "{kept} bytes are kept, {stats:?}");
    }
    // With the budget used up to the last byte, what this thread keeps makes room for others.
    let small: Vec<_> = (0..12).map(|i| heap::allocate(16 << (i / 2), 16, false, 0).unwrap().as_ptr()).collect();
    heap::trim();
    assert!(small.into_iter().all(|b| unsafe { heap::free(b) }));
    assert_eq!(heap::stats().cached, 0);
    account::set_budget(account::resident());
    let squeezed = heap::allocate(80_000, 16, false, 0);
    account::set_budget(usize::MAX);
    assert!(unsafe { heap::free(squeezed.unwrap().as_ptr()) });
}
