//! Which chunk goes next. Two queues in order of arrival: a *window* of recent fills, and the *main* set that stays. A gate
//! sweep is a cyclic scan, of which LRU misses everything; here the main set stays put and only the window turns over, which
//! is Belady's choice for a loop. One in [`RENEWAL`] victims is exchanged with the oldest of the main set, so that a working
//! set that has moved on is let go (the bimodal insertion of Qureshi et al., ISCA 2007). The window grows when chunks come
//! back that were evicted a moment ago. Called by fill and evict; its lock is held for a few pointer writes.

use super::region::{Chunk, ChunkId, Regions};
use crate::sync::Mutex;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One victim in this many renews the main set.
const RENEWAL: u32 = 32;
/// Chunks beyond the window's target before the main set takes them in.
const SLACK: usize = 8;
/// Smallest window.
const MIN_WINDOW: usize = 12;
/// Victims looked at before giving up (pinned ones are skipped).
const LOOK: usize = 4096;

const WINDOW: u32 = 1;
const MAIN: u32 = 2;

/// The queues.
pub struct Policy {
    queues: Mutex<Queues>,
    /// Chunks evicted so far; a chunk's `stamp` is this number at its eviction.
    evicted: AtomicU32,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    newest: ChunkId,
    oldest: ChunkId,
    len: usize,
}

struct Queues {
    window: Queue,
    main: Queue,
    /// Chunks that the window should hold, beyond the share that all resident ones give it.
    extra: usize,
    turn: u32,
}

impl Policy {
    /// Empty queues.
    pub const fn new() -> Self {
        let none = Queue { newest: 0, oldest: 0, len: 0 };
        Self { queues: Mutex::new(Queues { window: none, main: none, extra: 0, turn: 0 }), evicted: AtomicU32::new(0) }
    }

    /// A chunk has a frame now.
    pub fn insert(&self, regions: &Regions, id: ChunkId) {
        let Some(chunk) = regions.chunk(id) else { return };
        let mut queues = self.queues.lock();
        if chunk.queue.load(Relaxed) != 0 {
            return;
        }
        let since = self.evicted.load(Relaxed).wrapping_sub(chunk.stamp.load(Relaxed));
        if chunk.stamp.load(Relaxed) != 0 && (since as usize) < queues.target() / 2 {
            queues.extra = (queues.extra + 2).min((queues.window.len + queues.main.len) / 3);
        }
        queues.push(regions, id, chunk, WINDOW);
    }

    /// It has none any more, or is pinned.
    pub fn remove(&self, regions: &Regions, id: ChunkId) {
        let Some(chunk) = regions.chunk(id) else { return };
        self.queues.lock().unlink(regions, chunk);
    }

    /// The next victim among the chunks that `may` allows, taken off its queue. The caller puts it back if it stays.
    pub fn victim(&self, regions: &Regions, may: impl Fn(ChunkId) -> bool) -> Option<ChunkId> {
        let mut queues = self.queues.lock();
        if queues.window.len > queues.target() + SLACK {
            while queues.window.len > queues.target() {
                queues.hand_over(regions);
            }
        }
        let first = if queues.window.len >= queues.target() || queues.main.len == 0 { WINDOW } else { MAIN };
        queues.turn = queues.turn.wrapping_add(1);
        if first == WINDOW && queues.turn.is_multiple_of(RENEWAL) && queues.main.len > 0 {
            queues.hand_over(regions);
            queues.extra = queues.extra.saturating_sub(1);
            if let Some(id) = queues.take(regions, MAIN, &may) {
                return Some(self.stamp(regions, id));
            }
        }
        let id = queues.take(regions, first, &may).or_else(|| queues.take(regions, WINDOW + MAIN - first, &may))?;
        Some(self.stamp(regions, id))
    }

    /// See `fork.rs`.
    pub fn before_fork(&self) {
        self.queues.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`Self::before_fork`].
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.queues.unlock_after_fork() };
    }

    fn stamp(&self, regions: &Regions, id: ChunkId) -> ChunkId {
        let count = self.evicted.fetch_add(1, Relaxed) + 1;
        if let Some(chunk) = regions.chunk(id) {
            chunk.stamp.store(count.max(1), Relaxed);
        }
        id
    }
}

impl Queues {
    /// An eighth of what is resident, more if that proved too few.
    fn target(&self) -> usize {
        ((self.window.len + self.main.len) / 8 + self.extra).max(MIN_WINDOW)
    }

    fn queue(&mut self, which: u32) -> &mut Queue {
        if which == WINDOW { &mut self.window } else { &mut self.main }
    }

    fn push(&mut self, regions: &Regions, id: ChunkId, chunk: &Chunk, which: u32) {
        let queue = self.queue(which);
        chunk.newer.store(0, Relaxed);
        chunk.older.store(queue.newest, Relaxed);
        chunk.queue.store(which, Relaxed);
        match regions.chunk(queue.newest) {
            Some(before) => before.newer.store(id, Relaxed),
            None => queue.oldest = id,
        }
        queue.newest = id;
        queue.len += 1;
    }

    fn unlink(&mut self, regions: &Regions, chunk: &Chunk) {
        let which = chunk.queue.swap(0, Relaxed);
        if which == 0 {
            return;
        }
        let (newer, older) = (chunk.newer.load(Relaxed), chunk.older.load(Relaxed));
        let queue = self.queue(which);
        queue.len -= 1;
        match regions.chunk(newer) {
            Some(c) => c.older.store(older, Relaxed),
            None => queue.newest = older,
        }
        match regions.chunk(older) {
            Some(c) => c.newer.store(newer, Relaxed),
            None => queue.oldest = newer,
        }
    }

    /// The window's oldest joins the main set.
    fn hand_over(&mut self, regions: &Regions) {
        let id = self.window.oldest;
        if let Some(chunk) = regions.chunk(id) {
            self.unlink(regions, chunk);
            self.push(regions, id, chunk, MAIN);
        }
    }

    fn take(&mut self, regions: &Regions, which: u32, may: &impl Fn(ChunkId) -> bool) -> Option<ChunkId> {
        let mut id = self.queue(which).oldest;
        for _ in 0..LOOK {
            let chunk = regions.chunk(id)?;
            if may(id) {
                self.unlink(regions, chunk);
                return Some(id);
            }
            id = chunk.newer.load(Relaxed);
        }
        None
    }
}
