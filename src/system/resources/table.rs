//! The resources themselves: a table whose entries are found by handles that tell when they are out of date, and what is done with
//! one or with all of a kind. Called by the manager, under its lock.
#![forbid(unsafe_code)]

use super::balance::{self, Load, Measure, Placement};
use super::{Candidate, Name};
use crate::error::Error;
use crate::fail;
use crate::os::clock;
use crate::topology;
use core::fmt::Write;

/// Kinds of resources; `qmem_resource_kind_t`.
pub const KINDS: usize = 5;
/// Longest name.
pub const NAME: usize = 63;
/// Samples kept of each.
const HISTORY: usize = 256;
/// How much of the recent use a new look replaces.
const FRESH: f64 = 0.25;

/// A kind in words.
pub fn kind_name(kind: usize) -> &'static str {
    ["memory", "cache", "GPU", "network", "custom"].get(kind).copied().unwrap_or("unknown")
}

/// Index and generation of an entry, as C's opaque pointer: never 0, never dereferenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Handle(pub usize);

const INDEX_BITS: u32 = 24;
const SHIFT: u32 = 3;

impl Handle {
    fn new(index: usize, generation: u32) -> Self {
        Self(((generation as usize) << INDEX_BITS | (index + 1)) << SHIFT)
    }

    fn index(self) -> usize {
        (self.0 >> SHIFT & ((1 << INDEX_BITS) - 1)).wrapping_sub(1)
    }
}

/// What is known of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: u64,
    /// What there is.
    pub capacity: u64,
    /// The most that was in use.
    pub peak: u64,
    /// Requests that are held, and that were granted ever.
    pub holds: u64,
    /// As above.
    pub granted: u64,
}

/// One entry of a history.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// In use.
    pub used: u64,
    /// What there was.
    pub capacity: u64,
}

struct Entry {
    live: bool,
    generation: u32,
    kind: usize,
    name: Name,
    node: i32,
    /// Capacity as registered; `usage.capacity` is what it has now.
    registered: u64,
    usage: Usage,
    /// Average of what was in use lately.
    recent: f64,
    history: Vec<Sample>,
    /// Where the next sample goes once the history is full.
    oldest: usize,
}

/// All resources.
pub struct Table {
    entries: Vec<Entry>,
    live: usize,
    most: usize,
    monitoring: bool,
    /// Per kind, the entry that got the last request.
    last: [usize; KINDS],
}

impl Entry {
    fn endpoint(&self) -> &str {
        let name = self.name.as_str();
        let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    fn note(&mut self) {
        let sample = Sample { time: clock::wall(), used: self.usage.used, capacity: self.usage.capacity };
        if self.history.len() < HISTORY {
            self.history.push(sample);
        } else if let Some(place) = self.history.get_mut(self.oldest) {
            *place = sample;
            self.oldest = (self.oldest + 1) % HISTORY;
        }
    }
}

fn stale(handle: Handle) -> Error {
    fail!(NotFound, "{:#x} is no registered resource: it was never one, or was unregistered", handle.0)
}

impl Table {
    /// Nothing registered, and no room.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), live: 0, most: 0, monitoring: false, last: [usize::MAX; KINDS] }
    }

    /// Room for so many.
    pub fn begin(&mut self, most: usize, monitoring: bool) {
        self.most = most;
        self.monitoring = monitoring;
        self.last = [usize::MAX; KINDS];
    }

    /// Forgets all: how many were still held, and by how many requests.
    pub fn clear(&mut self) -> (usize, u64) {
        let held = self.entries.iter().filter(|entry| entry.live && entry.usage.used > 0);
        let found = held.fold((0, 0), |(n, holds), entry| (n + 1, holds + entry.usage.holds));
        for entry in self.entries.iter_mut().filter(|entry| entry.live) {
            entry.live = false;
            entry.generation = entry.generation.wrapping_add(1);
        }
        self.live = 0;
        found
    }

