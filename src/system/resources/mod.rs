//! The subsystem "resource management": a registry of resources with quotas, from which requests are granted by the management type
//! and strategy, in the order in which they came, waiting where they must. Called by `ffi::resources` and `ffi::quotas`. One lock;
//! the program's balancer runs without it.

mod balance;
mod table;

use super::phase::Phase;
use crate::ds::Text;
use crate::error::{self, Class, Error, Failure, Status};
use crate::monitor::events::{self, Kind as Event};
use crate::os::worker::Thread;
use crate::os::{clock, output};
use crate::sync::{Mutex, futex_wait_for, futex_wake};
use crate::{config, fail, topology};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use table::Table;

pub use balance::{Measure, Placement};
pub use table::{Handle, KINDS, Sample, Usage, kind_name};

const NAME: &str = "resource management";

/// `resource_management_config_t`, checked.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What is balanced.
    pub measure: Measure,
    /// Where requests go.
    pub placement: Placement,
    /// Resources at most.
    pub max_resources: usize,
    /// A history of each is kept.
    pub monitoring: bool,
    /// Quotas are moved in the background.
    pub optimization: bool,
}

/// What the program's balancer sees of a resource.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Candidate {
    /// Its handle.
    pub resource: Handle,
    /// In use.
    pub used: u64,
    /// What there is.
    pub capacity: u64,
    /// Requests that are held.
    pub holds: u64,
    /// -1: any.
    pub node: i32,
}

/// Chooses one of the candidates by its index; any other number: none of them, wait.
pub type BalancerFn = unsafe extern "C" fn(*const Candidate, usize, u64, *mut c_void) -> usize;

#[derive(Clone, Copy)]
struct Balancer {
    function: BalancerFn,
    user: *mut c_void,
}
// SAFETY: the data is the program's, who registers it for every thread.
unsafe impl Send for Balancer {}

/// A request that waits.
#[derive(Clone, Copy)]
struct Waiter {
    ticket: u64,
    kind: usize,
    amount: u64,
}

struct Manager {
    phase: Phase,
    config: Config,
    table: Table,
    balancer: Option<Balancer>,
    /// In the order of arrival.
    waiters: Vec<Waiter>,
    next_ticket: u64,
    /// What was refused last, per kind: where quota is short.
    short: [u64; KINDS],
    rebalancer: Option<Thread>,
}

/// In force until something else is asked for.
const DEFAULT: Config = Config {
    measure: Measure::Count,
    placement: Placement::LeastLoaded,
    max_resources: config::RESOURCES.0,
    monitoring: false,
    optimization: false,
};

static MANAGER: Mutex<Manager> = Mutex::new(Manager {
    phase: Phase::Uninitialised,
    config: DEFAULT,
    table: Table::new(),
    balancer: None,
    waiters: Vec::new(),
    next_ticket: 0,
    short: [0; KINDS],
    rebalancer: None,
});
/// Counts changes that may let a waiter go on; they sleep on it, and so does the rebalancer.
static CHANGES: AtomicU32 = AtomicU32::new(0);

fn changed() {
    CHANGES.fetch_add(1, Ordering::SeqCst);
    futex_wake(&CHANGES, i32::MAX);
}

/// Where resource management stands.
pub fn phase() -> Phase {
    MANAGER.lock().phase
}

/// `initialize_resource_management`.
pub fn start(config: &Config) -> Result<(), Error> {
    let mut manager = MANAGER.lock();
    manager.phase.may_start(NAME)?;
    if config.measure == Measure::Custom && manager.balancer.is_none() {
        return Err(fail!(InvalidArgument, "MANAGE_CUSTOM has nothing to decide by: call qmem_resource_set_balancer first"));
    }
    crate::config::load()?;
    manager.config = *config;
    manager.table.begin(config.max_resources, config.monitoring);
    if config.optimization {
        manager.rebalancer = Some(Thread::spawn(c"qmem-balance", rebalance_body, 0)?);
    }
    manager.phase = Phase::Running;
    Ok(())
}

/// Balance by count, without history or rebalancing: what a config of zeros says.
pub fn start_with_defaults() -> Result<(), Error> {
    start(&DEFAULT)
}

/// `stop_resource_management`: nothing new; whoever waits is told so, and what is held can be given back.
pub fn stop() -> Result<(), Error> {
    let mut manager = MANAGER.lock();
    if !manager.phase.may_stop(NAME)? {
        return Ok(());
    }
    manager.phase = Phase::Stopped;
    let rebalancer = manager.rebalancer.take();
    drop(manager);
    changed();
    if let Some(thread) = rebalancer {
        thread.join();
    }
    Ok(())
}

