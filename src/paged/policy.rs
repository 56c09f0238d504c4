//! Which chunk goes next. Two queues in order of arrival: a *window* of recent fills, and the *main* set that stays. A gate
//! sweep is a cyclic scan, of which LRU misses everything; here the main set stays put and only the window turns over, which
//! is Belady's choice for a loop. One in [`RENEWAL`] victims is exchanged with the oldest of the main set, so that a working
//! set that has moved on is let go (the bimodal insertion of Qureshi et al., ISCA 2007). The window grows when chunks come
//! back that were evicted a moment ago.
//!
//! Nobody sees accesses to what is resident, but everybody sees what comes back. A chunk that left the main set and stays away is
//! evidence that the main set is out of date: if others leave and come back in half that time, they are taken into the main set
//! at once, a few for each such chunk, and push its oldest out, which is judged likewise. In a loop all stay away equally long, and
//! nothing changes. (Distances between uses decide in LIRS too, Jiang and Zhang, SIGMETRICS 2002, which sees every access.)
//! `make bench-paged` counts on traces, beside LRU and Belady. Called by fill and evict; its lock is held for a few pointer writes.

use super::region::{Chunk, ChunkId, Regions};
use crate::sync::Mutex;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One victim in this many renews the main set.
const RENEWAL: u32 = 32;
/// Chunks beyond the window's target before the main set takes them in.
const SLACK: usize = 8;
/// Smallest window.
const MIN_WINDOW: usize = 12;
/// Chunks that left the main set and are watched for.
const WATCHED: usize = 64;
/// Chunks that the main set takes in for each that stays away.
const TAKEN_IN: u32 = 4;
/// Victims looked at before giving up (pinned ones are skipped).
const LOOK: usize = 4096;

/// Evictions are counted modulo 2^31.
const COUNT: u32 = u32::MAX >> 1;

const WINDOW: u32 = 1;
const MAIN: u32 = 2;

/// The queues.
pub struct Policy {
    queues: Mutex<Queues>,
    /// Chunks evicted so far. A chunk's `stamp` is twice this number at its eviction, and one more if nobody came for it.
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
    watch: Watch,
}

/// What left the main set and has not come back, oldest first.
struct Watch {
    gone: [Gone; WATCHED],
    len: usize,
    /// Chunks that the main set may still take in for those that stayed away.
    credit: u32,
    /// If they came back after so many evictions at most.
    within: u32,
    /// How long chunks that come back have been away, on average, in sixteenths of an eviction.
    usual: u32,
}

#[derive(Clone, Copy, Default)]
struct Gone {
    id: ChunkId,
    /// Chunks evicted when it left.
    when: u32,
}

impl Policy {
    /// Empty queues.
    pub const fn new() -> Self {
        let none = Queue { newest: 0, oldest: 0, len: 0 };
        Self {
            queues: Mutex::new(Queues { window: none, main: none, extra: 0, turn: 0, watch: Watch::new() }),
            evicted: AtomicU32::new(0),
        }
    }

    /// A chunk has a frame now.
    pub fn insert(&self, regions: &Regions, id: ChunkId) {
        let Some(chunk) = regions.chunk(id) else { return };
        let mut queues = self.queues.lock();
        if chunk.queue.load(Relaxed) != 0 {
            return;
        }
        let (now, stamp) = (self.evicted.load(Relaxed) & COUNT, chunk.stamp.load(Relaxed));
        queues.watch.came_back(id);
        if stamp == 0 {
            return queues.push(regions, id, chunk, WINDOW);
        }
        let away = now.wrapping_sub(stamp >> 1) & COUNT;
        if (away as usize) < queues.target() / 2 {
            queues.extra = (queues.extra + 2).min((queues.window.len + queues.main.len) / 3);
        }
        // What was read ahead in vain says nothing of the main set.
        let slack = (queues.window.len + queues.main.len) as u32 / 16;
        if stamp & 1 == 0 && queues.main.len > 0 && queues.watch.may_take_in(now, away, slack) {
            queues.send_away(regions, now);
            queues.push(regions, id, chunk, MAIN);
        } else {
            queues.push(regions, id, chunk, WINDOW);
        }
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
                queues.watch.left(id, self.stamp(regions, id));
                return Some(id);
            }
        }
        let id = queues.take(regions, first, &may).or_else(|| queues.take(regions, WINDOW + MAIN - first, &may))?;
        self.stamp(regions, id);
        Some(id)
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

    /// A chunk that is being evicted was read ahead and never asked for.
    pub fn nobody_came(&self, chunk: &Chunk) {
        chunk.stamp.fetch_or(1, Relaxed);
    }

    fn stamp(&self, regions: &Regions, id: ChunkId) -> u32 {
        let count = self.evicted.fetch_add(1, Relaxed).wrapping_add(1) & COUNT;
        if let Some(chunk) = regions.chunk(id) {
            chunk.stamp.store((count << 1).max(2), Relaxed);
        }
        count
    }
}

