//! Visiting groups: 2^k chunks at a time that differ in k qubits, all of them in memory, while the next group is on its way. The caller's own
//! thread calls the program, which shares a group's work out as it likes; one more thread pins ahead. Groups of which most is in memory
//! come first. Called by `mod`.

use super::{Order, State, answered};
use crate::error::{Error, Status};
use crate::fail;
use crate::monitor::account;
use crate::os::worker;
use crate::paged;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Chunks that are announced before the one that is waited for.
const AHEAD: usize = 8;
/// Microseconds between looks whether the group before has been given back.
const WAIT: i64 = 100;
/// Groups that are in memory at a time take this part of the budget together: the rest is for what leaves and for what is compressed.
const SHARE: usize = 2;

/// What a program sees of a group.
pub struct Group<'a> {
    /// Bit j of the position is the j-th qubit that was asked for.
    pub chunks: &'a [*mut u8],
    /// The physical index of each chunk's first amplitude.
    pub first: &'a [u64],
    /// Of each chunk.
    pub amplitudes: usize,
    /// By bit of the physical index: the qubit.
    pub qubits: &'a [u8; 64],
}

/// One run through all groups.
struct Groups<'a> {
    state: &'a State,
    order: &'a Order,
    /// The lowest chunk of each.
    lowest: Vec<u64>,
    /// What is added to the lowest for the others; 0 first.
    others: Vec<u64>,
    /// Groups that are pinned, or about to be.
    held: AtomicUsize,
    stop: AtomicBool,
}

impl State {
    /// Qubits outside of chunks that a group may spread over, so that two groups fit beside everything else.
    pub fn group_qubits(&self) -> u32 {
        let outside = self.qubits - self.local;
        if !self.paged {
            return outside;
        }
        (account::budget() / (2 * SHARE) / self.chunk_bytes()).max(1).ilog2().min(outside)
    }

    /// Calls `act` for every group of chunks that differ in these qubits only.
    pub fn for_each_group(&self, qubits: &[u32], act: &mut dyn FnMut(&Group) -> Status) -> Result<(), Error> {
        qubits.iter().try_for_each(|qubit| self.check_qubit(*qubit, "a qubit of the group"))?;
        let _working = self.work()?;
        let order = self.order();
        let mut mask = 0;
        let mut bits = Vec::with_capacity(qubits.len());
        for qubit in qubits {
            let bit = self.outside(&order, *qubit)?;
            if mask >> bit & 1 == 1 {
                return Err(fail!(InvalidArgument, "qubit {qubit} is twice among the group's"));
            }
            mask |= 1u64 << bit;
            bits.push(bit);
        }
        let spread = |j: u64| bits.iter().enumerate().map(|(at, bit)| (j >> at & 1) << bit).sum::<u64>();
        let groups = Groups {
            state: self,
            order: &order,
            lowest: (0..self.chunks()).filter(|chunk| chunk & mask == 0).collect(),
            others: (0..1u64 << bits.len()).map(spread).collect(),
            held: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        };
        groups.visit(act)
    }
}

impl Groups<'_> {
    fn address(&self, chunk: u64) -> *mut u8 {
        self.state.address(self.order, chunk)
    }

    fn visit(mut self, act: &mut dyn FnMut(&Group) -> Status) -> Result<(), Error> {
        if self.state.paged {
            let mut lowest = core::mem::take(&mut self.lowest);
            // Stable: groups that are there to the same part keep their order.
            lowest.sort_by_cached_key(|low| {
                self.others.iter().filter(|other| !paged::is_resident(self.address(low | **other))).count()
            });
            self.lowest = lowest;
        }
        let groups = &self;
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(0);
            let ahead = std::thread::Builder::new().name("qmem-state".into());
            let ahead = match groups.state.paged && groups.lowest.len() > 1 {
                true => ahead.spawn_scoped(scope, move || {
                    worker::block_signals();
                    groups.bring(&send);
                }),
                false => return groups.one_by_one(act),
            };
            match ahead {
                Ok(_) => groups.receive(receive, act),
                Err(_) => groups.one_by_one(act), // without help, as the system has no thread to give
            }
        })
    }

    /// Pins group after group; each waits here until the program is done with the one before.
    fn bring(&self, send: &SyncSender<Result<(), Error>>) {
        for lowest in &self.lowest {
            let pinned = self.pin(*lowest);
            let (good, told) = (pinned.is_ok(), send.send(pinned).is_ok());
            if good && !told {
                self.unpin(*lowest);
            }
            if !good || !told {
                return;
            }
        }
    }

    /// Shows the program what [`Self::bring`] has pinned.
    fn receive(&self, receive: Receiver<Result<(), Error>>, act: &mut dyn FnMut(&Group) -> Status) -> Result<(), Error> {
        let mut done = Ok(());
        for lowest in &self.lowest {
            let pinned = receive.recv().unwrap_or_else(|_| Err(fail!(Internal, "the thread that brings chunks ended early")));
            done = pinned.and_then(|()| self.show(*lowest, act));
            if done.is_err() {
                break;
            }
        }
        self.stop.store(true, Relaxed);
        done // and nobody receives any more, which ends the other thread
    }

    fn one_by_one(&self, act: &mut dyn FnMut(&Group) -> Status) -> Result<(), Error> {
        self.lowest.iter().try_for_each(|lowest| self.pin(*lowest).and_then(|()| self.show(*lowest, act)))
    }

    /// Calls the program for a group that is pinned, and lets the group go.
    fn show(&self, lowest: u64, act: &mut dyn FnMut(&Group) -> Status) -> Result<(), Error> {
        let chunks: Vec<_> = self.others.iter().map(|other| self.address(lowest | other)).collect();
        let first: Vec<_> = self.others.iter().map(|other| (lowest | other) << self.state.local).collect();
        let group = Group { chunks: &chunks, first: &first, amplitudes: 1 << self.state.local, qubits: &self.order.qubit };
        let done = answered(act(&group));
        self.unpin(lowest);
        done
    }

    /// Pins a group. Where there is no room beside the one that is being shown it waits for that; alone, that is a failure.
    fn pin(&self, lowest: u64) -> Result<(), Error> {
        if !self.state.paged {
            return Ok(());
        }
        let bytes = self.state.chunk_bytes();
        let members = || self.others.iter().map(|other| self.address(lowest | other));
        loop {
            let alone = self.held.fetch_add(1, Relaxed) == 0;
            let mut soon = members();
            let mut announce = |count: usize| soon.by_ref().take(count).for_each(|chunk| drop(paged::prefetch(chunk, bytes))); // a hint
            announce(AHEAD);
            let mut pinned = 0;
            let all: Result<(), Error> = members().try_for_each(|chunk| {
                announce(1);
                paged::pin(chunk, bytes)?;
                pinned += 1;
                Ok(())
            });
            let Err(error) = all else { return Ok(()) };
            members().take(pinned).for_each(|chunk| drop(paged::unpin(chunk, bytes))); // pinned above
            self.held.fetch_sub(1, Relaxed);
            if error.status != Status::Limit || alone || self.stop.load(Relaxed) {
                return Err(error);
            }
            worker::pause(WAIT);
        }
    }

    fn unpin(&self, lowest: u64) {
        if self.state.paged {
            for other in &self.others {
                let _ = paged::unpin(self.address(lowest | other), self.state.chunk_bytes()); // pinned before
            }
            self.held.fetch_sub(1, Relaxed);
        }
    }
}
