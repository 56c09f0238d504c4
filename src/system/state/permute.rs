//! Moving a state's amplitudes: two bits of the index trade places, inside chunks or between them, and the way back to logical order.
//! Called by `mod`. An order is entered when all that it says has been moved. A failure before anything moved (no room for a pin) changes
//! nothing; one in the middle leaves a state that no order describes, and every later call says so.

use super::visit::{Chunk, Unit};
use super::{Order, State};
use crate::error::Error;
use crate::fail;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Amplitudes are moved by runs of at least so many bytes where they are contiguous.
#[derive(Clone, Copy)]
struct Amplitudes {
    start: *mut u8,
    width: usize,
}

impl Amplitudes {
    /// Swaps runs of `count` amplitudes.
    ///
    /// # Safety
    /// Both runs lie in chunks that the caller has pinned and alone works on, and do not overlap.
    unsafe fn swap(self, at: usize, other: Self, there: usize, count: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let (one, two) = (self.start.add(at * self.width), other.start.add(there * self.width));
            core::ptr::swap_nonoverlapping(one, two, count * self.width);
        }
    }
}

impl State {
    fn amplitudes(&self, start: *mut u8) -> Amplitudes {
        Amplitudes { start, width: self.width }
    }

    /// Two bits of the physical index trade places. Data moves unless both are outside of chunks.
    pub(super) fn swap_bits(&self, x: usize, y: usize) -> Result<(), Error> {
        let (low, high) = (x.min(y), x.max(y));
        let (mut order, local) = (self.order(), self.local as usize);
        if low == high {
            return Ok(());
        }
        if low >= local {
            order.trade(low, high);
            order.place.swap(low, high);
            self.set_order(order);
            return Ok(());
        }
        if high < local {
            self.rearrange(&order, self.all(), &|chunk| self.swap_inside(chunk.a, low, high))?;
        } else {
            self.rearrange(&order, self.pairs(high - local), &|chunk| self.swap_across(chunk, low))?;
        }
        order.trade(low, high);
        self.set_order(order);
        Ok(())
    }

    /// Visits units to move their amplitudes.
    fn rearrange(&self, order: &Order, units: Vec<Unit>, act: &(dyn Fn(&Chunk) + Sync)) -> Result<(), Error> {
        let begun = AtomicBool::new(false);
        let visited = self.visit(order, units, &|chunk| {
            begun.store(true, Relaxed);
            act(chunk);
            Ok(())
        });
        visited.inspect_err(|_| self.broken.store(begun.into_inner(), Relaxed))
    }

    fn all(&self) -> Vec<Unit> {
        (0..self.chunks()).map(|chunk| (chunk, None)).collect()
    }

    /// Bits `low` and `high` of the place inside one chunk.
    fn swap_inside(&self, chunk: *mut u8, low: usize, high: usize) {
        let (whole, run, far) = (1usize << self.local, 1usize << low, 1usize << high);
        let amplitudes = self.amplitudes(chunk);
        for outer in (0..whole).step_by(2 * far) {
            for at in (outer..outer + far).step_by(2 * run) {
                // SAFETY: bit `low` set and `high` not, against the opposite: two runs of this chunk, which the visit has pinned.
                unsafe { amplitudes.swap(at + run, amplitudes, at + far, run) };
            }
        }
    }

    /// Bit `low` of the place against the bit that tells the two chunks apart.
    fn swap_across(&self, chunk: &Chunk, low: usize) {
        let Some(b) = chunk.b else { return };
        let (whole, run) = (1usize << self.local, 1usize << low);
        let (one, two) = (self.amplitudes(chunk.a), self.amplitudes(b));
        for at in (0..whole).step_by(2 * run) {
            // SAFETY: runs of two chunks, which the visit has pinned.
            unsafe { one.swap(at + run, two, at, run) };
        }
    }

    /// Logical order everywhere: first what must cross from chunk to chunk, then what is inside, then chunks as a whole.
    pub(super) fn straighten(&self) -> Result<(), Error> {
        let local = self.local as usize;
        while let Some(low) = (0..local).find(|bit| usize::from(self.order().qubit[*bit]) >= local) {
            // As many qubits that belong inside are outside as the other way round.
            let outside = (local..self.qubits as usize).find(|bit| usize::from(self.order().qubit[*bit]) < local);
            self.swap_bits(low, outside.ok_or_else(|| fail!(Internal, "an order of qubits that is none"))?)?;
        }
        self.straighten_inside()?;
        // Outside of chunks qubits trade places for nothing; what is left is where the chunks lie.
        let mut order = self.order();
        for bit in local..self.qubits as usize {
            let other = order.bit_of(bit as u32);
            order.trade(bit, other);
            order.place.swap(bit, other);
        }
        self.set_order(order);
        self.straighten_chunks(&order)
    }

    /// All exchanges inside chunks in one visit.
    fn straighten_inside(&self) -> Result<(), Error> {
        let mut order = self.order();
        let mut swaps = Vec::new();
        for bit in 0..self.local as usize {
            let other = order.bit_of(bit as u32);
            if other != bit {
                order.trade(bit, other);
                swaps.push((bit.min(other), bit.max(other)));
            }
        }
        if swaps.is_empty() {
            return Ok(());
        }
        self.rearrange(&self.order(), self.all(), &|chunk| {
            swaps.iter().for_each(|(low, high)| self.swap_inside(chunk.a, *low, *high));
        })?;
        self.set_order(order);
        Ok(())
    }

    /// Puts every chunk where its number says, by exchanges of two bits of the address.
    fn straighten_chunks(&self, order: &Order) -> Result<(), Error> {
        let local = self.local as usize;
        let now = Cell::new(*order);
        for bit in local..self.qubits as usize {
            let mut next = now.get();
            let Some(other) = next.place.iter().position(|place| usize::from(*place) == bit).filter(|other| *other != bit) else {
                continue;
            };
            // Chunks whose two bits differ change places; the others lie right already, as far as these two go.
            let (x, y) = (1u64 << (bit - local), 1u64 << (other - local));
            let units =
                (0..self.chunks()).filter(|chunk| chunk & x != 0 && chunk & y == 0).map(|chunk| (chunk, Some(chunk ^ x ^ y)));
            self.rearrange(&now.get(), units.collect(), &|chunk| {
                if let Some(b) = chunk.b {
                    // SAFETY: two chunks, which the visit has pinned.
                    unsafe { self.amplitudes(chunk.a).swap(0, self.amplitudes(b), 0, chunk.amplitudes) };
                }
            })?;
            next.place.swap(bit, other);
            now.set(next);
            self.set_order(next);
        }
        Ok(())
    }
}
