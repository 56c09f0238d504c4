//! State vectors by chunk: which qubit is which bit of an amplitude's index, and what that means for the memory. Called by `ffi`.
//!
//! Three orders of amplitudes meet here. The logical index has qubit q as bit q. The physical index, which is what a visit of chunks sees,
//! has qubit `qubit[p]` as bit p; its lower bits are the place inside a chunk, its upper ones the chunk. The address has bit `place[p]` of
//! the chunk's number where the physical index has bit p: so two qubits that are both outside of chunks trade places without a byte moved.
//! Visits are in `visit.rs` and `group.rs`, moves of data in `permute.rs`.

mod group;
mod permute;
mod visit;

pub use group::Group;
pub use visit::Chunk;

use super::memory::{self, Door};
use crate::error::{Error, Status};
use crate::os::vm::HUGE;
use crate::paged::{self, Element, Request};
use crate::registry;
use crate::{config, fail};
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Qubits of a state at most: its bytes must fit a pointer's range.
pub const MAX_QUBITS: u32 = 56;

/// A state vector. One call works on it at a time; a second one is refused.
pub struct State {
    base: *mut u8,
    qubits: u32,
    /// Physical bits inside a chunk.
    local: u32,
    /// Bytes of an amplitude.
    width: usize,
    paged: bool,
    order: Mutex<Order>,
    busy: AtomicBool,
    /// A move of amplitudes stopped half-way: what is there is no state.
    broken: AtomicBool,
}
// SAFETY: the memory is the state's alone, and `busy` lets one call at a time work on it.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

/// Which qubit is where.
#[derive(Clone, Copy)]
pub struct Order {
    /// By bit of the physical index: the qubit.
    qubit: [u8; 64],
    /// By bit of the physical index from `local` on: the bit of the address, in amplitudes.
    place: [u8; 64],
}

impl Order {
    fn plain() -> Self {
        let bits = core::array::from_fn(|bit| bit as u8);
        Self { qubit: bits, place: bits }
    }

    /// The bit of the physical index that a qubit is.
    fn bit_of(&self, qubit: u32) -> usize {
        self.qubit.iter().position(|q| u32::from(*q) == qubit).unwrap_or_default()
    }

    /// Two bits of the physical index trade qubits; where both are outside of chunks, that is all there is to it.
    fn trade(&mut self, x: usize, y: usize) {
        self.qubit.swap(x, y);
    }
}

/// Somebody works on a state.
struct Working<'a>(&'a State);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl State {
    /// A state vector in |0…0>. Small ones lie on the heap, others are paged and may lose what the process's error budget permits.
    pub fn create(qubits: u32, element: Element) -> Result<Self, Error> {
        let width = match element {
            Element::C64 | Element::C128 => element.bytes(),
            Element::F32 | Element::F64 => {
                return Err(fail!(
                    InvalidArgument,
                    "a state's element is QMEM_ELEMENT_C64 or QMEM_ELEMENT_C128, for amplitudes are complex"
                ));
            }
        };
        if !(1..=MAX_QUBITS).contains(&qubits) {
            return Err(fail!(InvalidArgument, "num_qubits = {qubits} is outside 1 to {MAX_QUBITS}"));
        }
        let (size, (tag, _)) = (width << qubits, memory::enter(Door::Process)?);
        let base = match size < config::CHUNK_BOUNDS.0 {
            true => memory::heap_block(tag, size, memory::DEFAULT_ALIGN, true)?,
            false => memory::page(tag, Request { size, element: Some(element), ..memory::request(tag) })?,
        };
        // SAFETY: a fresh zeroed block of at least one amplitude, aligned for it.
        unsafe {
            match element {
                Element::C64 => base.cast::<f32>().write(1.0),
                _ => base.cast::<f64>().write(1.0),
            }
        }
        let local = (HUGE / width).ilog2().min(qubits);
        let paged = paged::find(base).is_some();
        Ok(Self {
            base,
            qubits,
            local,
            width,
            paged,
            order: Mutex::new(Order::plain()),
            busy: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        })
    }

    /// Ends it. Busy, and given back, while a call works on it.
    pub fn destroy(self: Box<Self>) -> Result<(), (Error, Box<Self>)> {
        if self.busy.load(Ordering::Acquire) {
            return Err((fail!(Busy, "the state is being worked on and stays: destroy it when that has ended"), self));
        }
        // Clean-up may have freed it already, as it does with everything that was left.
        let live = registry::find_start(self.base).is_ok_and(|info| info.size == self.width << self.qubits);
        // SAFETY: our own block, and nobody works on it.
        let freed = if live { unsafe { memory::free(self.base) } } else { Ok(()) };
        freed.map_err(|error| (error, self))
    }

