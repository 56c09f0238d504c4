//! The registry against a naive model: random operations with fixed seeds on heap, custom and tracked blocks, references and
//! layouts; then the races that it must decide. One process-wide registry: the tests take turns.
#![allow(clippy::undocumented_unsafe_blocks)] // every pointer used is live by the model, or the call under test must refuse it

use qmem::error::Status;
use qmem::heap;
use qmem::monitor::account::{self, Holder};
use qmem::registry::{self, Info, Kind, Layout};
use std::collections::BTreeMap;
use std::sync::Mutex;

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    size: usize,
    tag: u8,
    references: usize,
    layout: Option<Layout>,
}

fn layout_of(n: usize) -> Layout {
    let mut layout = Layout { num_dims: 1 + n % 16, dimensions: [0; 16], strides: [0; 16], offset: n };
    layout.dimensions[..layout.num_dims].fill(n);
    layout.strides[..layout.num_dims].fill(n + 1);
    layout
}

struct Model {
    live: BTreeMap<usize, Entry>,
    random: Random,
    /// Where foreign blocks are: nobody else's memory.
    foreign: usize,
}

const FOREIGN: usize = 1 << 20;

impl Model {
    fn pick(&mut self) -> Option<(*mut u8, Entry)> {
        let n = self.random.below(self.live.len().max(1));
        self.live.iter().nth(n).map(|(at, entry)| (*at as *mut u8, *entry))
    }

    fn around(&self, at: usize) -> Option<(usize, Entry)> {
        self.live.range(..=at).next_back().filter(|(start, e)| at - **start < e.size).map(|(s, e)| (*s, *e))
    }

    fn add(&mut self) {
        let (size, tag) = (1 + self.random.below(500), self.random.below(3) as u8);
        let kind = [Kind::Heap, Kind::Heap, Kind::Custom, Kind::Tracked][self.random.below(4)];
        let entry = |kind, tag| Entry { kind, size, tag, references: 1, layout: None };
        if kind == Kind::Heap {
            let start = heap::allocate(size, 64, false, tag).unwrap().as_ptr() as usize;
            self.live.insert(start, entry(kind, tag));
            return;
        }
        let start = self.foreign + self.random.below(FOREIGN - size);
        let free = self.around(start).is_none() && self.live.range(start..start + size).next().is_none();
        let ptr = start as *const u8;
        let (done, tag) = match kind {
            Kind::Custom => (registry::add_custom(ptr, size, tag), tag),
            _ => (registry::track(ptr, size), 0),
        };
        assert_eq!(done.is_ok(), free, "{done:?}");
        if free {
            self.live.insert(start, entry(kind, tag));
        }
    }

    fn drop_reference(&mut self) {
        let Some((ptr, entry)) = self.pick() else { return };
        let left = registry::release(ptr).unwrap();
        assert_eq!(left, entry.references - 1);
        if left > 0 {
            self.live.get_mut(&(ptr as usize)).unwrap().references = left;
            return;
        }
        match entry.kind {
            Kind::Heap => unsafe { registry::free(ptr) }.unwrap(),
            Kind::Custom => {
                assert_eq!(unsafe { registry::free(ptr) }.unwrap_err().status, Status::Unsupported);
                assert!(registry::untrack(ptr).is_err());
                registry::remove_custom(ptr).unwrap();
            }
            _ => {
                assert!(registry::remove_custom(ptr).is_err());
                registry::untrack(ptr).unwrap();
            }
        }
        self.live.remove(&(ptr as usize));
        let gone = registry::find_start(ptr).unwrap_err();
        let (status, word) = match entry.kind {
            Kind::Heap => (Status::InvalidArgument, "freed already"),
            _ => (Status::NotFound, "not from qmem"),
        };
        assert!(gone.status == status && gone.to_string().contains(word), "{gone}");
        assert!(registry::release(ptr).is_err() && registry::retain(ptr).is_err() && registry::references(ptr) == 0);
        assert!(unsafe { registry::free(ptr) }.is_err() && registry::layout(ptr).is_none());
    }

    fn extras(&mut self) {
        let Some((ptr, entry)) = self.pick() else { return };
        let keeps = entry.kind != Kind::Tracked;
        let layout = layout_of(self.random.below(1000));
        let both = self.random.below(2) == 0;
        assert_eq!(registry::retain(ptr).is_ok(), keeps);
        assert_eq!(both && registry::set_layout(ptr, &layout).is_ok(), both && keeps);
        let entry = self.live.get_mut(&(ptr as usize)).unwrap();
        entry.references += keeps as usize;
        entry.layout = if both && keeps { Some(layout) } else { entry.layout };
    }