/// `cleanup_management_resources`: forgets every resource; those that are still held are reported.
pub fn clean() -> Result<(), Error> {
    let mut manager = MANAGER.lock();
    if !manager.phase.may_clean(NAME)? {
        return Ok(());
    }
    let (resources, held) = manager.table.clear();
    manager.balancer = None;
    manager.short = [0; KINDS];
    manager.phase = Phase::Cleaned;
    drop(manager);
    if resources > 0 {
        let leak = fail!(NotFound, "leak: {resources} resources were cleaned up while {held} requests still held parts of them");
        output::line(format_args!("qmem: {leak}"));
        let _ = error::dispatch(&Failure { class: Class::Leak, error: &leak, told: true, again: None }); // nothing to retry
    }
    Ok(())
}

/// `qmem_resource_set_balancer`; None takes it away.
pub fn set_balancer(function: Option<BalancerFn>, user: *mut c_void) -> Result<(), Error> {
    let mut manager = MANAGER.lock();
    if function.is_none() && manager.phase == Phase::Running && manager.config.measure == Measure::Custom {
        return Err(fail!(Busy, "{NAME} runs with MANAGE_CUSTOM and needs its balancer: stop it first"));
    }
    manager.balancer = function.map(|function| Balancer { function, user });
    Ok(())
}

impl Manager {
    fn must_run(&self) -> Result<(), Error> {
        match self.phase {
            Phase::Running => Ok(()),
            Phase::Stopped => Err(fail!(NotInitialized, "{NAME} is stopped and grants nothing new")),
            _ => Err(fail!(NotInitialized, "{NAME} does not run: call initialize_resource_management first")),
        }
    }

    fn is_next(&self, ticket: u64, kind: usize) -> bool {
        !self.waiters.iter().any(|waiter| waiter.kind == kind && waiter.ticket < ticket)
    }

    fn leave(&mut self, ticket: u64) {
        self.waiters.retain(|waiter| waiter.ticket != ticket);
    }
}

/// `qmem_resource_register`.
pub fn register(kind: usize, name: &str, capacity: u64, node: i32) -> Result<Handle, Error> {
    if capacity == 0 {
        return Err(fail!(InvalidArgument, "capacity = 0: a resource has something to give"));
    }
    let nodes = topology::machine().nodes();
    if node != -1 && !nodes.contains(&node) {
        return Err(fail!(InvalidArgument, "numa_node = {node}: this machine has the nodes {nodes:?} (-1: any)"));
    }
    let mut manager = MANAGER.lock();
    manager.must_run()?;
    let handle = manager.table.insert(kind, name, capacity, node)?;
    drop(manager);
    changed();
    Ok(handle)
}

/// `qmem_resource_unregister`.
pub fn unregister(handle: Handle) -> Result<(), Error> {
    MANAGER.lock().table.remove(handle)
}

/// `qmem_resource_usage`.
pub fn usage(handle: Handle) -> Result<Usage, Error> {
    MANAGER.lock().table.usage(handle)
}

/// `qmem_resource_history`: samples from the oldest on into `room`; how many there are.
pub fn history(handle: Handle, room: &mut [Sample]) -> Result<usize, Error> {
    MANAGER.lock().table.history(handle, room)
}

/// Calls `f` with kind, name and usage of every resource.
pub fn for_each(f: &mut dyn FnMut(usize, &str, Usage)) {
    MANAGER.lock().table.for_each(f);
}

/// `qmem_resource_release`.
pub fn release(handle: Handle, amount: u64) -> Result<(), Error> {
    MANAGER.lock().table.give_back(handle, amount)?;
    changed();
    Ok(())
}

