//! The unified pool: its life cycle, its bounds, and what it sets for geometric, hierarchical and streaming allocations. Called
//! by `ffi::unified` and by `memory`, which draws from the pool before it gives a block and gives back after it freed one.

use super::memory;
use super::phase::Phase;
use crate::error::Error;
use crate::monitor::account;
use crate::os::vm;
use crate::sync::Mutex;
use crate::{config, fail, paged};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const NAME: &str = "unified memory";

/// `unified_pool_config_t`, checked.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // as in unified_pool_config_t
pub struct Config {
    pub initial_size: usize,
    pub max_size: usize,
    pub growth: bool,
    pub geometric: bool,
    pub streaming: bool,
    pub chunk_size: usize,
    pub tolerance: f64,
}

/// In force while no pool is configured.
const DEFAULT: Config =
    Config { initial_size: 0, max_size: 0, growth: true, geometric: true, streaming: true, chunk_size: vm::HUGE, tolerance: 0.0 };

struct Pool {
    phase: Phase,
    config: Config,
    /// Bytes of live blocks from the heap (or the registered interface), and of paged ones.
    heap: usize,
    paged: usize,
    /// Of initial_size, what is committed ahead of blocks; those that are there count for themselves.
    reserved: usize,
    /// A thread is freeing leftovers, without the lock.
    cleaning: bool,
}

static POOL: Mutex<Pool> =
    Mutex::new(Pool { phase: Phase::Uninitialised, config: DEFAULT, heap: 0, paged: 0, reserved: 0, cleaning: false });

/// Of the reservation, what no block has filled yet: out of reach for everyone else.
static UNFILLED: AtomicUsize = AtomicUsize::new(0);

/// Bytes kept free for the pool; read on the way to every heap block.
pub fn unfilled() -> usize {
    UNFILLED.load(Relaxed)
}

/// The unit of streaming I/O that a program asks for: 0 = 2 MiB, else a power of two within bounds.
pub fn chunk_size(asked: usize) -> Result<usize, Error> {
    let (least, most) = config::CHUNK_BOUNDS;
    match asked {
        0 => Ok(vm::HUGE),
        n if n.is_power_of_two() && (least..=most).contains(&n) => Ok(n),
        n => Err(fail!(InvalidArgument, "chunk_size = {n} is not a power of two from {least} to {most} (0 = 2 MiB)")),
    }
}

/// A tolerance from a program: a fraction in [0, 1).
pub fn tolerance(asked: f64) -> Result<f64, Error> {
    if (0.0..1.0).contains(&asked) { Ok(asked) } else { Err(fail!(InvalidArgument, "tolerance = {asked} is outside [0, 1)")) }
}

/// What applies to the next geometric, hierarchical or streaming allocation.
pub fn settings() -> Config {
    POOL.lock().config
}

/// Where the pool stands.
pub fn phase() -> Phase {
    POOL.lock().phase
}

/// `initialize_unified_memory`. Without memory allocation, which need not run, the default budget comes into force.
pub fn start(config: &Config) -> Result<(), Error> {
    if config.max_size != 0 && config.initial_size > config.max_size {
        return Err(fail!(InvalidArgument, "initial_size = {} is more than max_size = {}", config.initial_size, config.max_size));
    }
    POOL.lock().phase.may_start(NAME)?;
    if super::allocation::mode().0 == Phase::Stopped {
        return Err(fail!(Busy, "memory allocation is stopped, and {NAME} depends on it; clean it up first"));
    }
    super::allocation::ensure_budget()?;
    let mut pool = POOL.lock();
    pool.phase.may_start(NAME)?; // again: another thread may have been faster
    let initial = if config.growth || config.initial_size > 0 { config.initial_size } else { config.max_size };
    account::commit(initial)?;
    *pool = Pool {
        phase: Phase::Running,
        config: Config { initial_size: initial, ..*config },
        heap: 0,
        paged: 0,
        reserved: initial,
        cleaning: false,
    };
    pool.settle();
    paged::set_pool_limit(config.max_size);
    Ok(())
}

/// A pool without bounds of its own.
pub fn start_with_defaults() -> Result<(), Error> {
    start(&DEFAULT)
}

/// `stop_unified_memory`: nothing new from the pool, and its reservation is given up.
pub fn stop() -> Result<(), Error> {
    let mut pool = POOL.lock();
    if pool.phase.may_stop(NAME)? {
        pool.phase = Phase::Stopped;
        pool.settle();
    }
    Ok(())
}

/// `cleanup_unified_memory`: frees the pool's blocks, each leftover reported as a leak; defaults apply again.
pub fn clean() -> Result<(), Error> {
    let mut pool = POOL.lock();
    if !pool.phase.may_clean(NAME)? {
        return Ok(());
    }
    if core::mem::replace(&mut pool.cleaning, true) {
        return Err(fail!(Busy, "another thread is cleaning up {NAME}"));
    }
    drop(pool);
    memory::free_leftovers(memory::TAG_POOL);
    paged::set_pool_limit(0);
    let mut pool = POOL.lock();
    pool.phase = Phase::Cleaned;
    pool.config = DEFAULT;
    pool.cleaning = false;
    Ok(())
}

/// Takes `bytes` from the pool for a block that is about to be given.
pub fn draw(bytes: usize, paged: bool) -> Result<(), Error> {
    let mut pool = POOL.lock();
    pool.phase.may_give(NAME)?;
    let used = pool.heap.saturating_add(pool.paged);
    let Config { initial_size, max_size, growth, .. } = pool.config;
    if !growth && initial_size > 0 && used.saturating_add(bytes) > initial_size {
        return Err(fail!(
            Limit,
            "{bytes} bytes do not fit into the unified pool: {used} of its {initial_size} bytes are in use and enable_growth is false"
        ));
    }
    if !paged && max_size > 0 && pool.heap.saturating_add(bytes) > max_size {
        return Err(fail!(
            Limit,
            "{bytes} bytes do not fit into the unified pool: {} of max_size = {max_size} bytes are in use by heap blocks",
            pool.heap
        ));
    }
    pool.add(bytes, paged);
    Ok(())
}

/// Gives back what a block drew.
pub fn give_back(bytes: usize, paged: bool) {
    let mut pool = POOL.lock();
    let used = if paged { &mut pool.paged } else { &mut pool.heap };
    *used = used.saturating_sub(bytes);
    pool.settle();
}

impl Pool {
    fn add(&mut self, bytes: usize, paged: bool) {
        let used = if paged { &mut self.paged } else { &mut self.heap };
        *used = used.saturating_add(bytes);
        self.settle();
    }

    /// Brings the reservation to what initial_size leaves beside the blocks that are there.
    fn settle(&mut self) {
        let wanted = if self.phase == Phase::Running {
            self.config.initial_size.saturating_sub(self.paged.saturating_add(self.heap))
        } else {
            0
        };
        if wanted < self.reserved {
            account::uncommit(self.reserved - wanted);
            self.reserved = wanted;
        } else if account::commit(wanted - self.reserved).is_ok() {
            self.reserved = wanted; // if not, others took the room meanwhile, and the next free tries again
        }
        UNFILLED.store(self.reserved, Relaxed);
    }
}
