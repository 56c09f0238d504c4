//! The subsystem "memory allocation": its life cycle, the budget, and when the pager starts. Called by `ffi::allocation` and by
//! `memory`, which asks here what kind of block to give. One lock for the life cycle; the hot path reads one atomic.

use super::dispatch::Detour;
use super::phase::Phase;
use super::{custom, memory, recovery, unified};
use crate::error::{Error, Status};
use crate::monitor::account::{self, Holder};
use crate::monitor::level;
use crate::os::limits;
use crate::paged::{self, Options, Strategy};
use crate::sync::Mutex;
use crate::{config, fail, heap};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const NAME: &str = "memory allocation";

/// Where blocks come from; `allocation_type_t` without the type that this version refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The heap.
    Classical = 0,
    /// The pager; small requests from the heap.
    Quantum = 1,
    /// The heap below the threshold, the pager from it.
    Hybrid = 2,
    /// The registered interface.
    Custom = 3,
}

/// `memory_allocation_config_t`, checked.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Where blocks come from.
    pub kind: Kind,
    /// Hard bound on resident bytes; 0 = by environment or machine.
    pub max_memory: usize,
    /// What the pager may do.
    pub options: Options,
}

/// What the pager may do when nobody configured it.
const DEFAULT: Options = Options { strategy: Strategy::Adaptive, compression: false, deduplication: false, swapping: false };

/// What a preloaded program's environment asks for: holds before, beside and after what the program itself initialises.
#[derive(Clone, Copy)]
struct Preset {
    budget: usize,
    options: Options,
}

struct State {
    /// Given by the environment of a preloaded program, whose malloc's large blocks are paged.
    preset: Option<Preset>,
    /// The pager was configured and not shut down since.
    pager: bool,
    /// What it may do once it starts.
    options: Options,
    /// A thread is freeing leftovers, without the lock: the program's own free function may be among what it calls.
    cleaning: bool,
}

static STATE: Mutex<State> = Mutex::new(State { preset: None, pager: false, options: DEFAULT, cleaning: false });
/// `State::pager`, for those without the lock.
static PAGER_RUNS: AtomicBool = AtomicBool::new(false);
/// Phase in the low byte, kind in the next: what the hot path needs.
static MODE: AtomicU32 = AtomicU32::new(0);

fn set_mode(phase: Phase, kind: Kind) {
    MODE.store(phase as u32 | (kind as u32) << 8, Ordering::Release);
}

/// Phase and kind in force; the heap before initialisation.
#[inline]
pub fn mode() -> (Phase, Kind) {
    let mode = MODE.load(Ordering::Acquire);
    let kind = match (mode >> 8) as u8 {
        0 => Kind::Classical,
        1 => Kind::Quantum,
        2 => Kind::Hybrid,
        _ => Kind::Custom,
    };
    (Phase::from_number(mode as u8), kind)
}

/// Bytes that qmem may make resident on this machine: the cgroup's or machine's limit less the reserve.
pub fn machine_budget() -> usize {
    let allowed = limits::allowed();
    let reserve = match config::RESERVE.get() {
        0 => (allowed / 8).min(2 << 30),
        bytes => bytes,
    };
    allowed.saturating_sub(reserve)
}

/// The budget that a program gets which asks for `max_memory` bytes.
pub fn budget_for(max_memory: usize) -> usize {
    let asked = if max_memory == 0 { config::BUDGET.get() } else { max_memory };
    let most = machine_budget();
    if asked == 0 { most } else { asked.min(most) }
}

fn check_budget(budget: usize, paged: bool) -> Result<(), Error> {
    let least = if paged { config::MIN_PAGED_BUDGET } else { config::MIN_BUDGET };
    if budget < least {
        return Err(fail!(
            InvalidArgument,
            "max_memory comes to {budget} bytes (this machine allows {}), but {} needs at least {least}",
            machine_budget(),
            if paged { "paged memory" } else { "qmem" }
        ));
    }
    Ok(())
}

/// Sets the budget if what is resident fits into it. The former budget.
fn take_budget(budget: usize) -> Result<usize, Error> {
    let resident = account::resident();
    if resident > budget {
        return Err(fail!(
            Limit,
            "{resident} bytes are resident already and do not fit into a budget of {budget}; free blocks first"
        ));
    }
    let before = account::budget();
    account::set_budget(budget);
    Ok(before)
}