impl Watch {
    const fn new() -> Self {
        Self { gone: [Gone { id: 0, when: 0 }; WATCHED], len: 0, credit: 0, within: 0, usual: 0 }
    }

    /// A chunk leaves the main set. Of too many the oldest is forgotten.
    fn left(&mut self, id: ChunkId, when: u32) {
        if self.len == WATCHED {
            self.forget(0);
        }
        if let Some(place) = self.gone.get_mut(self.len) {
            *place = Gone { id, when };
            self.len += 1;
        }
    }

    fn came_back(&mut self, id: ChunkId) {
        if let Some(at) = self.gone.iter().take(self.len).position(|gone| gone.id == id) {
            self.forget(at);
        }
    }

    fn forget(&mut self, at: usize) {
        if at < self.len {
            self.gone.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
    }

    /// May a chunk that was away for so many evictions go to the main set at once? Yes if others have left that and stay away for twice
    /// as long, and as is usual.
    fn may_take_in(&mut self, now: u32, away: u32, slack: u32) -> bool {
        self.usual = self.usual - self.usual / 16 + away.min(COUNT / 32);
        let long = away.max(self.usual / 16).saturating_mul(2).saturating_add(slack);
        while let Some(oldest) = self.gone.first().filter(|_| self.len > 0) {
            let age = now.wrapping_sub(oldest.when) & COUNT;
            if age <= long {
                break;
            }
            self.forget(0);
            self.credit = (self.credit + TAKEN_IN).min(WATCHED as u32);
            self.within = age / 2;
        }
        let may = self.credit > 0 && away <= self.within;
        self.credit -= u32::from(may);
        may
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

    /// The oldest of the main set becomes the next victim, and is watched for.
    fn send_away(&mut self, regions: &Regions, now: u32) {
        let id = self.main.oldest;
        let Some(chunk) = regions.chunk(id) else { return };
        self.unlink(regions, chunk);
        self.push_oldest(regions, id, chunk);
        self.watch.left(id, now);
    }

    /// To the old end of the window.
    fn push_oldest(&mut self, regions: &Regions, id: ChunkId, chunk: &Chunk) {
        let oldest = self.window.oldest;
        chunk.older.store(0, Relaxed);
        chunk.newer.store(oldest, Relaxed);
        chunk.queue.store(WINDOW, Relaxed);
        match regions.chunk(oldest) {
            Some(after) => after.older.store(id, Relaxed),
            None => self.window.newest = id,
        }
        self.window.oldest = id;
        self.window.len += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_away_gives_its_place_to_a_few_that_come_back() {
        let mut watch = Watch::new();
        watch.left(7, 100);
        let takes = |watch: &mut Watch, now| (0..8).filter(|_| watch.may_take_in(now, 10, 4)).count();
        assert_eq!(takes(&mut watch, 120), 0, "away for no longer than others");
        assert_eq!(takes(&mut watch, 200), TAKEN_IN as usize);
        assert_eq!(takes(&mut watch, 900), 0, "one that left is one piece of evidence");
    }

    #[test]
    fn in_a_loop_nothing_changes() {
        let mut watch = Watch::new();
        // One in 32 leaves the main set; everything comes back after 200 evictions.
        for now in 0..10_000u32 {
            if now.is_multiple_of(32) {
                watch.left(now + 1, now);
            }
            if now >= 200 {
                watch.came_back(now - 200 + 1);
                assert!(!watch.may_take_in(now, 200, 8), "{now}");
                // Now and then one comes back at once.
                assert!(now < 1000 || !now.is_multiple_of(50) || !watch.may_take_in(now, 10, 8), "{now}");
            }
        }
    }
}
