//! Chapter "state vectors by chunk" of <qmem.h>. Called by C only.

use super::guard::{answer, enumerator, memory, number, reference, status, value};
use super::types::*;
use crate::error::{Error, Status};
use crate::fail;
use crate::system::state::{Chunk, Group, MAX_QUBITS, State};
use core::ffi::c_void;
use core::mem::MaybeUninit;

/// A state vector in chunks. Calls on one state exclude each other: MEMORY_STATUS_BUSY for the second, and for those that a function
/// which visits chunks makes for its own state.
pub struct qmem_state_t {
    _opaque: [u8; 0],
}

/// One chunk of a state, or two, as a function that visits them sees it.
#[repr(C)]
pub struct qmem_chunk_t {
    /// Its amplitudes, to read and write during the call.
    pub a: *mut c_void,
    /// Those of a pair's other chunk, whose physical index has the bit set that `a`'s has not; NULL unless it is a pair.
    pub b: *mut c_void,
    /// Physical index of the first amplitude of `a`.
    pub first_a: u64,
    /// And of `b`; 0 unless it is a pair.
    pub first_b: u64,
    /// In each chunk.
    pub amplitudes: usize,
    /// By bit of the physical index: the qubit; as many as the state has.
    pub logical_qubit: *const u8,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Visits a chunk or a pair. Called from several threads at a time, each chunk by one of them; every other answer than
/// MEMORY_STATUS_OK ends the visit. It must return: no exception, no longjmp.
pub type qmem_chunk_fn =
    Option<unsafe extern "C" fn(chunk: *const qmem_chunk_t, user: *mut c_void) -> MaybeUninit<memory_status_t>>;

/// 2^k chunks of a state, as a function that visits groups sees them.
#[repr(C)]
pub struct qmem_group_t {
    /// The chunks' amplitudes, to read and write during the call. Bit j of a chunk's position in this list is the j-th qubit asked for.
    pub chunk: *const *mut c_void,
    /// Physical index of the first amplitude of each.
    pub first: *const u64,
    /// Chunks.
    pub count: usize,
    /// In each chunk.
    pub amplitudes: usize,
    /// By bit of the physical index: the qubit; as many as the state has.
    pub logical_qubit: *const u8,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Visits a group, on the thread that asked for it; its own threads may help. Every other answer than MEMORY_STATUS_OK ends the visit. It
/// must return: no exception, no longjmp.
pub type qmem_group_fn =
    Option<unsafe extern "C" fn(group: *const qmem_group_t, user: *mut c_void) -> MaybeUninit<memory_status_t>>;

/// # Safety
/// `state` is NULL or of `qmem_state_create` and not destroyed.
unsafe fn of<'a>(state: *const qmem_state_t) -> Result<&'a State, Error> {
    // SAFETY: the caller's promise: create gives out nothing but boxed States.
    unsafe { reference(state.cast::<State>(), "state") }
}

/// A state vector of 1 to 56 qubits in |0...0>, of QMEM_ELEMENT_C64 or QMEM_ELEMENT_C128: paged, from 64 KiB on, and compressed with loss
/// as far as the process's error budget permits (`qmem_set_error_budget`). NULL on failure, with the reason in `qmem_last_error`.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_state_create(num_qubits: u32, element: MaybeUninit<qmem_element_t>) -> *mut qmem_state_t {
    let made = memory("qmem_state_create", || {
        let what = super::paged::element(enumerator(element, "element")?);
        let what = what.ok_or_else(|| {
            fail!(InvalidArgument, "element = QMEM_ELEMENT_BYTES (0): amplitudes are QMEM_ELEMENT_C64 or QMEM_ELEMENT_C128")
        })?;
        Ok(Box::into_raw(Box::new(State::create(num_qubits, what)?)).cast())
    });
    made.cast()
}

/// Ends a state and frees its memory; NULL is fine. While a call works on it it stays, with MEMORY_STATUS_BUSY as the thread's last error.
///
/// # Safety
/// `state` is NULL or of `qmem_state_create`, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_destroy(state: *mut qmem_state_t) {
    value((), || {
        if state.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise; a box that is given back to the caller is forgotten, and so stays.
        let state = unsafe { Box::from_raw(state.cast::<State>()) };
        state.destroy().map_err(|(error, state)| {
            let _ = Box::into_raw(state);
            error
        })
    });
}

/// How many bits of the physical index are inside a chunk: 18 of complex<float>, 17 of complex<double>, all if the state is smaller. As
/// long as no qubits were swapped, gates on qubits below this stay inside a chunk. 0 for NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_local_qubits(state: *const qmem_state_t) -> u32 {
    // SAFETY: the caller's promise.
    value(0, || Ok(unsafe { of(state)? }.local_qubits()))
}

/// Calls the program's function for a chunk.
struct Visitor {
    visit: unsafe extern "C" fn(chunk: *const qmem_chunk_t, user: *mut c_void) -> MaybeUninit<memory_status_t>,
    user: *mut c_void,
}
// SAFETY: the program is told that its function is called from several threads with this pointer.
unsafe impl Sync for Visitor {}

impl Visitor {
    fn of(visit: qmem_chunk_fn, user: *mut c_void) -> Result<Self, Error> {
        let visit = visit.ok_or_else(|| fail!(InvalidArgument, "fn is NULL"))?;
        Ok(Self { visit, user })
    }

