//! The pager itself: one per process, made with the first configuration and kept for good. Holds the parts together; what
//! they do with each other is in `fill.rs` and `evict.rs`, who does it in `worker.rs`. Called by every file of the pager.

use super::arena::{self, Arena, HUGE_CLASS};
use super::backend::Backend;
use super::dedup::Twins;
use super::fork;
use super::gate::Gate;
use super::lossy::{self, Entries};
use super::names::Names;
use super::policy::Policy;
use super::pool::Pool;
use super::region::{ChunkId, MAX_CHUNKS, Regions};
use super::slot::{Kind, Slot, SlotId, Slots};
use super::stream::Streams;
use super::swap::{Swap, Swaps};
use super::trouble::Troubles;
use super::worker::Workers;
use super::{Options, Strategy};
use crate::codec::{dictionary, lz4};
use crate::error::{Class, Error};
use crate::fail;
use crate::monitor::account;
use crate::monitor::events::{self, Kind as Event};
use crate::os::vm;
use crate::sync::Mutex;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

/// Everything the pager has.
pub struct Pager {
    pub backend: Backend,
    pub regions: Regions,
    pub names: Names,
    pub slots: Slots,
    pub entries: Entries,
    pub twins: Twins,
    pub arena: Arena,
    pub pool: Pool,
    pub policy: Policy,
    pub streams: Mutex<Streams>,
    pub swaps: Swaps,
    pub workers: Workers,
    /// Passed by every step that owns a chunk or changes a table; `life` and `scratch` come before it.
    pub gate: Gate,
    pub counters: Counters,
    pub troubles: Troubles,
    /// Starting, stopping and ending regions exclude each other.
    pub life: Mutex<()>,
    /// For eviction on a program's own thread.
    pub scratch: Mutex<Scratch>,
    /// Resident bytes of pooled regions.
    pub pooled: AtomicUsize,
    strategy: AtomicU8,
    compression: AtomicBool,
    pub deduplication: AtomicBool,
    swapping: AtomicBool,
}

/// Events since the pager was made.
#[derive(Default)]
pub struct Counters {
    pub faults: AtomicUsize,
    pub evictions: AtomicUsize,
    pub pinned: AtomicUsize,
    /// Bytes mapped into regions.
    pub resident: AtomicUsize,
    /// The second (of the monotonic clock, plus one) in which a failed write was last told.
    pub write_error_told: AtomicUsize,
}

/// One thread's room for a blob, and its codec's table.
pub struct Scratch {
    blob: NonNull<u8>,
    pub context: lz4::Context,
}
// SAFETY: the scratch owns its mapping.
unsafe impl Send for Scratch {}

/// Bytes of a scratch's blob: what a codec may want for the largest chunk. The end of it is touched by the lossy one alone.
pub const SCRATCH: usize = {
    let lossless = vm::round_up(lz4::bound(vm::HUGE), vm::PAGE);
    if lossless > lossy::ROOM { lossless } else { lossy::ROOM }
};
const _: () = assert!(SCRATCH >= 2 * dictionary::WORK, "a dictionary's blob and its work fit side by side");

impl Scratch {
    /// Reserves the room; it becomes resident when used.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { blob: vm::reserve(SCRATCH, vm::PAGE)?, context: lz4::Context::new() })
    }

    /// The room, page-aligned, and the codec's table.
    pub fn parts(&mut self) -> (&mut [u8], &mut lz4::Context) {
        // SAFETY: the mapping is ours, SCRATCH bytes long and initialised (zero); `&mut self` makes it exclusive.
        (unsafe { core::slice::from_raw_parts_mut(self.blob.as_ptr(), SCRATCH) }, &mut self.context)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody borrows it any more.
        unsafe { vm::release(self.blob, SCRATCH) };
    }
}

/// Bound on resident bytes of pooled regions, 0 = none. May be set before there is a pager.
pub static POOL_LIMIT: AtomicUsize = AtomicUsize::new(0);
static PAGER: AtomicPtr<Pager> = AtomicPtr::new(core::ptr::null_mut());
static MAKING: Mutex<()> = Mutex::new(());
/// Set in a child of fork that has no workers and none of the parent's regions.
static FORKED: AtomicBool = AtomicBool::new(false);

/// In a child of fork that could not take the parent's pager over.
pub fn leave_behind() {
    FORKED.store(true, Ordering::Relaxed);
}