    fn resize(&mut self) {
        let Some((ptr, entry)) = self.pick() else { return };
        let size = 1 + self.random.below(3000);
        let done = unsafe { registry::resize(ptr, size, 64) };
        if entry.references > 1 || entry.kind != Kind::Heap {
            assert!(done.is_err());
            return self.verify(ptr as usize, entry);
        }
        self.live.remove(&(ptr as usize));
        let start = done.unwrap().as_ptr() as usize;
        assert_eq!(start % 64, 0);
        self.live.insert(start, Entry { size, layout: None, ..entry });
    }

    fn verify(&self, start: usize, entry: Entry) {
        let info = registry::find_start(start as *const u8).unwrap();
        let Info { kind, size, tag, usable, .. } = info;
        assert!((kind, size, tag) == (entry.kind, entry.size, entry.tag) && usable >= size, "{info:?} {entry:?}");
        assert_eq!(registry::references(start as *const u8), entry.references);
        assert_eq!(registry::layout(start as *const u8), entry.layout);
        let last = (start + size - 1) as *const u8;
        assert_eq!(registry::find(last), Some(info));
        if size > 1 {
            let inside = registry::find_start(last).unwrap_err();
            assert!(
                inside.status == Status::InvalidArgument && inside.to_string().contains(&format!("{:#x}", start)),
                "{inside}"
            );
            assert!(unsafe { registry::free(last.cast_mut()) }.is_err());
        }
    }

