//! Visiting chunks: each once, pinned while it is visited, with the next ones on their way, from several threads. Those that are in
//! memory come first, so that a pass begins with what the one before left there. Called by `mod` and `permute`.

use super::{Order, State};
use crate::config::STATE_THREADS;
use crate::error::{Error, Status};
use crate::fail;
use crate::monitor::account;
use crate::os::worker;
use crate::paged;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Units that are announced before they are visited, beyond those that threads are at.
const AHEAD: usize = 4;
/// Microseconds that a thread waits for another one's pins.
const WAIT: i64 = 100;

/// One chunk, or two: what a visitor sees.
pub struct Chunk<'a> {
    /// Its amplitudes.
    pub a: *mut u8,
    /// Those of the other one of a pair.
    pub b: Option<*mut u8>,
    /// The physical index of the first amplitude of each.
    pub first: (u64, u64),
    /// Of each.
    pub amplitudes: usize,
    /// By bit of the physical index: the qubit.
    pub qubits: &'a [u8; 64],
}

/// Numbers of chunks in the physical index.
pub type Unit = (u64, Option<u64>);

/// What the threads of one visit share.
struct Visit<'a> {
    state: &'a State,
    order: &'a Order,
    units: Vec<Unit>,
    act: &'a (dyn Fn(&Chunk) -> Result<(), Error> + Sync),
    threads: usize,
    next: AtomicUsize,
    /// Units that are pinned now.
    held: AtomicUsize,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl State {
    /// Calls `act` for every unit; the first failure ends it.
    pub(super) fn visit(
        &self,
        order: &Order,
        mut units: Vec<Unit>,
        act: &(dyn Fn(&Chunk) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        if self.paged {
            // Stable: within both parts the order stays, which read-ahead likes.
            units.sort_by_key(|(a, _)| !paged::is_resident(self.address(order, *a)));
        }
        let threads = self.threads(units.len());
        let visit = Visit {
            state: self,
            order,
            units,
            act,
            threads,
            next: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let start = || {
                    worker::block_signals();
                    visit.work();
                };
                // As many as the system gives.
                if std::thread::Builder::new().name("qmem-state".into()).spawn_scoped(scope, start).is_err() {
                    break;
                }
            }
            visit.work();
        });
        visit.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// As many as there are cores, units, and room for: each pins two chunks, and as much again is on its way.
    fn threads(&self, units: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let room = if self.paged { account::budget() / 8 / (4 * self.chunk_bytes()) } else { usize::MAX };
        cores.min(units).min(room).clamp(1, STATE_THREADS)
    }
}

impl Visit<'_> {
    fn work(&self) {
        while !self.stop.load(Relaxed) {
            let at = self.next.fetch_add(1, Relaxed);
            let Some(unit) = self.units.get(at) else { return };
            // A panic is a failure of the whole visit.
            let one = std::panic::AssertUnwindSafe(|| self.one(at, *unit));
            let done = std::panic::catch_unwind(one).unwrap_or_else(|payload| {
                core::mem::forget(payload); // its destructor might panic again
                Err(fail!(Internal, "a visit of chunks ended in a panic"))
            });
            if let Err(error) = done {
                self.stop.store(true, Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn one(&self, at: usize, (a, b): Unit) -> Result<(), Error> {
        let state = self.state;
        let (first, second) = (state.address(self.order, a), b.map(|b| state.address(self.order, b)));
        self.announce(at + self.threads - 1 + if at == 0 { 0 } else { AHEAD }, if at == 0 { AHEAD } else { 1 });
        self.pin(first, second)?;
        let chunk = Chunk {
            a: first,
            b: second,
            first: (a << state.local, b.unwrap_or(0) << state.local),
            amplitudes: 1 << state.local,
            qubits: &self.order.qubit,
        };
        let done = (self.act)(&chunk);
        self.unpin(first, second);
        done
    }

    /// Has units brought into memory that are visited soon.
    fn announce(&self, from: usize, count: usize) {
        let bytes = self.state.chunk_bytes();
        let soon = self.units.iter().skip(from + 1).take(count).filter(|_| self.state.paged);
        for chunk in soon.flat_map(|(a, b)| [Some(*a), *b]).flatten() {
            let _ = paged::prefetch(self.state.address(self.order, chunk), bytes); // a hint
        }
    }

    /// Pins a unit. Where there is no room it waits for another thread's; alone, that is a failure.
    fn pin(&self, a: *mut u8, b: Option<*mut u8>) -> Result<(), Error> {
        if !self.state.paged {
            return Ok(());
        }
        let bytes = self.state.chunk_bytes();
        loop {
            // Counted before, so that of two that find no room one at least sees the other.
            let alone = self.held.fetch_add(1, Relaxed) == 0;
            let pinned = paged::pin(a, bytes).and_then(|()| match b {
                Some(b) => paged::pin(b, bytes).inspect_err(|_| drop(paged::unpin(a, bytes))),
                None => Ok(()),
            });
            match pinned {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.held.fetch_sub(1, Relaxed);
                    if error.status != Status::Limit || alone || self.stop.load(Relaxed) {
                        return Err(error);
                    }
                    worker::pause(WAIT);
                }
            }
        }
    }

    fn unpin(&self, a: *mut u8, b: Option<*mut u8>) {
        if self.state.paged {
            let bytes = self.state.chunk_bytes();
            for chunk in [Some(a), b].into_iter().flatten() {
                let _ = paged::unpin(chunk, bytes); // pinned above
            }
            self.held.fetch_sub(1, Relaxed);
        }
    }
}