/// The pager, if there is one that this process may use.
pub fn get() -> Option<&'static Pager> {
    if forked() {
        return None;
    }
    // SAFETY: PAGER is null or points to a Pager that lives for ever.
    unsafe { PAGER.load(Ordering::Acquire).as_ref() }
}

/// The pager as a child of fork inherited it too: for telling the parent's pointers from foreign ones.
pub fn even_forked() -> Option<&'static Pager> {
    // SAFETY: as in `get`.
    unsafe { PAGER.load(Ordering::Acquire).as_ref() }
}

/// Is this a child of fork that has a pager in its memory and cannot use it?
pub fn forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Does a chunk of a region of this process lie at the address? Safe in a signal handler.
pub fn owns(address: usize) -> bool {
    let region = super::region_index(address).and_then(|index| get()?.regions.region(index));
    region.is_some_and(|region| region.chunk_at(address).is_some())
}

/// In a child of fork whose parent had no pager yet: nobody is making one here.
///
/// # Safety
/// The calling thread is the only one of its process, and was not making a pager.
pub unsafe fn nobody_makes() {
    // SAFETY: the caller's promise.
    unsafe { MAKING.reset_after_fork() };
}

/// The pager, made if need be.
pub fn make() -> Result<&'static Pager, Error> {
    if forked() {
        return Err(fail!(
            Unsupported,
            "this child of fork could not take over its parent's pager (too many generations or children, or no userfaultfd): exec a new program"
        ));
    }
    if let Some(pager) = get() {
        return Ok(pager); // without the lock, which a child of fork may have inherited from another thread
    }
    let _making = MAKING.lock();
    if let Some(pager) = get() {
        return Ok(pager);
    }
    let backend = Backend::open()?;
    let extent = vm::round_up(crate::os::vm::machine_memory(), vm::HUGE);
    let pager = Pager {
        backend,
        regions: Regions::new()?,
        names: Names::new()?,
        slots: Slots::new(MAX_CHUNKS)?,
        entries: Entries::new()?,
        twins: Twins::new()?,
        arena: Arena::new(extent),
        pool: Pool::new(extent / arena::bytes(HUGE_CLASS))?,
        policy: Policy::new(),
        streams: Mutex::new(Streams::new()),
        swaps: Swaps::new(),
        workers: Workers::new()?,
        gate: Gate::new(),
        counters: Counters::default(),
        troubles: Troubles::new(),
        life: Mutex::new(()),
        scratch: Mutex::new(Scratch::new()?),
        pooled: AtomicUsize::new(0),
        strategy: AtomicU8::new(0),
        compression: AtomicBool::new(false),
        deduplication: AtomicBool::new(false),
        swapping: AtomicBool::new(false),
    };
    let place = vm::reserve(vm::round_up(size_of::<Pager>(), vm::PAGE), vm::PAGE)?.cast::<Pager>();
    // SAFETY: a fresh mapping, page-aligned and large enough; it is published only after the write and never freed.
    unsafe { place.as_ptr().write(pager) };
    fork::prepare();
    PAGER.store(place.as_ptr(), Ordering::Release);
    get().ok_or_else(|| fail!(Internal, "the pager was made and is not there"))
}

impl Pager {
    /// Takes over what the program allows. A swap file that is asked for is opened now, so that a bad directory is told now.
    pub fn configure(&self, options: &Options) -> Result<(), Error> {
        if options.swapping
            && let Err(error) = self.open_swap()
            && crate::config::environment(crate::config::SWAP_DIR_ENV).is_some()
        {
            return Err(error); // a directory that was named is insisted on; else the program simply does not swap
        }
        self.strategy.store(options.strategy as u8, Ordering::Relaxed);
        self.compression.store(options.compression, Ordering::Relaxed);
        self.deduplication.store(options.deduplication, Ordering::Relaxed);
        self.swapping.store(options.swapping, Ordering::Relaxed);
        self.count_swap();
        self.workers.resume();
        Ok(())
    }

    /// Chunks may go to the swap file from now on, which must be there.
    pub fn enable_swapping(&self) -> Result<(), Error> {
        self.open_swap()?;
        self.swapping.store(true, Ordering::Relaxed);
        self.count_swap();
        self.workers.wake_evictors_if(self);
        events::note(Event::Swapping, 0, account::swap() as u64);
        Ok(())
    }