/// For a preloaded program, before it has threads: the budget of the environment, and what the pager may do, from now on. The
/// budget bounds paged memory; blocks of the heap are what the program needs by itself. The program may still
/// initialise memory allocation itself; it gets no more than this budget then, and what the pager may do it may do for both.
pub fn preset(options: &Options) -> Result<(), Error> {
    let mut state = STATE.lock();
    let budget = budget_for(0);
    check_budget(budget, true)?;
    account::leave_heap_outside();
    take_budget(budget)?;
    state.preset = Some(Preset { budget, options: *options });
    state.options = *options;
    Ok(())
}

impl State {
    fn set_pager(&mut self, runs: bool) {
        self.pager = runs;
        PAGER_RUNS.store(runs, Ordering::Release);
    }

    /// What the pager may do where the program asks for `options`: its malloc's blocks need what the preset allows.
    fn with_preset(&self, options: &Options) -> Options {
        let Some(Preset { options: preset, .. }) = self.preset else { return *options };
        Options {
            strategy: options.strategy,
            compression: options.compression || preset.compression,
            deduplication: options.deduplication || preset.deduplication,
            swapping: options.swapping || preset.swapping,
        }
    }

    /// The budget of a program that asks for `max_memory`, inside the preset one.
    fn budget(&self, max_memory: usize) -> usize {
        budget_for(max_memory).min(self.preset.map_or(usize::MAX, |preset| preset.budget))
    }
}

fn any_region() -> bool {
    let mut any = false;
    paged::for_each_region(&mut |_| any = true);
    any
}

/// Does recovery put the heap in place of what this machine lacks?
fn falls_back() -> bool {
    recovery::settings().is_some_and(|s| s.fallback == Detour::Classical)
}

/// What stands in for device memory, which this version does not have.
pub fn instead_of_device() -> Result<Kind, Error> {
    if falls_back() {
        return Ok(Kind::Classical);
    }
    Err(fail!(
        Unsupported,
        "allocation_type = ALLOC_GPU: this version of qmem has no support for CUDA devices; recovery with FALLBACK_CLASSICAL would use the heap"
    ))
}

/// `initialize_memory_allocation`.
pub fn start(config: &Config) -> Result<(), Error> {
    let mut state = STATE.lock();
    let mut kind = config.kind;
    mode().0.may_start(NAME)?;
    if config.kind == Kind::Custom && !custom::registered() {
        return Err(fail!(InvalidArgument, "ALLOC_CUSTOM has no interface to allocate from: call qmem_register_interface first"));
    }
    config::load()?;
    level::refresh();
    let budget = state.budget(config.max_memory);
    let options = state.with_preset(&config.options);
    let Options { compression, deduplication, swapping, .. } = options;
    let paged = matches!(config.kind, Kind::Quantum | Kind::Hybrid);
    let idle = state.pager && !any_region();
    check_budget(budget, paged || (state.pager && !idle))?;
    if idle {
        paged::try_shutdown()?; // started by default earlier and idle: what it holds need not fit into the new budget
        state.set_pager(false);
    }
    let before = take_budget(budget)?;
    // A program that asks nothing of the pager gets it with the first paged buffer, and runs where there is none.
    let wanted = paged || compression || deduplication || swapping || state.pager;
    if wanted && budget >= config::MIN_PAGED_BUDGET {
        match paged::configure(&options) {
            Ok(()) => state.set_pager(true),
            Err(error) if paged && error.status == Status::Unsupported && falls_back() => kind = Kind::Classical,
            Err(error) => {
                account::set_budget(before);
                return Err(error);
            }
        }
    }
    state.options = options;
    set_mode(Phase::Running, kind);
    Ok(())
}

/// The heap within the default budget.
pub fn start_with_defaults() -> Result<(), Error> {
    start(&Config { kind: Kind::Classical, max_memory: 0, options: DEFAULT })
}

/// Sets the default budget if none is set: for a unified pool without memory allocation.
pub fn ensure_budget() -> Result<(), Error> {
    let _state = STATE.lock();
    default_budget(false).map(drop)
}

/// The budget in force, or the default one, which is set. Under the lock.
fn default_budget(paged: bool) -> Result<usize, Error> {
    if bounded() {
        return Ok(account::budget());
    }
    config::load()?;
    let budget = budget_for(0);
    check_budget(budget, paged)?;
    take_budget(budget)
}