    fn call(&self, chunk: &Chunk) -> Status {
        let seen = qmem_chunk_t {
            a: chunk.a.cast(),
            b: chunk.b.map_or(core::ptr::null_mut(), <*mut u8>::cast),
            first_a: chunk.first.0,
            first_b: chunk.first.1,
            amplitudes: chunk.amplitudes,
            logical_qubit: chunk.qubits.as_ptr(),
            reserved: [0; 4],
        };
        // SAFETY: the program's own function, called as it is told it will be.
        Status::from_number(number(unsafe { (self.visit)(&raw const seen, self.user) }))
    }
}

/// Calls `fn` for every chunk once: in memory while it is called, from several threads, those first that are in memory already. The first
/// other answer than MEMORY_STATUS_OK is this function's. MEMORY_STATUS_LIMIT if the budget has no room to pin one chunk.
///
/// # Safety
/// `state` is NULL or a live state; `fn` may be called with `user` from other threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_for_each(
    state: *mut qmem_state_t,
    r#fn: qmem_chunk_fn,
    user: *mut c_void,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let state = unsafe { of(state)? };
        let visitor = Visitor::of(r#fn, user)?;
        state.for_each(&|chunk| visitor.call(chunk))
    })
}

/// As `qmem_state_for_each`, with two chunks at a time whose amplitudes differ in `qubit` alone: what a gate on it needs. The qubit must
/// lie outside of chunks (without swaps: qmem_state_local_qubits and above); MEMORY_STATUS_INVALID_ARGUMENT if it does not.
///
/// # Safety
/// As `qmem_state_for_each`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_for_each_pair(
    state: *mut qmem_state_t,
    qubit: u32,
    r#fn: qmem_chunk_fn,
    user: *mut c_void,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let state = unsafe { of(state)? };
        let visitor = Visitor::of(r#fn, user)?;
        state.for_each_pair(qubit, &|chunk| visitor.call(chunk))
    })
}

/// How many qubits outside of chunks a group may spread over at present, so that one group can be worked on while the next one comes:
/// both take half the budget together. 0 for NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_group_qubits(state: *const qmem_state_t) -> u32 {
    // SAFETY: the caller's promise.
    value(0, || Ok(unsafe { of(state)? }.group_qubits()))
}

/// Calls `fn` for every group of 2^`count` chunks that differ in `count` qubits alone: what several gates on them need. Each amplitude
/// is in one group. `fn` is called by the calling thread, for one group after the other, those first of which most is in memory, while the
/// next one is brought. The qubits must lie outside of chunks and be different; MEMORY_STATUS_INVALID_ARGUMENT if they do not.
/// MEMORY_STATUS_LIMIT if the budget has no room to pin one group: `qmem_state_group_qubits` says what has.
///
/// # Safety
/// `state` is NULL or a live state; `qubits` points to `count` numbers, or `count` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_for_each_group(
    state: *mut qmem_state_t,
    qubits: *const u32,
    count: usize,
    r#fn: qmem_group_fn,
    user: *mut c_void,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let state = unsafe { of(state)? };
        let visit = r#fn.ok_or_else(|| fail!(InvalidArgument, "fn is NULL"))?;
        if count > MAX_QUBITS as usize {
            return Err(fail!(InvalidArgument, "count = {count}: no state has more than {MAX_QUBITS} qubits"));
        }
        let qubits = match count {
            0 => &[],
            // SAFETY: the caller's promise; not NULL.
            _ => unsafe { core::slice::from_raw_parts(reference(qubits, "qubits")?, count) },
        };
        state.for_each_group(qubits, &mut |group: &Group| {
            let seen = qmem_group_t {
                chunk: group.chunks.as_ptr().cast(),
                first: group.first.as_ptr(),
                count: group.chunks.len(),
                amplitudes: group.amplitudes,
                logical_qubit: group.qubits.as_ptr(),
                reserved: [0; 4],
            };
            // SAFETY: the program's own function, called on its own thread.
            Status::from_number(number(unsafe { visit(&raw const seen, user) }))
        })
    })
}

/// Qubits `x` and `y` trade places in the physical index; the state remains the same one, and `logical_qubit` of chunks tells where each is.
/// If both lie outside of chunks nothing is moved, else every amplitude is visited once. Pointers into the state are of no more use.
/// MEMORY_STATUS_LIMIT, and nothing has changed, where the budget has no room to pin two chunks; should it run out of room half-way, all
/// later calls for this state answer MEMORY_STATUS_ABORTED.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_swap_qubits(state: *mut qmem_state_t, x: u32, y: u32) -> memory_status_t {
    // SAFETY: the caller's promise.
    status(|| unsafe { of(state)? }.swap_qubits(x, y))
}

/// The whole state as a plain pointer in `*data`: amplitude i is that of the basis state whose qubit q is bit q of i. Undoes what swaps
/// have moved. The memory stays the state's; the pointer is good until qubits are swapped or the state ends.
///
/// # Safety
/// `state` is NULL or a live state; `data` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_state_data(state: *mut qmem_state_t, data: *mut *mut c_void) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise; checked before anything is moved.
        unsafe { reference(data.cast::<MaybeUninit<*mut c_void>>(), "data")? };
        // SAFETY: as above.
        let start = unsafe { of(state)? }.data()?;
        // SAFETY: as above.
        unsafe { answer(data, "data", start.cast::<c_void>()) }
    })
}
