//! The whole system: starts what does not run, adopts what does, and ends everything in the order of dependence. One table says what
//! there is; a subsystem that this version lacks is a row without a start. Called by `ffi::system`.

use super::phase::Phase;
use super::{allocation, recovery, resources, unified};
use crate::ds::Text;
use crate::error::{Error, Status};
use crate::fail;
use crate::monitor::events::{self, Kind};
use crate::monitor::{fidelity, level};
use crate::sync::Mutex;
use core::fmt::Write;

const NAME: &str = "memory system";

/// `memory_system_config_t`, checked.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Start what does not run.
    pub all: bool,
    /// Start the tuner.
    pub tune: bool,
    /// A level of `monitor::level`.
    pub monitoring: usize,
    /// An infidelity; 0 = no bound.
    pub error_budget: f64,
}

/// One subsystem.
struct Row {
    name: &'static str,
    phase: fn() -> Phase,
    /// With defaults. None: not in this version.
    start: Option<fn() -> Result<(), Error>>,
    stop: fn() -> Result<(), Error>,
    clean: fn() -> Result<(), Error>,
}

fn never() -> Phase {
    Phase::Uninitialised
}

fn nothing() -> Result<(), Error> {
    Ok(())
}

const fn absent(name: &'static str) -> Row {
    Row { name, phase: never, start: None, stop: nothing, clean: nothing }
}

const TUNING: usize = 4;
/// In order of dependence: each may need those before it.
static ROWS: [Row; 8] = [
    Row {
        name: "memory allocation",
        phase: || allocation::mode().0,
        start: Some(allocation::start_with_defaults),
        stop: allocation::stop,
        clean: allocation::clean,
    },
    Row {
        name: "unified memory",
        phase: unified::phase,
        start: Some(unified::start_with_defaults),
        stop: unified::stop,
        clean: unified::clean,
    },
    absent("cache optimization"),
    Row {
        name: "resource management",
        phase: resources::phase,
        start: Some(resources::start_with_defaults),
        stop: resources::stop,
        clean: resources::clean,
    },
    absent("memory tuning"),
    absent("adaptive memory"),
    absent("memory ensemble"),
    Row {
        name: "memory recovery",
        phase: recovery::phase,
        start: Some(recovery::start_with_defaults),
        stop: recovery::stop,
        clean: recovery::clean,
    },
];

/// What became of each, in words, a line each.
pub type Summary = Text<1500>;

struct State {
    running: bool,
    /// Which rows it started or adopted.
    members: u32,
    summary: Summary,
}

static STATE: Mutex<State> = Mutex::new(State { running: false, members: 0, summary: Text::new() });

fn runs(row: &Row) -> bool {
    (row.phase)() == Phase::Running
}

/// A program that ends the parts by itself has ended the whole.
fn is_running(state: &State) -> bool {
    let member = |(n, row): (usize, &Row)| state.members >> n & 1 == 1 && runs(row);
    state.running && (state.members == 0 || ROWS.iter().enumerate().any(member))
}

/// `initialize_memory_system`. What the machine lacks is skipped; any other failure ends what was started here.
pub fn start(config: &Config) -> Result<(), Error> {
    let mut state = STATE.lock();
    if is_running(&state) {
        return Err(fail!(AlreadyInitialized, "the {NAME} runs already; cleanup_memory_system ends it"));
    }
    let wanted = |n: usize| config.all || (n == TUNING && config.tune);
    let stopped = ROWS.iter().enumerate().find(|(n, row)| wanted(*n) && (row.phase)() == Phase::Stopped);
    if let Some((_, row)) = stopped {
        return Err(fail!(Busy, "{} is stopped but not cleaned up: clean it up before the {NAME} starts it", row.name));
    }
    let mut summary = Summary::new();
    let (mut members, mut started) = (0u32, 0u32);
    for (n, row) in ROWS.iter().enumerate() {
        let outcome = if runs(row) {
            members |= 1 << n;
            Ok("adopted as it runs")
        } else if !wanted(n) {
            Ok("not started: not asked for")
        } else {
            match row.start {
                None => Err(fail!(Unsupported, "not in this version of qmem")),
                Some(start) => start().map(|()| {
                    started |= 1 << n;
                    "started"
                }),
            }
        };
        // A Text takes what fits and never fails.
        let _ = match &outcome {
            Ok(what) => writeln!(summary, "{}: {what}", row.name),
            Err(error) if error.status == Status::Unsupported => writeln!(summary, "{}: skipped: {error}", row.name),
            Err(error) => {
                end_rows(started);
                return Err(error.clone());
            }
        };
    }
    level::ask(config.monitoring);
    fidelity::PROCESS.set_limit(config.error_budget);
    events::note(Kind::Level, config.monitoring as u64, 0);
    *state = State { running: true, members: members | started, summary };
    Ok(())
}

/// What the last start did with each subsystem; empty before the first.
pub fn summary() -> Summary {
    STATE.lock().summary
}

/// Stops and cleans the rows of a set, the last ones first.
fn end_rows(set: u32) {
    for (n, row) in ROWS.iter().enumerate().rev() {
        if set >> n & 1 == 1 {
            // One that does not run answers NOT_INITIALIZED, which is what is wanted here.
            let _ = (row.stop)();
            let _ = (row.clean)();
        }
    }
}

/// What `cleanup_memory_system` does where the program has none of its own: ends everything that runs.
pub fn end() {
    end_rows(u32::MAX);
    level::ask(level::NONE);
    fidelity::PROCESS.set_limit(0.0);
    let mut state = STATE.lock();
    state.running = false;
    state.members = 0;
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
