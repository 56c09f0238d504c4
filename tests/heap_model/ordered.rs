//! Four threads with heaps of their own that do one thing at a time, in a random order that the model knows: so what one thread frees of
//! another's is followed by second frees on any of them, watches, trims, ends of threads and their heaps' next ones, and each answer is
//! certain. Sizes around and above 1 KiB, where blocks have live bits and magazines.

use crate::{Random, alone};
use qmem::heap::{self, Lookup};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

const THREADS: usize = 4;

enum Order {
    Malloc(usize),
    Aligned(usize, usize),
    Zeroed(usize),
    Described(usize),
    /// As the preload's `free`.
    Free(usize),
    /// As the API's.
    FreeAny(usize),
    Resize(usize, usize),
    Watch(usize),
    Trim,
    /// So many small blocks, taken and freed.
    Batch(usize),
}

/// Carries out an order: an address, or whether a block was taken back.
fn carry_out(order: Order) -> usize {
    let plain = |size, align, zeroed| heap::allocate_plain(size, align, zeroed).unwrap().as_ptr() as usize;
    match order {
        Order::Malloc(size) => heap::malloc(size) as usize,
        Order::Aligned(size, align) => plain(size, align, false),
        Order::Zeroed(size) => {
            let block = plain(size, 16, true);
            assert!((0..size).all(|at| unsafe { *(block as *const u8).add(at) } == 0), "calloc of {size} is not zero");
            block
        }
        Order::Described(size) => heap::allocate(size, 16, size.is_multiple_of(3), 5).unwrap().as_ptr() as usize,
        Order::Free(block) => {
            let mut taken = true;
            let slow = |ptr| taken = unsafe { heap::free_own(ptr) || heap::free_others(ptr, true) || heap::free(ptr) };
            unsafe { heap::free_or(block as *mut u8, slow) };
            usize::from(taken)
        }
        Order::FreeAny(block) => usize::from(unsafe { heap::free(block as *mut u8) }),
        Order::Resize(block, size) => {
            let own = unsafe { heap::resize_own(block as *mut u8, size) };
            if own.is_null() { unsafe { heap::resize(block as *mut u8, size) }.unwrap().as_ptr() as usize } else { own as usize }
        }
        Order::Watch(block) => {
            heap::watch(block as *const u8);
            0
        }
        Order::Trim => {
            heap::trim();
            0
        }
        Order::Batch(count) => {
            let blocks: Vec<_> = (0..count).map(|i| heap::malloc(16 + i % 1000) as usize).collect();
            blocks.into_iter().for_each(|block| assert_eq!(carry_out(Order::Free(block)), 1));
            0
        }
    }
}

/// A thread that carries out orders until there are no more.
struct Worker {
    orders: Sender<Order>,
    answers: Receiver<usize>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn new() -> Self {
        let ((orders, taken), (answer, answers)) = (channel(), channel());
        let thread = std::thread::spawn(move || taken.into_iter().for_each(|order| answer.send(carry_out(order)).unwrap()));
        Self { orders, answers, thread }
    }

    fn call(&self, order: Order) -> usize {
        self.orders.send(order).unwrap();
        self.answers.recv().expect("the thread panicked")
    }

    fn end(self) {
        drop(self.orders);
        self.thread.join().unwrap();
    }
}

/// A live block: the size that was asked for, what it has, and what it is filled with.
#[derive(Clone, Copy)]
struct Live {
    size: usize,
    usable: usize,
    seed: u64,
}

impl Live {
    /// Words that say whose they are: where the heap writes into free blocks, in the middle, and at the end.
    fn words(self) -> impl Iterator<Item = usize> {
        let places = [0, 8, 16, (self.size / 2) & !7, self.size.saturating_sub(8) & !7];
        places.into_iter().filter(move |at| at + 8 <= self.size)
    }

    fn write(self, block: usize) {
        self.words().for_each(|at| unsafe { *((block + at) as *mut u64) = self.seed ^ at as u64 });
    }

    fn check(self, block: usize) {
        for at in self.words() {
            assert_eq!(unsafe { *((block + at) as *const u64) }, self.seed ^ at as u64, "{block:#x} of {} at {at}", self.size);
        }
    }
}

struct Model {
    random: Random,
    workers: Vec<Worker>,
    live: BTreeMap<usize, Live>,
}