/// Starts the pager with defaults if it does not run yet. The caller has checked that blocks may be given.
pub fn ensure_pager() -> Result<(), Error> {
    if PAGER_RUNS.load(Ordering::Acquire) {
        return Ok(()); // without the lock, which a child of fork may have inherited from another thread
    }
    let mut state = STATE.lock();
    if state.pager {
        return Ok(());
    }
    let before = default_budget(true)?;
    if account::budget() < config::MIN_PAGED_BUDGET {
        return Err(fail!(
            Limit,
            "paged memory needs a budget of at least {} bytes; max_memory is {}",
            config::MIN_PAGED_BUDGET,
            account::budget()
        ));
    }
    if let Err(error) = paged::configure(&state.options) {
        account::set_budget(before);
        return Err(error);
    }
    state.set_pager(true);
    Ok(())
}

/// Lets cold chunks go to the swap file from now on, and with them larger requests be granted.
pub fn enable_swapping() -> Result<(), Error> {
    let mut state = STATE.lock();
    mode().0.may_give(NAME)?;
    if state.pager {
        paged::enable_swapping()?;
    }
    state.options.swapping = true;
    Ok(())
}

/// Gives back to the kernel what heap and pager keep for reuse.
pub fn trim() {
    heap::trim();
    paged::trim();
}

/// Clean-up waits for the pager's threads, so it cannot run on one: in a handler of a failure of theirs.
fn not_in_a_handler_of_workers(what: &str) -> Result<(), Error> {
    if paged::on_error_thread() {
        return Err(fail!(Busy, "{what} cannot run in the error handler of a background thread: let the handler return first"));
    }
    Ok(())
}

/// `stop_memory_allocation`: ends the unified pool too, which depends on it.
pub fn stop() -> Result<(), Error> {
    let state = STATE.lock();
    let (phase, kind) = mode();
    if !phase.may_stop(NAME)? {
        return Ok(());
    }
    set_mode(Phase::Stopped, kind);
    let _ = unified::stop(); // NOT_INITIALIZED where it does not run
    if state.preset.is_none() {
        paged::quiesce();
    }
    Ok(())
}

/// `cleanup_allocation_resources`: frees what was given since initialisation, each leftover reported as a leak.
pub fn clean() -> Result<(), Error> {
    not_in_a_handler_of_workers("cleanup_allocation_resources")?;
    let mut state = STATE.lock();
    if !mode().0.may_clean(NAME)? {
        return Ok(());
    }
    if core::mem::replace(&mut state.cleaning, true) {
        return Err(fail!(Busy, "another thread is cleaning up {NAME}"));
    }
    drop(state);
    let _ = unified::clean(); // NOT_INITIALIZED where it does not run
    memory::free_leftovers(memory::TAG_API);
    memory::forget_tracked();
    let mut state = STATE.lock();
    if state.pager && state.preset.is_none() && !any_region() {
        // Without the lock, which an error handler may want. Nobody starts the pager meanwhile: memory allocation is stopped, and a
        // preloaded malloc, which is not, keeps the pager for itself.
        drop(state);
        paged::shutdown();
        state = STATE.lock();
        state.set_pager(false);
    }
    account::set_budget(state.preset.map_or(usize::MAX, |preset| preset.budget));
    state.options = state.preset.map_or(DEFAULT, |preset| preset.options);
    set_mode(Phase::Cleaned, Kind::Classical);
    state.cleaning = false;
    let options = state.options;
    if state.pager && state.preset.is_some() { paged::configure(&options) } else { Ok(()) }
}

/// In a child of fork: a lock that another thread of the parent held is free again. What it guards is a few flags, each right
/// by itself.
///
/// # Safety
/// The calling thread is the only one of its process.
pub unsafe fn after_fork_in_child() {
    // SAFETY: the caller's promise.
    unsafe { STATE.reset_after_fork() };
}

/// Is a budget in force?
pub fn bounded() -> bool {
    account::budget() != usize::MAX
}

/// Would a heap block of `bytes` fit beside what the heap holds and what is reserved for the unified pool? Whether frames can be
/// evicted for it is seen when it is made.
pub fn heap_has_room(bytes: usize) -> bool {
    let fits = || {
        let held = account::beside_frames();
        held.saturating_add(unified::unfilled()).saturating_add(bytes) <= account::budget()
    };
    fits() || {
        heap::trim(); // what it keeps for reuse does not count
        fits()
    }
}

/// Refuses a heap block that would take what is reserved for the unified pool. Without a reservation the heap itself decides.
pub fn respect_reservation(bytes: usize) -> Result<(), Error> {
    let reserved = unified::unfilled();
    if reserved == 0 || heap_has_room(bytes) {
        return Ok(());
    }
    Err(fail!(
        OutOfMemory,
        "{bytes} bytes refused: of the budget of {} bytes the heap holds {} and {reserved} are reserved for the unified pool; free blocks or raise max_memory",
        account::budget(),
        account::held(Holder::Heap)
    ))
}
