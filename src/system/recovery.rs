//! The subsystem "memory recovery": how often a failed operation is tried again, what stands in for it, what is logged, and when
//! all paged buffers are checkpointed. Called by `ffi`, by `dispatch` for its settings, and by `memory` for every block given or
//! freed while checkpoints are wanted. How a checkpoint is made is the pager's affair.

use super::dispatch::Detour;
use super::phase::Phase;
use crate::config;
use crate::ds::Text;
use crate::error::{self, Class, Error, Failure, Status};
use crate::monitor::events::{self, Kind};
use crate::sync::Mutex;
use crate::{fail, paged};
use core::ffi::CStr;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, Ordering::Relaxed};

const NAME: &str = "memory recovery";

/// `recovery_config_t`, checked; zeros replaced by their defaults.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Retries per failed operation.
    pub max_retries: u32,
    /// Calls between checkpoints; 0 = none.
    pub checkpoint_interval: u32,
    /// Failures and how they ended are logged.
    pub logging: bool,
    /// What stands in for an operation that no retry saved.
    pub fallback: Detour,
}

struct State {
    phase: Phase,
    settings: Settings,
}

const NONE: Settings = Settings { max_retries: 0, checkpoint_interval: 0, logging: false, fallback: Detour::None };
static STATE: Mutex<State> = Mutex::new(State { phase: Phase::Uninitialised, settings: NONE });
/// Calls between checkpoints, 0 = none wanted; what the way to every block reads.
static INTERVAL: AtomicU32 = AtomicU32::new(0);
/// Calls since the last checkpoint.
static CALLS: AtomicU32 = AtomicU32::new(0);
/// A thread is making a checkpoint.
static BUSY: AtomicBool = AtomicBool::new(false);

/// What applies while recovery runs.
pub fn settings() -> Option<Settings> {
    let state = STATE.lock();
    (state.phase == Phase::Running).then_some(state.settings)
}

/// Where recovery stands.
pub fn phase() -> Phase {
    STATE.lock().phase
}

/// `initialize_memory_recovery`.
pub fn start(settings: &Settings) -> Result<(), Error> {
    let mut state = STATE.lock();
    state.phase.may_start(NAME)?;
    config::load()?;
    let directory = config::environment(config::CHECKPOINT_DIR_ENV);
    *state = State { phase: Phase::Running, settings: *settings };
    CALLS.store(0, Relaxed);
    INTERVAL.store(if directory.is_some() { settings.checkpoint_interval } else { 0 }, Relaxed);
    Ok(())
}

/// Retries alone: what a config of zeros says.
pub fn start_with_defaults() -> Result<(), Error> {
    start(&Settings { max_retries: config::RETRIES, checkpoint_interval: 0, logging: false, fallback: Detour::None })
}

/// `stop_memory_recovery`: failures are dispatched without retries of ours, and no more checkpoints are made.
pub fn stop() -> Result<(), Error> {
    let mut state = STATE.lock();
    if state.phase.may_stop(NAME)? {
        state.phase = Phase::Stopped;
        INTERVAL.store(0, Relaxed);
    }
    Ok(())
}

/// `cleanup_memory_recovery`: the settings are forgotten. Checkpoints on disk stay: they are what a later process restores.
pub fn clean() -> Result<(), Error> {
    let mut state = STATE.lock();
    if state.phase.may_clean(NAME)? {
        *state = State { phase: Phase::Cleaned, settings: NONE };
    }
    Ok(())
}

/// Are calls counted, so that one of them may make a checkpoint?
#[inline]
pub fn counts() -> bool {
    INTERVAL.load(Relaxed) != 0
}

/// One call that allocates or frees. A checkpoint that is due is made now; its failure is dispatched and harms no block.
#[inline]
pub fn called() {
    if INTERVAL.load(Relaxed) != 0 {
        let _ = count();
    }
}

/// `qmem_tick`: one unit of the program's work.
pub fn tick() -> Result<(), Error> {
    if INTERVAL.load(Relaxed) == 0 { Ok(()) } else { count() }
}

#[cold]
fn count() -> Result<(), Error> {
    let interval = INTERVAL.load(Relaxed);
    if interval == 0 || CALLS.fetch_add(1, Relaxed) + 1 < interval || BUSY.swap(true, Ordering::Acquire) {
        return Ok(());
    }
    CALLS.store(0, Relaxed);
    let made = checkpoint();
    BUSY.store(false, Ordering::Release);
    made.or_else(|error| {
        let class = Class::of(error.status).unwrap_or(Class::Io);
        error::dispatch(&Failure { class, error: &error, told: false, again: Some(&checkpoint) })
    })
}

/// Writes the older of the two checkpoints in the directory anew.
fn checkpoint() -> Result<(), Error> {
    let directory = config::environment(config::CHECKPOINT_DIR_ENV);
    let Some(directory) = directory.and_then(|d| d.to_str().ok()) else { return Ok(()) };
    let path = |n: u32| {
        let mut text = Text::<4096>::new();
        let whole = write!(text, "{directory}/qmem-checkpoint.{n}\0").is_ok() && text.as_str().ends_with('\0');
        whole.then_some(text).ok_or_else(|| {
            fail!(Io, "the directory in QMEM_CHECKPOINT_DIR has a name of {} bytes, too long for a path", directory.len())
        })
    };
    let (first, second) = (path(0)?, path(1)?);
    let changed = |path: &Text<4096>| std::fs::metadata(path.as_str().trim_end_matches('\0')).and_then(|m| m.modified()).ok();
    let older = if changed(&first) <= changed(&second) { &first } else { &second };
    let name = CStr::from_bytes_until_nul(older.as_str().as_bytes()).map_err(|_| fail!(Internal, "a path without its end"))?;
    match paged::write_checkpoint(None, name) {
        Err(error) if error.status == Status::NotFound => return Ok(()), // no paged buffer yet
        made => made?,
    }
    events::note(Kind::Checkpoint, 0, 0);
    Ok(())
}

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    STATE.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(_in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { STATE.unlock_after_fork() };
}