    /// A new resource.
    pub fn insert(&mut self, kind: usize, name: &str, capacity: u64, node: i32) -> Result<Handle, Error> {
        if self.live >= self.most {
            return Err(fail!(
                Limit,
                "{} resources are registered, which is max_resources: unregister one or raise it",
                self.live
            ));
        }
        let mut text = Name::new();
        let _ = text.write_str(name); // its length has been checked
        let index = self.entries.iter().position(|entry| !entry.live).unwrap_or(self.entries.len());
        let generation = self.entries.get(index).map_or(1, |entry| entry.generation.max(1));
        let entry = Entry {
            live: true,
            generation,
            kind,
            name: text,
            node,
            registered: capacity,
            usage: Usage { capacity, ..Usage::default() },
            recent: 0.0,
            history: Vec::new(),
            oldest: 0,
        };
        match self.entries.get_mut(index) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.live += 1;
        Ok(Handle::new(index, generation))
    }

    fn entry(&mut self, handle: Handle) -> Result<&mut Entry, Error> {
        let index = handle.index();
        let entry = self.entries.get_mut(index).filter(|e| e.live && Handle::new(index, e.generation) == handle);
        entry.ok_or_else(|| stale(handle))
    }

    /// Takes a resource out that nobody holds.
    pub fn remove(&mut self, handle: Handle) -> Result<(), Error> {
        let entry = self.entry(handle)?;
        if entry.usage.used > 0 {
            return Err(fail!(
                Busy,
                "{} of the resource \"{}\" are in use by {} requests: release them first",
                entry.usage.used,
                entry.name,
                entry.usage.holds
            ));
        }
        entry.live = false;
        entry.generation = entry.generation.wrapping_add(1);
        self.live -= 1;
        Ok(())
    }

    /// What is known of one.
    pub fn usage(&mut self, handle: Handle) -> Result<Usage, Error> {
        self.entry(handle).map(|entry| entry.usage)
    }

    /// Its samples, oldest first, as many as there is room for; how many there are.
    pub fn history(&mut self, handle: Handle, room: &mut [Sample]) -> Result<usize, Error> {
        let entry = self.entry(handle)?;
        let (newer, older) = entry.history.split_at(entry.oldest);
        for (to, from) in room.iter_mut().zip(older.iter().chain(newer)) {
            *to = *from;
        }
        Ok(entry.history.len())
    }

    /// Calls `f` with every one.
    pub fn for_each(&self, f: &mut dyn FnMut(usize, &str, Usage)) {
        for entry in self.entries.iter().filter(|entry| entry.live) {
            f(entry.kind, entry.name.as_str(), entry.usage);
        }
    }

    /// The entries of a kind, in the order of their registration's places.
    fn of(&self, kind: usize) -> Vec<usize> {
        (0..self.entries.len()).filter(|i| self.entries[*i].live && self.entries[*i].kind == kind).collect()
    }

    fn loads(&self, of: &[usize], here: i32) -> Vec<Load> {
        let nodes = topology::machine();
        let load = |i: &usize| {
            let entry = &self.entries[*i];
            let same = self.entries.iter().filter(|other| other.live && other.endpoint() == entry.endpoint());
            Load {
                used: entry.usage.used,
                capacity: entry.usage.capacity,
                holds: entry.usage.holds,
                at_endpoint: same.map(|other| other.usage.holds).sum(),
                distance: nodes.distance(here, entry.node),
            }
        };
        of.iter().map(load).collect()
    }

    /// Could the amount be granted one day, as quotas are now?
    pub fn possible(&self, kind: usize, amount: u64) -> Result<(), Error> {
        let of = self.of(kind);
        let Some(most) = of.iter().map(|i| self.entries[*i].usage.capacity).max() else {
            return Err(fail!(NotFound, "no {} resource is registered", kind_name(kind)));
        };
        if amount > most {
            let all: u64 = of.iter().map(|i| self.entries[*i].usage.capacity).sum();
            return Err(fail!(
                Limit,
                "{amount} of one {} resource are more than any has: the largest has {most}, all together {all}",
                kind_name(kind)
            ));
        }
        Ok(())
    }