impl Model {
    fn size(&mut self) -> usize {
        match self.random.below(20) {
            0 => 8 + self.random.below(1017),
            1 => 32_769 + self.random.below(100_000),
            2 => 32_768,
            3 => 20_000 + self.random.below(12_768),
            _ => [1100, 1500, 2048, 3000, 4096, 5000, 9000, 16_384][self.random.below(8)] + self.random.below(200),
        }
    }

    fn call(&mut self, order: Order) -> usize {
        let worker = self.random.below(THREADS);
        self.workers[worker].call(order)
    }

    /// One of the live blocks; often one of the last in memory, so that slices become empty.
    fn pick(&mut self) -> usize {
        if self.random.below(3) == 0 {
            let at = self.random.below(self.live.len());
            return *self.live.keys().nth(at).unwrap();
        }
        let at = self.random.below(self.live.len().min(16));
        *self.live.keys().nth_back(at).unwrap()
    }

    fn enter(&mut self, block: usize, size: usize) {
        let Lookup::Live(found) = heap::find(block as *const u8) else { panic!("{block:#x} of {size} is not live") };
        let (usable, seed) = (found.usable, self.random.next());
        assert!(usable >= size, "{usable} for {size}");
        if let Some((start, other)) = self.live.range(..block + usable).next_back() {
            assert!(start + other.usable <= block, "{start:#x} of {} and {block:#x} of {usable} overlap", other.usable);
        }
        let live = Live { size, usable, seed };
        live.write(block);
        self.live.insert(block, live);
    }

    fn allocate(&mut self) {
        let size = self.size();
        let order = match self.random.below(10) {
            0 => Order::Described(size),
            1 => Order::Aligned(size, 1 << (4 + self.random.below(12))),
            2 => Order::Zeroed(size),
            _ => Order::Malloc(size),
        };
        let block = self.call(order);
        self.enter(block, size);
    }

    fn resize(&mut self) {
        let block = self.pick();
        let old = self.live.remove(&block).unwrap();
        old.check(block);
        let size = self.size();
        let moved = self.call(Order::Resize(block, size));
        let kept = Live { size: old.size.min(size), ..old };
        kept.words().take(2).for_each(|at| assert_eq!(unsafe { *((moved + at) as *const u64) }, old.seed ^ at as u64));
        self.enter(moved, size);
    }

    fn free_order(&mut self, block: usize) -> Order {
        if self.random.below(4) == 0 { Order::FreeAny(block) } else { Order::Free(block) }
    }

    /// Frees a block, and a few times again.
    fn free(&mut self) {
        let block = self.pick();
        let live = self.live.remove(&block).unwrap();
        live.check(block);
        let order = self.free_order(block);
        assert_eq!(self.call(order), 1, "{block:#x} of {} was refused", live.usable);
        // Smaller ones may be put aside, where they are told later.
        let again = if live.usable > 1024 { self.random.below(4) } else { 0 };
        for _ in 0..again {
            let order = self.free_order(block);
            assert_eq!(self.call(order), 0, "{block:#x} of {} was taken back twice", live.usable);
            let found = heap::find(block as *const u8);
            assert!(!matches!(found, Lookup::Live(_)), "{found:?} after it was freed");
        }
    }

    fn run(&mut self, steps: usize, most: usize, watch: bool) {
        let mut grow = true;
        for _ in 0..steps {
            grow = if grow { self.live.len() <= most } else { self.live.len() < most / 4 };
            match self.random.below(1000) {
                0..2 => _ = self.call(Order::Trim),
                2..6 => {
                    let worker = self.random.below(THREADS);
                    core::mem::replace(&mut self.workers[worker], Worker::new()).end();
                }
                6..10 => _ = self.call(Order::Batch(200)),
                10..14 if watch && !self.live.is_empty() => {
                    let block = self.pick();
                    self.call(Order::Watch(block));
                }
                14..60 if !self.live.is_empty() => self.resize(),
                _ if self.live.is_empty() || self.random.below(100) < if grow { 60 } else { 40 } => self.allocate(),
                _ => self.free(),
            }
        }
        while !self.live.is_empty() {
            self.free();
        }
        self.workers.drain(..).for_each(Worker::end);
    }
}

#[test]
fn threads_that_act_in_turn_are_told_every_second_free() {
    let _alone = alone();
    for (seed, most) in [(1, 300), (2, 300), (3, 3000), (5, 60), (6, 60)] {
        let workers = (0..THREADS).map(|_| Worker::new()).collect();
        let mut model = Model { random: Random(seed), workers, live: BTreeMap::new() };
        model.run(20_000, most, seed % 2 == 0);
    }
}