    /// Physical bits inside a chunk.
    pub fn local_qubits(&self) -> u32 {
        self.local
    }

    fn order(&self) -> Order {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_order(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = order;
    }

    fn work(&self) -> Result<Working<'_>, Error> {
        match self.busy.swap(true, Ordering::Acquire) {
            false => {
                let working = Working(self);
                if self.broken.load(Ordering::Relaxed) {
                    return Err(fail!(
                        Aborted,
                        "an earlier call failed while it moved the state's amplitudes: half of them are elsewhere, and all that is left is to destroy it"
                    ));
                }
                Ok(working)
            }
            true => Err(fail!(
                Busy,
                "the state is being worked on: a function that visits chunks cannot call for its own state, nor another thread meanwhile"
            )),
        }
    }

    fn check_qubit(&self, qubit: u32, name: &str) -> Result<(), Error> {
        if qubit < self.qubits {
            return Ok(());
        }
        Err(fail!(InvalidArgument, "{name} = {qubit} is outside 0 to {}, the state's qubits", self.qubits - 1))
    }

    fn chunks(&self) -> u64 {
        1 << (self.qubits - self.local)
    }

    fn chunk_bytes(&self) -> usize {
        self.width << self.local
    }

    /// Where a chunk of the physical index lies.
    fn address(&self, order: &Order, chunk: u64) -> *mut u8 {
        let local = self.local as usize;
        let bits = (0..self.qubits as usize - local).filter(|bit| chunk >> bit & 1 == 1);
        let at = bits.map(|bit| 1usize << (usize::from(order.place[local + bit]) - local)).sum::<usize>();
        self.base.wrapping_add(at * self.chunk_bytes())
    }

    /// Calls `act` for every chunk, from several threads.
    pub fn for_each(&self, act: &(dyn Fn(&Chunk) -> Status + Sync)) -> Result<(), Error> {
        let _working = self.work()?;
        let order = self.order();
        let units = (0..self.chunks()).map(|chunk| (chunk, None)).collect();
        self.visit(&order, units, &|chunk| answered(act(chunk)))
    }

    /// Calls `act` for every two chunks that differ in a qubit only.
    pub fn for_each_pair(&self, qubit: u32, act: &(dyn Fn(&Chunk) -> Status + Sync)) -> Result<(), Error> {
        self.check_qubit(qubit, "qubit")?;
        let _working = self.work()?;
        let order = self.order();
        let outside = self.outside(&order, qubit)?;
        let units = self.pairs(outside);
        self.visit(&order, units, &|chunk| answered(act(chunk)))
    }

    /// The bit of chunks' numbers that a qubit is.
    fn outside(&self, order: &Order, qubit: u32) -> Result<usize, Error> {
        let bit = order.bit_of(qubit);
        bit.checked_sub(self.local as usize).ok_or_else(|| {
            fail!(
                InvalidArgument,
                "qubit {qubit} is bit {bit} of the physical index, inside every chunk: bits from {} on tell chunks apart; use qmem_state_for_each",
                self.local
            )
        })
    }

    /// Chunks that differ in one bit of their number.
    fn pairs(&self, bit: usize) -> Vec<(u64, Option<u64>)> {
        (0..self.chunks()).filter(|chunk| chunk >> bit & 1 == 0).map(|chunk| (chunk, Some(chunk | 1 << bit))).collect()
    }

    /// Two qubits trade places; the state is the same.
    pub fn swap_qubits(&self, x: u32, y: u32) -> Result<(), Error> {
        self.check_qubit(x, "x")?;
        self.check_qubit(y, "y")?;
        let _working = self.work()?;
        let order = self.order();
        self.swap_bits(order.bit_of(x), order.bit_of(y))
    }

    /// The state in logical order, as a plain pointer.
    pub fn data(&self) -> Result<*mut u8, Error> {
        let _working = self.work()?;
        self.straighten()?;
        Ok(self.base)
    }
}

/// What a program's function answered.
fn answered(status: Status) -> Result<(), Error> {
    if status == Status::Ok {
        return Ok(());
    }
    let mut error = fail!(Aborted, "the function that visits chunks answered {status:?}: no further chunk is visited");
    error.status = status;
    Err(error)
}