    /// Opens the swap file if it is not open. A machine that has nowhere to swap to does not, and the commit rule knows.
    fn open_swap(&self) -> Result<(), Error> {
        let _life = self.life.lock();
        self.swaps.open()
    }

    /// Tells the commit rule how much swap space there is.
    fn count_swap(&self) {
        let swap = self.swaps.own().filter(|_| self.swapping.load(Ordering::Relaxed)).map_or(0, |s| s.capacity);
        account::set_swap(swap, self.strategy() == Strategy::Compact);
    }

    /// The swap file, if chunks may go there. A child of fork opens its own when it first evicts.
    pub fn swap_for_eviction(&self) -> Option<&Swap> {
        if !self.swapping.load(Ordering::Relaxed) {
            return None;
        }
        if self.swaps.may_open() {
            match self.swaps.open() {
                Ok(()) => self.count_swap(),
                Err(error) => self.troubles.tell(Class::Io, &error),
            }
        }
        self.swaps.own()
    }

    /// May chunks be compressed in RAM?
    pub fn compresses(&self) -> bool {
        self.compression.load(Ordering::Relaxed)
    }

    /// The strategy in force.
    pub fn strategy(&self) -> Strategy {
        match self.strategy.load(Ordering::Relaxed) {
            0 => Strategy::Adaptive,
            1 => Strategy::Latency,
            2 => Strategy::Throughput,
            _ => Strategy::Compact,
        }
    }

    /// Bytes of free frames (or budget for them) below which eviction starts, and up to which it goes on.
    pub fn watermarks(&self) -> (usize, usize) {
        let frame = arena::bytes(HUGE_CLASS);
        let share = (account::budget() / 64 / frame).clamp(1, if self.strategy() == Strategy::Latency { 16 } else { 6 });
        (share * frame, 2 * share * frame)
    }

    /// Should frames be won in the background: is there less than `bytes` of room, and not room for everything anyway?
    pub fn runs_low(&self, bytes: usize) -> bool {
        self.arena.headroom() < bytes && !account::holds_everything()
    }

    /// The most the compressed pool may take: the rest of the budget must hold the frames in use.
    pub fn pool_bound(&self) -> usize {
        let others = account::beside_frames() + self.counters.pinned.load(Ordering::Relaxed);
        let budget = account::budget().saturating_sub(others);
        let frames = if self.strategy() == Strategy::Compact { budget / 8 } else { budget / 4 };
        budget.saturating_sub(frames.max(16 << 20))
    }

    /// A slot's chunk has another number now.
    pub fn rename(&self, id: SlotId, chunk: ChunkId) {
        if let Some(slot) = self.slots.get(id).filter(|s| matches!(s.kind, Kind::Compressed | Kind::LongPattern)) {
            self.pool.rename(slot.head, chunk);
        }
    }

    /// Gives up what a slot holds. `discard`: its region ends, and its part of the swap file goes back to the disk too.
    pub fn release_bytes(&self, slot: &Slot, discard: bool) {
        match slot.kind {
            Kind::Compressed | Kind::LongPattern => self.pool.free(&self.arena, slot.head),
            Kind::SwappedBlob | Kind::Swapped => {
                if discard {
                    self.swaps.discard(slot.extent);
                }
                self.swaps.release(slot.extent);
            }
            Kind::Pattern | Kind::Free => {}
        }
    }

    /// Ends workers, swap file and frames. The caller has freed every region and holds off new ones.
    /// Busy while an error handler runs for one of its threads.
    pub fn shut_down(&self) -> Result<(), Error> {
        if !self.troubles.end() {
            return Err(fail!(
                Busy,
                "an error handler runs for a background thread: memory allocation ends when it has returned"
            ));
        }
        self.workers.stop(&self.troubles);
        debug_assert!(self.pooled.load(Ordering::Relaxed) == 0 && self.counters.pinned.load(Ordering::Relaxed) == 0);
        debug_assert_eq!(self.counters.resident.load(Ordering::Relaxed), 0);
        let _life = self.life.lock();
        let _pass = self.gate.enter();
        self.pool.trim(&self.arena);
        self.arena.clear(&self.backend);
        // SAFETY: no worker runs and no region is left that could use it; setters hold `life`.
        unsafe { self.swaps.close() };
        account::set_swap(0, false);
        account::set_reclaim(None);
        Ok(())
    }
}