    /// What a kind has free, all together.
    pub fn free(&self, kind: usize) -> u64 {
        self.loads(&self.of(kind), 0).iter().map(Load::free).sum()
    }

    /// Those that have the amount free, for the program to choose from.
    pub fn candidates(&self, kind: usize, amount: u64) -> Vec<Candidate> {
        let candidate = |i: usize| {
            let entry = &self.entries[i];
            let Usage { used, capacity, holds, .. } = entry.usage;
            let resource = Handle::new(i, entry.generation);
            (capacity.saturating_sub(used) >= amount).then_some(Candidate { resource, used, capacity, holds, node: entry.node })
        };
        self.of(kind).into_iter().filter_map(candidate).collect()
    }

    /// Takes the amount from the resource whose turn it is.
    pub fn choose(&mut self, kind: usize, amount: u64, measure: Measure, placement: Placement, here: i32) -> Option<Handle> {
        let of = self.of(kind);
        let after = of.iter().position(|i| *i == self.last[kind]).unwrap_or(usize::MAX);
        let at = balance::choose(&self.loads(&of, here), amount, measure, placement, after)?;
        let index = of[at];
        self.last[kind] = index;
        self.take(Handle::new(index, self.entries[index].generation), amount)
    }

    /// Takes the amount from this one, if it has it.
    pub fn take(&mut self, handle: Handle, amount: u64) -> Option<Handle> {
        let monitoring = self.monitoring;
        let entry = self.entry(handle).ok()?;
        let usage = &mut entry.usage;
        usage.used = usage.used.checked_add(amount).filter(|sum| *sum <= usage.capacity)?;
        usage.peak = usage.peak.max(usage.used);
        usage.holds += 1;
        usage.granted += 1;
        if monitoring {
            entry.note();
        }
        Some(handle)
    }

    /// Ends one request's hold.
    pub fn give_back(&mut self, handle: Handle, amount: u64) -> Result<(), Error> {
        let monitoring = self.monitoring;
        let entry = self.entry(handle)?;
        let Usage { used, holds, .. } = entry.usage;
        if amount > used || holds == 0 {
            return Err(fail!(
                InvalidArgument,
                "{amount} of the resource \"{}\" cannot be released: {used} are in use by {holds} requests",
                entry.name
            ));
        }
        entry.usage.used -= amount;
        // The last request may give back in parts.
        entry.usage.holds = if entry.usage.used == 0 { 0 } else { (holds - 1).max(1) };
        if monitoring {
            entry.note();
        }
        Ok(())
    }

    fn set_capacities(&mut self, of: &[usize], capacities: &[u64]) {
        let monitoring = self.monitoring;
        for (i, capacity) in of.iter().zip(capacities) {
            if let Some(entry) = self.entries.get_mut(*i).filter(|entry| entry.usage.capacity != *capacity) {
                entry.usage.capacity = *capacity;
                if monitoring {
                    entry.note();
                }
            }
        }
    }

    /// Moves free quota so that the amount fits into one resource of the kind. False if there is not enough.
    pub fn gather(&mut self, kind: usize, amount: u64) -> bool {
        let of = self.of(kind);
        let Some(capacities) = balance::gather(&self.loads(&of, 0), amount) else { return false };
        self.set_capacities(&of, &capacities);
        true
    }

    /// Moves free quota by right and recent use; small moves are not worth it.
    pub fn spread(&mut self, kind: usize) {
        let of = self.of(kind);
        let loads = self.loads(&of, 0);
        let registered: Vec<u64> = of.iter().map(|i| self.entries[*i].registered).collect();
        let recent: Vec<f64> = of.iter().map(|i| self.entries[*i].recent).collect();
        let capacities = balance::spread(&loads, &registered, &recent);
        let far = |(load, now): (&Load, &u64)| load.capacity.abs_diff(*now) > load.capacity / 16;
        if loads.iter().zip(&capacities).any(far) {
            self.set_capacities(&of, &capacities);
        }
    }

    /// Takes what is in use now into each one's average.
    pub fn remember_use(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.live) {
            entry.recent += FRESH * (entry.usage.used as f64 - entry.recent);
        }
    }
}
