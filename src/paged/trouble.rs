//! Chunks that a worker could not fill, and failures that no thread is waiting for. They are handed to a thread of their own, which
//! runs the program's error handler and may itself fault and allocate, while the faulting thread waits and the workers go on. A
//! chunk is given up only when the handler, and what it changed, did not help. Called by fill, evict and the regions' ends.

use super::pager::{self, Pager, Scratch};
use super::region::{Chunk, ChunkId, Region};
use super::slot::SlotId;
use super::state::{Act, Word};
use crate::error::{self, Class, Error, Failure, Status};
use crate::fail;
use crate::os::{clock, output, worker};
use crate::sync::{Mutex, futex_wait_for, futex_wake};
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering, Ordering::Relaxed};

/// Failures known at a time; with more, the worker that has one deals with it alone.
const MOST: usize = 64;
/// How long an access waits for memory, counted from its hand-over.
const PATIENCE_NS: u64 = 9_500_000_000;
/// How often a frame is asked for meanwhile.
const EVERY_MS: u32 = 20;

/// One failure; `id` 0: of no chunk.
struct Trouble {
    id: ChunkId,
    class: Class,
    error: Error,
    since: u64,
    /// The handler has run, or runs.
    told: bool,
}

/// All failures that wait.
pub struct Troubles {
    table: Mutex<Table>,
    /// Counts calls; the thread sleeps on it.
    calls: AtomicU32,
    /// The kernel's number of the thread that runs handlers; 0 = it does not run.
    thread: AtomicU32,
}

struct Table {
    items: [Option<Trouble>; MOST],
    /// A handler runs.
    handling: bool,
    /// The thread is to end; nothing more is taken in.
    ending: bool,
}

impl Troubles {
    /// None.
    pub const fn new() -> Self {
        Self {
            table: Mutex::new(Table { items: [const { None }; MOST], handling: false, ending: false }),
            calls: AtomicU32::new(0),
            thread: AtomicU32::new(0),
        }
    }

    /// Before the thread is started.
    pub fn begin(&self) {
        self.table.lock().ending = false;
    }

    /// Has the thread end, unless it runs a handler: whoever would wait for that one may hold what it needs.
    pub fn end(&self) -> bool {
        let mut table = self.table.lock();
        table.ending = !table.handling;
        let ends = table.ending;
        drop(table);
        self.call();
        ends
    }

    /// Is this the thread that runs handlers? (With `thread` as the kernel counts.)
    pub fn is_thread(&self, thread: u32) -> bool {
        thread != 0 && self.thread.load(Relaxed) == thread
    }

    /// Does the caller run on it?
    pub fn here(&self) -> bool {
        self.is_thread(clock::thread())
    }

    fn call(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        futex_wake(&self.calls, 1);
    }

    /// Takes a failure in; false if there is no room or nobody to tell.
    fn add(&self, id: ChunkId, class: Class, error: &Error) -> bool {
        let mut table = self.table.lock();
        if self.thread.load(Relaxed) == 0 || table.ending {
            return false;
        }
        let Some(place) = table.items.iter_mut().find(|place| place.is_none()) else { return false };
        *place = Some(Trouble { id, class, error: error.clone(), since: clock::monotonic(), told: false });
        drop(table);
        self.call();
        true
    }

    /// Hands over a failure that cannot be tried again.
    pub fn tell(&self, class: Class, error: &Error) {
        if !self.add(0, class, error) {
            output::line(format_args!("qmem: {error}"));
        }
    }

    /// Is the chunk one of those that wait?
    pub fn has(&self, id: ChunkId) -> bool {
        self.table.lock().items.iter().flatten().any(|trouble| trouble.id == id)
    }

    /// Forgets a chunk, and gives its failure's kind; None if it was not there: somebody else has settled it.
    fn forget(&self, id: ChunkId) -> Option<Class> {
        let mut table = self.table.lock();
        let place = table.items.iter_mut().find(|place| place.as_ref().is_some_and(|trouble| trouble.id == id));
        place?.take().map(|trouble| trouble.class)
    }

    /// See `fork.rs`.
    pub fn before_fork(&self) {
        self.table.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`Self::before_fork`].
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.table.unlock_after_fork() };
    }

    /// In a child of fork, where nobody waits any more: the chunks that did, each taken off.
    pub fn drain(&self, mut each: impl FnMut(ChunkId)) {
        self.thread.store(0, Relaxed);
        let mut table = self.table.lock();
        table.handling = false;
        table.items.iter_mut().filter_map(Option::take).filter(|trouble| trouble.id != 0).for_each(|trouble| each(trouble.id));
    }

    /// The next one for the handler, marked as told.
    fn next(&self) -> Option<(ChunkId, Class, Error)> {
        let mut table = self.table.lock();
        let place = table.items.iter_mut().find(|place| place.as_ref().is_some_and(|trouble| !trouble.told));
        let found = place.and_then(|place| {
            let trouble = place.as_mut()?;
            trouble.told = true;
            let found = (trouble.id, trouble.class, trouble.error.clone());
            if trouble.id == 0 {
                *place = None;
            }
            Some(found)
        });
        table.handling = found.is_some();
        found
    }

    /// A chunk that still waits for memory although the handler has run, after `last`; and whether its time is over.
    fn waiting(&self, last: ChunkId) -> Option<(ChunkId, bool)> {
        let now = clock::monotonic();
        let table = self.table.lock();
        let told = table.items.iter().flatten().filter(|trouble| trouble.told && trouble.id > last);
        told.min_by_key(|trouble| trouble.id).map(|trouble| (trouble.id, now.saturating_sub(trouble.since) > PATIENCE_NS))
    }
}

