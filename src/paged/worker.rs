//! The pager's threads: fill workers, who serve faults and read ahead, and evict workers, who keep frames free. Started with
//! the first region, bounded, asleep when there is nothing to do. They never touch a region's own addresses and never
//! allocate; signals are blocked on them.

use super::pager::{self, Pager, Scratch};
use super::region::ChunkId;
use super::state::Word;
use super::trouble::{self, Troubles};
use crate::config;
use crate::error::{Class, Error, report};
use crate::monitor::account;
use crate::os::worker::{Bell, Thread};
use crate::sync::{Mutex, futex_wait, futex_wake};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, Ordering::Relaxed};

/// The most threads: workers of both kinds and the one that runs error handlers.
const MAX_WORKERS: usize = 33;
/// Chunks queued to be read ahead; more are forgotten.
const QUEUE: usize = 256;
/// Budget from which on all workers are worth their buffers (2 MiB each, beside the budget).
const FULL_CREW_BUDGET: usize = 128 << 20;

/// The threads and what they wait for.
pub struct Workers {
    crew: Mutex<Crew>,
    queue: Mutex<Queue>,
    bell: Bell,
    /// Fill workers, and how many of them read ahead just now: one always stays free for faults.
    fillers: AtomicUsize,
    reading: AtomicUsize,
    /// Counts calls for eviction; evict workers sleep on it.
    calls: AtomicU32,
    evicting: AtomicUsize,
    ending: AtomicBool,
    quiet: AtomicBool,
    /// A child of fork that has one fill worker so far.
    lean: AtomicBool,
}

struct Crew {
    threads: [Option<Thread>; MAX_WORKERS],
}

struct Queue {
    ids: [ChunkId; QUEUE],
    first: usize,
    len: usize,
}

impl Workers {
    /// No threads yet.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            crew: Mutex::new(Crew { threads: [const { None }; MAX_WORKERS] }),
            queue: Mutex::new(Queue { ids: [0; QUEUE], first: 0, len: 0 }),
            bell: Bell::new()?,
            fillers: AtomicUsize::new(0),
            reading: AtomicUsize::new(0),
            calls: AtomicU32::new(0),
            evicting: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            lean: AtomicBool::new(false),
        })
    }

    /// Starts the threads if they do not run.
    pub fn start(&self, troubles: &Troubles) -> Result<(), Error> {
        let mut crew = self.crew.lock();
        if crew.threads.iter().any(Option::is_some) {
            return Ok(());
        }
        self.ending.store(false, Relaxed);
        self.fill_up(&mut crew, troubles).inspect_err(|_| self.end(&mut crew, troubles))
    }

    /// Starts whoever is missing.
    fn fill_up(&self, crew: &mut Crew, troubles: &Troubles) -> Result<(), Error> {
        let tight = account::budget() < FULL_CREW_BUDGET;
        let fill = config::FILL_WORKERS.get().clamp(2, if tight { 2 } else { 16 });
        let evict = config::EVICT_WORKERS.get().clamp(1, if tight { 1 } else { 16 });
        troubles.begin();
        for (i, place) in crew.threads.iter_mut().take(1 + fill + evict).enumerate().filter(|(_, place)| place.is_none()) {
            let thread = match i {
                0 => Thread::spawn(c"qmem-errors", trouble::body, i),
                i if i <= fill => Thread::spawn(c"qmem-fill", fill_body, i),
                _ => Thread::spawn(c"qmem-evict", evict_body, i),
            };
            *place = Some(thread?);
        }
        self.fillers.store(fill, Relaxed);
        Ok(())
    }

    /// In a child of fork: one fill worker, so that faults are served; the others come with the first fault.
    pub fn start_one(&self) -> Result<(), Error> {
        self.fillers.store(1, Relaxed);
        self.lean.store(true, Relaxed);
        let thread = Thread::spawn(c"qmem-fill", fill_body, 1)?;
        if let Some(place) = self.crew.lock().threads.get_mut(1) {
            *place = Some(thread);
        }
        Ok(())
    }

    /// The others of [`Self::start_one`]. Where they cannot be started the one goes on alone.
    #[cold]
    fn complete(&self, troubles: &Troubles) {
        if let Some(mut crew) = self.crew.try_lock()
            && self.lean.swap(false, Relaxed)
            && let Err(error) = self.fill_up(&mut crew, troubles)
        {
            report(Class::Allocation, &error);
        }
    }

    /// See `fork.rs`.
    pub fn before_fork(&self) {
        self.queue.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`Self::before_fork`].
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.queue.unlock_after_fork() };
    }

    /// In a child of fork: no threads, nothing under way.
    ///
    /// # Safety
    /// This is the child's only thread.
    pub unsafe fn reset_after_fork(&self) {
        // SAFETY: the caller's promise; whatever the crew was in the parent, here it is empty.
        unsafe { self.crew.reset_after_fork() };
        self.crew.lock().threads = [const { None }; MAX_WORKERS];
        self.queue.lock().len = 0;
        self.reading.store(0, Relaxed);
        self.evicting.store(0, Relaxed);
        self.ending.store(false, Relaxed);
    }

    /// In a child of fork: its own bell.
    pub fn reopen(&self) -> Result<(), Error> {
        self.bell.reopen()
    }

    /// Ends the threads and waits for them.
    pub fn stop(&self, troubles: &Troubles) {
        let mut crew = self.crew.lock();
        self.end(&mut crew, troubles);
    }

    fn end(&self, crew: &mut Crew, troubles: &Troubles) {
        self.ending.store(true, Ordering::SeqCst);
        troubles.end();
        self.bell.ring(MAX_WORKERS as u64);
        self.call_evictors();
        for place in &mut crew.threads {
            if let Some(thread) = place.take() {
                thread.join();
            }
        }
        while self.bell.answer() {}
        self.queue.lock().len = 0;
    }

    /// No reading ahead and no background eviction from now on.
    pub fn quiesce(&self) {
        self.quiet.store(true, Relaxed);
        self.queue.lock().len = 0;
    }

    /// The opposite of [`Self::quiesce`].
    pub fn resume(&self) {
        self.quiet.store(false, Relaxed);
    }

    /// Between [`Self::quiesce`] and [`Self::resume`]?
    pub fn quiet(&self) -> bool {
        self.quiet.load(Relaxed)
    }

    /// Queues a chunk to be read ahead; false if the queue is full.
    pub fn read_ahead(&self, id: ChunkId) -> bool {
        let mut queue = self.queue.lock();
        let (len, at) = (queue.len, (queue.first + queue.len) % QUEUE);
        let waiting = (0..len).any(|i| queue.ids.get((queue.first + i) % QUEUE) == Some(&id));
        if len == QUEUE || waiting {
            return waiting;
        }
        if let Some(place) = queue.ids.get_mut(at) {
            *place = id;
            queue.len += 1;
        }
        true
    }

    /// Forgets what is queued of a region that ends.
    pub fn forget(&self, chunks: &core::ops::Range<ChunkId>) {
        let mut queue = self.queue.lock();
        let mut kept = 0;
        for i in 0..queue.len {
            let id = queue.ids.get((queue.first + i) % QUEUE).copied().unwrap_or(0);
            let to = (queue.first + kept) % QUEUE;
            if let Some(place) = queue.ids.get_mut(to).filter(|_| !chunks.contains(&id)) {
                *place = id;
                kept += 1;
            }
        }
        queue.len = kept;
    }

    fn next_ahead(&self) -> Option<ChunkId> {
        let mut queue = self.queue.lock();
        if queue.len == 0 {
            return None;
        }
        let id = queue.ids.get(queue.first).copied();
        queue.first = (queue.first + 1) % QUEUE;
        queue.len -= 1;
        id
    }

    /// Wakes fill workers for that many queued chunks.
    pub fn wake_fillers(&self, chunks: usize) {
        let free = self.fillers.load(Relaxed).saturating_sub(1 + self.reading.load(Relaxed));
        if chunks > 0 && free > 0 {
            self.bell.ring(free.min(chunks) as u64);
        }
    }

    /// Wakes the evict workers if free frames run low.
    pub fn wake_evictors_if(&self, pager: &Pager) {
        if self.evicting.load(Relaxed) == 0 && !self.quiet() && pager.runs_low(pager.watermarks().0) {
            self.call_evictors();
        }
    }

    fn call_evictors(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        futex_wake(&self.calls, i32::MAX);
    }
}

