//! The program's own memory system behind ALLOC_CUSTOM: a table of C functions, copied by `qmem_register_interface`. Called by
//! `memory`; calls the program's functions with no lock held.

use super::allocation::{self, Kind};
use super::phase::Phase;
use crate::error::Error;
use crate::fail;
use crate::sync::Mutex;
use core::ffi::c_void;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The functions of `unified_memory_interface_t` that qmem calls. The two required ones are not optional here.
#[derive(Clone, Copy)]
#[allow(missing_docs)] // as in unified_memory_interface_t
pub struct Interface {
    pub allocate: unsafe extern "C" fn(usize, usize) -> *mut c_void,
    pub free: unsafe extern "C" fn(*mut c_void),
    pub realloc: Option<unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void>,
    pub allocate_geometric: Option<unsafe extern "C" fn(*mut usize, usize) -> *mut c_void>,
    pub allocate_hierarchical: Option<unsafe extern "C" fn(usize, f64) -> *mut c_void>,
    pub allocate_streaming: Option<unsafe extern "C" fn(usize, usize) -> *mut c_void>,
}

static INTERFACE: Mutex<Option<Interface>> = Mutex::new(None);
/// Blocks of the registered interface that are live: it cannot be replaced while they are.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Takes the program's interface, in place of a former one that has no live blocks.
pub fn register(interface: Interface) -> Result<(), Error> {
    let mut slot = INTERFACE.lock();
    let live = LIVE.load(Ordering::Acquire);
    if live > 0 {
        return Err(fail!(Busy, "{live} blocks of the registered interface are live; free them before registering another"));
    }
    if allocation::mode() == (Phase::Running, Kind::Custom) {
        return Err(fail!(
            Busy,
            "memory allocation runs with ALLOC_CUSTOM; stop it and clean it up before registering another interface"
        ));
    }
    *slot = Some(interface);
    Ok(())
}

/// Is there one?
pub fn registered() -> bool {
    INTERFACE.lock().is_some()
}

/// A copy of the one that is registered.
pub fn interface() -> Result<Interface, Error> {
    let copy = *INTERFACE.lock();
    copy.ok_or_else(|| fail!(InvalidArgument, "no interface is registered: call qmem_register_interface first"))
}

/// What one of its allocation functions gave, checked; `function` is for the message.
///
/// # Safety
/// `pointer` is NULL or a fresh block of the registered interface.
pub unsafe fn given(pointer: *mut c_void, size: usize, align: usize, function: &str) -> Result<*mut u8, Error> {
    if pointer.is_null() {
        return Err(fail!(OutOfMemory, "the registered interface's {function} returned NULL for {size} bytes"));
    }
    if !(pointer as usize).is_multiple_of(align) {
        // SAFETY: a fresh block, by the caller's promise, that nobody has seen.
        unsafe { (interface()?.free)(pointer) };
        return Err(fail!(
            InvalidArgument,
            "the registered interface's {function} returned {pointer:p}, not aligned to {align} bytes"
        ));
    }
    LIVE.fetch_add(1, Ordering::AcqRel);
    Ok(pointer.cast())
}

/// Gives a block back to the interface it came from.
///
/// # Safety
/// `pointer` came out of [`given`], once, and nobody uses it any more.
pub unsafe fn free(pointer: *mut u8) -> Result<(), Error> {
    let interface = interface()?;
    // SAFETY: the caller's promise; the interface cannot have been replaced since, as LIVE counts this block.
    unsafe { (interface.free)(pointer.cast()) };
    LIVE.fetch_sub(1, Ordering::AcqRel);
    Ok(())
}