impl Pager {
    /// Hands over a chunk that the caller owns (Filling) and cannot fill. False: the caller must settle it. A fault of the thread
    /// that runs handlers is never handed to it.
    pub fn in_trouble(&self, id: ChunkId, class: Class, error: &Error, by: u32) -> bool {
        !self.troubles.is_thread(by) && self.troubles.add(id, class, error)
    }

    /// Another attempt to fill a chunk that waits, if need be with what the last checkpoint has. Ok: it is there, or somebody else
    /// has settled it.
    fn try_again(&'static self, id: ChunkId, repair: bool, scratch: &mut Scratch) -> Result<(), Error> {
        let _pass = self.gate.enter();
        if !self.troubles.has(id) {
            return Ok(());
        }
        let Some((chunk, region)) = self.regions.both(id) else { return Ok(()) };
        let frame = self.frame_for(region, 1, scratch).ok_or_else(|| self.no_frame())?;
        let data = self.frame_bytes(region, frame);
        let mut loaded = self.load_chunk(chunk, frame, data, scratch).map_err(|why| self.unreadable(id, region, why));
        if loaded.is_err() && repair && self.repair(id, chunk, region, data, scratch).is_ok() {
            loaded = Ok(());
        }
        if loaded.is_err() || self.troubles.forget(id).is_none() {
            self.arena.give(region.class(), frame.bay);
            self.leave_pool(region.pooled.load(Relaxed), region.chunk_bytes());
            return loaded;
        }
        if let Some((_, Act::Map(bay))) = Word::step(&chunk.word, |w| Some(w.filled(frame.bay, true))) {
            self.map(id, chunk, region, bay);
        }
        Ok(())
    }

    /// A chunk whose stored form is lost becomes what it was at the last checkpoint.
    fn repair(&self, id: ChunkId, chunk: &Chunk, region: &Region, data: &mut [u8], scratch: &mut Scratch) -> Result<(), Error> {
        self.read_from_checkpoint(id, region, data, scratch)?;
        let slot = SlotId(chunk.slot.swap(0, Relaxed));
        if slot.0 != 0 {
            self.release_slot(slot);
        }
        output::line(format_args!(
            "qmem: chunk {} of the paged buffer at {:#x} was restored from the last checkpoint; what was written to it since is lost",
            id - region.first.load(Relaxed),
            region.start.load(Relaxed)
        ));
        Ok(())
    }

    /// Ends a chunk's waiting: accesses to it raise SIGBUS.
    fn abandon(&self, id: ChunkId) {
        if let Some(class) = self.troubles.forget(id)
            && let Some((chunk, region)) = self.regions.both(id)
        {
            self.give_up(id, chunk, region, class);
        }
    }

    /// The thread that runs handlers has met a chunk that waits for it: there is no way but to give that chunk up.
    pub fn deadlocked(&self, id: ChunkId, thread: u32) {
        if self.troubles.is_thread(thread) && self.troubles.has(id) {
            output::line(format_args!(
                "qmem: the error handler touched the very chunk of memory whose failure it handles; the access raises SIGBUS"
            ));
            self.abandon(id);
        }
    }

    /// A handler frees a buffer whose chunks wait for it.
    pub fn abandon_all(&self, chunks: Range<ChunkId>) {
        if self.troubles.here() {
            chunks.filter(|id| self.troubles.has(*id)).for_each(|id| self.abandon(id));
        }
    }

    /// Runs the handler for one failure; then the chunk is there, waits for memory, or is given up.
    fn handle(&'static self, (id, class, error): (ChunkId, Class, Error), scratch: &mut Scratch) {
        if id == 0 {
            return error::report(class, &error);
        }
        let room = core::cell::RefCell::new(scratch);
        let attempt = |repair: bool| match room.try_borrow_mut() {
            Ok(mut scratch) => self.try_again(id, repair, &mut scratch),
            Err(_) => Err(fail!(Busy, "this chunk is being tried again already")),
        };
        // What the handler asked for: a chunk that cannot be read back may be restored as it was at the last checkpoint.
        let again = || attempt(true);
        let handled = error::dispatch(&Failure { class, error: &error, told: false, again: Some(&again) });
        let Err(failed) = handled else { return };
        let aborted = failed.status == Status::Aborted;
        if !aborted && (attempt(false).is_ok() || class == Class::Allocation) {
            return; // there, or waiting on
        }
        let _pass = self.gate.enter();
        self.abandon(id);
    }

    /// Chunks that wait for memory get another chance, or none any more.
    fn look_after_the_waiting(&'static self, scratch: &mut Scratch) -> bool {
        let mut last = 0;
        while let Some((id, over)) = self.troubles.waiting(last) {
            last = id;
            if self.try_again(id, false, scratch).is_err() && over {
                let _pass = self.gate.enter();
                self.abandon(id);
            }
        }
        last != 0
    }
}

/// What the thread does: handlers first, then those who wait for memory, then sleep.
pub fn body(_: usize) {
    let Some(pager) = pager::get() else { return };
    let Ok(mut scratch) = Scratch::new() else {
        output::line(format_args!("qmem: no address space for the thread that runs error handlers; failures are only told"));
        return;
    };
    let troubles = &pager.troubles;
    worker::take_own_faults();
    troubles.thread.store(clock::thread(), Relaxed);
    loop {
        let seen = troubles.calls.load(Ordering::SeqCst);
        while let Some(trouble) = troubles.next() {
            pager.handle(trouble, &mut scratch);
        }
        let some_wait = pager.look_after_the_waiting(&mut scratch);
        if troubles.table.lock().ending {
            troubles.thread.store(0, Relaxed);
            return;
        }
        futex_wait_for(&troubles.calls, seen, if some_wait { EVERY_MS } else { u32::MAX });
    }
}