/// A fill worker: faults first, then one chunk ahead, then sleep.
fn fill_body(_: usize) {
    let (Some(pager), Ok(mut scratch)) = (pager::get(), Scratch::new()) else {
        report(Class::Allocation, &crate::fail!(OutOfMemory, "a pager thread found no address space for its buffers"));
        return;
    };
    let workers = &pager.workers;
    while !workers.ending.load(Relaxed) {
        if let Some(fault) = pager.backend.next_fault() {
            if workers.lean.load(Relaxed) {
                workers.complete(&pager.troubles);
            }
            let _pass = pager.gate.enter();
            pager.serve(fault, &mut scratch);
            continue;
        }
        // One worker always stays free for faults.
        let busy = workers.reading.fetch_add(1, Relaxed) + 1;
        let next = if busy < workers.fillers.load(Relaxed) { workers.next_ahead() } else { None };
        let pass = pager.gate.enter();
        if let Some(id) = next
            && let Some((before, _)) = pager.regions.chunk(id).and_then(|c| Word::step(&c.word, Word::read_ahead))
            && let Some((chunk, region)) = pager.regions.both(id)
        {
            pager.fill(id, chunk, region, before.state(), None, &mut scratch);
        }
        drop(pass);
        workers.reading.fetch_sub(1, Relaxed);
        if next.is_none() {
            workers.bell.wait_with(pager.backend.descriptor());
            workers.bell.answer();
        }
    }
}

/// An evict worker: from the low to the high watermark, then tidy the pool, then sleep.
fn evict_body(_: usize) {
    let (Some(pager), Ok(mut scratch)) = (pager::get(), Scratch::new()) else {
        report(Class::Allocation, &crate::fail!(OutOfMemory, "a pager thread found no address space for its buffers"));
        return;
    };
    let workers = &pager.workers;
    loop {
        let seen = workers.calls.load(Ordering::SeqCst);
        workers.evicting.fetch_add(1, Relaxed);
        while !workers.ending.load(Relaxed) && !workers.quiet() && pager.runs_low(pager.watermarks().1) {
            let need = crate::os::vm::HUGE.min(pager.watermarks().1);
            let _pass = pager.gate.enter();
            if pager.evict_some(need, false, &mut scratch) == 0 && pager.spill(&mut scratch) == 0 {
                break;
            }
        }
        if !workers.quiet() {
            let _pass = pager.gate.enter();
            pager.compact(&mut scratch);
        }
        workers.evicting.fetch_sub(1, Relaxed);
        if workers.ending.load(Relaxed) {
            return;
        }
        futex_wait(&workers.calls, seen);
    }
}