    fn enumerate(&self) {
        for tag in 0..3 {
            let mut seen = BTreeMap::new();
            registry::for_each_live(tag, &mut |info| {
                assert!(seen.insert(info.start as usize, (info.kind as u8, info.size)).is_none())
            });
            let want = self.live.iter().filter(|(_, e)| e.tag == tag).map(|(at, e)| (*at, (e.kind as u8, e.size)));
            assert!(seen.into_iter().eq(want));
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let _turn = turn();
    let memory = qmem::os::vm::reserve(FOREIGN, 4096).unwrap();
    for seed in 1..=4 {
        let mut model = Model { live: BTreeMap::new(), random: Random(seed), foreign: memory.as_ptr() as usize };
        for step in 0..8000 {
            match model.random.below(if step < 6000 { 10 } else { 18 }) {
                0..=3 => model.add(),
                4 => model.extras(),
                5 => model.resize(),
                6 => {
                    if let Some((ptr, entry)) = model.pick() {
                        model.verify(ptr as usize, entry);
                    }
                }
                _ => model.drop_reference(),
            }
            let at = model.foreign + model.random.below(FOREIGN);
            assert_eq!(registry::find(at as *const u8).map(|i| i.start as usize), model.around(at).map(|(start, _)| start));
            if step % 2000 == 0 {
                model.enumerate();
            }
        }
        let all: Vec<_> = model.live.iter().map(|(at, entry)| (*at, *entry)).collect();
        all.into_iter().for_each(|(at, entry)| model.verify(at, entry));
        while !model.live.is_empty() {
            model.drop_reference();
        }
    }
}

#[test]
fn bad_ranges_are_refused_in_words() {
    let _turn = turn();
    let block = heap::allocate(100, 64, false, 0).unwrap().as_ptr();
    let large = heap::allocate((2 << 20) + 5000, 64, false, 0).unwrap().as_ptr();
    let end = (large as usize + heap::usable(large)) as *const u8;
    for (ptr, size, word) in [
        (std::ptr::null(), 8, "no block"),
        (block.cast_const(), 0, "no block"),
        (std::ptr::without_provenance(usize::MAX - 3), 8, "end of the address space"),
        (std::ptr::without_provenance(1 << 20), usize::MAX >> 1, "end of the address space"),
        (block.cast_const(), 10, "overlap"),
        (block.wrapping_add(20).cast_const(), 10, "overlap"),
        (large.wrapping_sub(4096).cast_const(), 4097, "overlap"),
        (large.wrapping_add(4096).cast_const(), 1, "overlap"),
        (end.wrapping_sub(1), 1, "overlap"),
    ] {
        let error = registry::track(ptr, size).unwrap_err();
        assert!(error.status == Status::InvalidArgument && error.to_string().contains(word), "{ptr:?} {size}: {error}");
    }
    // Behind a large block's last page the 2 MiB unit belongs to others.
    registry::track(end, 64).unwrap();
    assert_eq!(registry::find(end.wrapping_add(63)).unwrap().kind, Kind::Tracked);
    assert_eq!(registry::find(end.wrapping_sub(1)).unwrap().kind, Kind::Heap);
    assert!(registry::track(end.wrapping_add(63), 1).is_err());
    registry::untrack(end).unwrap();
    assert!(registry::untrack(end).is_err());
    // An arena of the program's inside a heap block: its blocks are custom, the arena stays the heap's.
    registry::add_custom(block.wrapping_add(16), 32, 1).unwrap();
    assert_eq!(registry::find(block.wrapping_add(20)).map(|i| (i.kind, i.tag)), Some((Kind::Custom, 1)));
    assert_eq!(registry::find(block.wrapping_add(48)).map(|i| i.kind), Some(Kind::Heap));
    assert!(registry::add_custom(block.wrapping_add(90), 4096, 1).is_err());
    registry::remove_custom(block.wrapping_add(16)).unwrap();
    assert!(registry::set_layout(block, &Layout { num_dims: 17, ..layout_of(1) }).is_err());
    assert!(registry::set_layout(block, &Layout { num_dims: 0, ..layout_of(1) }).is_err());
    unsafe {
        registry::free(block).unwrap();
        registry::free(large).unwrap();
    }
}

#[test]
fn tables_are_charged_and_given_back() {
    let _turn = turn();
    let before = account::held(Holder::Tables);
    let base = (1usize << 46) as *const u8; // nothing is mapped there, and nothing is touched
    for i in 0..100_000 {
        registry::track(base.wrapping_add(i * 4096), 4096).unwrap();
    }
    let tables = account::held(Holder::Tables) - before;
    assert!((100_000 * 24..100_000 * 60).contains(&tables), "{tables} bytes are charged for 100000 intervals");
    for i in 0..100_000 {
        registry::untrack(base.wrapping_add(i * 4096)).unwrap();
    }
    assert_eq!(account::held(Holder::Tables), before);
    let blocks: Vec<_> = (0..5000).map(|_| heap::allocate(64, 64, false, 0).unwrap().as_ptr()).collect();
    let before = account::held(Holder::Tables);
    blocks.iter().for_each(|b| registry::retain(*b).unwrap());
    assert!(account::held(Holder::Tables) > before);
    blocks.iter().for_each(|b| assert_eq!(registry::release(*b).unwrap(), 1));
    assert_eq!(account::held(Holder::Tables), before);
    blocks.iter().for_each(|b| unsafe { registry::free(*b) }.unwrap());
    let block = heap::allocate(64, 64, false, 0).unwrap().as_ptr();
    account::set_budget(account::resident() + 100);
    assert_eq!(registry::track(base, 1).unwrap_err().status, Status::OutOfMemory);
    assert_eq!(registry::retain(block).unwrap_err().status, Status::OutOfMemory);
    account::set_budget(usize::MAX);
    assert_eq!((registry::find(base), registry::references(block)), (None, 1));
    unsafe { registry::free(block) }.unwrap();
    assert_eq!(account::held(Holder::Tables), before);
}

#[test]
fn threads_that_share_references_free_exactly_once() {
    let _turn = turn();
    for round in 0..200 {
        let size = [64, 100_000, 700_000][round % 3];
        let blocks: Vec<usize> = (0..8).map(|_| heap::allocate(size, 64, false, 0).unwrap().as_ptr() as usize).collect();
        for block in &blocks {
            for _ in 0..3 {
                registry::retain(*block as *const u8).unwrap();
            }
        }
        let work = || {
            let mut freed = 0;
            for block in &blocks {
                let ptr = *block as *mut u8;
                if registry::release(ptr).unwrap() == 0 {
                    unsafe { registry::free(ptr) }.unwrap();
                    freed += 1;
                }
            }
            freed
        };
        let total: usize = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|_| s.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(total, blocks.len());
    }
}

/// A block that is freed while others retain it leaves no reference behind for the next block at that address.
#[test]
fn a_new_block_never_inherits_references() {
    let _turn = turn();
    let slot = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !done.load(SeqCst) {
                    let _ = registry::retain(slot.load(SeqCst) as *const u8);
                }
            });
        }
        for _ in 0..20_000 {
            let block = heap::allocate(4096, 64, false, 0).unwrap().as_ptr();
            slot.store(block as usize, SeqCst);
            std::hint::spin_loop();
            slot.store(0, SeqCst);
            unsafe { registry::free(block) }.unwrap();
        }
        done.store(true, SeqCst);
    });
    let blocks: Vec<_> = (0..64).map(|_| heap::allocate(4096, 64, false, 0).unwrap().as_ptr()).collect();
    assert!(blocks.iter().all(|b| registry::references(*b) == 1));
    blocks.iter().for_each(|b| unsafe { registry::free(*b) }.unwrap());
}