/// `qmem_resource_acquire`: `amount` of one resource of that kind, within `timeout_ms` (u32::MAX: without limit).
pub fn acquire(kind: usize, amount: u64, timeout_ms: u32) -> Result<Handle, Error> {
    let deadline = clock::monotonic().saturating_add(u64::from(timeout_ms) * 1_000_000);
    let mut manager = MANAGER.lock();
    let ticket = manager.next_ticket;
    manager.next_ticket += 1;
    loop {
        let seen = CHANGES.load(Ordering::SeqCst);
        let turn = manager.must_run().and_then(|()| manager.table.possible(kind, amount));
        if let Err(error) = turn {
            manager.leave(ticket);
            if error.status == Status::Limit {
                manager.short[kind] = amount;
            }
            drop(manager);
            changed(); // those behind
            return Err(error);
        }
        if manager.is_next(ticket, kind) {
            let (again, chosen) = choose(manager, kind, amount);
            manager = again;
            if let Some(handle) = chosen {
                manager.leave(ticket);
                drop(manager);
                changed();
                return Ok(handle);
            }
        }
        let now = clock::monotonic();
        if timeout_ms != u32::MAX && now >= deadline {
            manager.leave(ticket);
            manager.short[kind] = amount;
            let free = manager.table.free(kind);
            drop(manager);
            changed();
            return Err(fail!(
                Timeout,
                "{amount} of a {} resource were not to be had within {timeout_ms} ms: {free} are free in all, in none of them enough",
                table::kind_name(kind)
            ));
        }
        if !manager.waiters.iter().any(|waiter| waiter.ticket == ticket) {
            manager.waiters.push(Waiter { ticket, kind, amount });
        }
        drop(manager);
        let left = if timeout_ms == u32::MAX { u32::MAX } else { ((deadline - now) / 1_000_000).clamp(1, 1 << 30) as u32 };
        futex_wait_for(&CHANGES, seen, left);
        manager = MANAGER.lock();
    }
}

type Locked = crate::sync::Guard<'static, Manager>;

/// Takes the amount from whichever resource it is the turn of. The program's balancer is asked without the lock, and its answer
/// checked under it.
fn choose(mut manager: Locked, kind: usize, amount: u64) -> (Locked, Option<Handle>) {
    let Config { measure, placement, .. } = manager.config;
    let (Measure::Custom, Some(Balancer { function, user })) = (measure, manager.balancer) else {
        let chosen = manager.table.choose(kind, amount, measure, placement, topology::here());
        return (manager, chosen);
    };
    let candidates = manager.table.candidates(kind, amount);
    if candidates.is_empty() {
        return (manager, None);
    }
    drop(manager);
    // SAFETY: the program registered this function for exactly this call; the candidates outlive it.
    let at = unsafe { function(candidates.as_ptr(), candidates.len(), amount, user) };
    let mut manager = MANAGER.lock();
    let chosen = candidates.get(at).and_then(|candidate| manager.table.take(candidate.resource, amount));
    (manager, chosen)
}

/// `reallocate_resources`: moves free quota to where a request was refused last or waits; where none is short, by right and use.
pub fn reallocate() -> Result<(), Error> {
    let mut manager = MANAGER.lock();
    manager.must_run()?;
    let mut unmet = None;
    for kind in 0..KINDS {
        let waiting = manager.waiters.iter().find(|waiter| waiter.kind == kind).map(|waiter| waiter.amount);
        match waiting.unwrap_or(manager.short[kind]) {
            0 => manager.table.spread(kind),
            amount if manager.table.gather(kind, amount) => manager.short[kind] = 0,
            amount => unmet = Some((kind, amount, manager.table.free(kind))),
        }
    }
    drop(manager);
    events::note(Event::Rebalance, 0, 0);
    changed();
    match unmet {
        None => Ok(()),
        Some((kind, amount, free)) => Err(fail!(
            Limit,
            "{amount} of a {} resource are wanted and {free} are free in all: release some or register more",
            table::kind_name(kind)
        )),
    }
}

/// The background rebalancing: for those who wait at once, else gently.
fn rebalance_body(_: usize) {
    let mut last = 0;
    loop {
        let seen = CHANGES.load(Ordering::SeqCst);
        let mut manager = MANAGER.lock();
        if manager.phase == Phase::Stopped {
            return;
        }
        let mut moved = false;
        for kind in 0..KINDS {
            let waiting = manager.waiters.iter().find(|waiter| waiter.kind == kind).map(|waiter| waiter.amount);
            moved |= waiting.is_some_and(|amount| manager.table.gather(kind, amount));
        }
        let now = clock::monotonic();
        if now.saturating_sub(last) >= config::REBALANCE_MS.get() as u64 * 1_000_000 {
            last = now;
            manager.table.remember_use();
            for kind in 0..KINDS {
                if !manager.waiters.iter().any(|waiter| waiter.kind == kind) {
                    manager.table.spread(kind);
                }
            }
        }
        drop(manager);
        if moved {
            changed();
        }
        futex_wait_for(&CHANGES, if moved { CHANGES.load(Ordering::SeqCst) } else { seen }, config::REBALANCE_MS.get() as u32);
    }
}

/// A resource's name is at most this long.
pub type Name = Text<{ table::NAME }>;

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    MANAGER.lock_for_fork();
}

/// In the child nobody waits, and the rebalancing thread is not there.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { MANAGER.unlock_after_fork() };
    if in_child {
        let mut manager = MANAGER.lock();
        manager.waiters.clear();
        manager.rebalancer = None;
    }
}
