//! Chapter "errors" of <qmem.h>: registering a handler, and dispatching failures of the program's own. Called by C only.

use super::guard::{answer, enumerator, fraction, number, operation, reference, remember, status};
use super::types::*;
use crate::error::{Class, Error, Status};
use crate::fail;
use crate::monitor::fidelity;
use crate::system::dispatch::{self, Handler};
use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;

/// Called for each failure, as `handle_memory_error` of <quantum_memory.h> describes, with its status, its words (valid during the
/// call) and the `user` it was registered with.
pub type qmem_error_handler_t =
    Option<unsafe extern "C" fn(error: memory_error_t, status: memory_status_t, message: *const c_char, user: *mut c_void)>;

/// Registers a handler in place of `handle_memory_error`, for every thread, from the next failure on; `user` is handed to it and must
/// stay valid. NULL: back to `handle_memory_error`. The former handler (NULL: none) and its user go to `old_handler` and `old_user`,
/// which may be NULL.
///
/// # Safety
/// `handler` may be called from any thread; `old_handler` and `old_user` are NULL or point to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_set_error_handler(
    handler: qmem_error_handler_t,
    user: *mut c_void,
    old_handler: *mut qmem_error_handler_t,
    old_user: *mut *mut c_void,
) -> memory_status_t {
    status(|| {
        let new = handler.map(|function| Handler {
            // SAFETY: C enums are ints.
            function: unsafe { core::mem::transmute::<unsafe extern "C" fn(_, _, _, _), dispatch::HandlerFn>(function) },
            user,
        });
        if !old_handler.is_null() {
            // SAFETY: the caller's promise; checked before anything changes.
            unsafe { reference(old_handler, "old_handler")? };
        }
        if !old_user.is_null() {
            // SAFETY: as above.
            unsafe { reference(old_user, "old_user")? };
        }
        let old = dispatch::register(new);
        // SAFETY: the reverse of the above: only handlers from here were registered.
        let function =
            old.map(|h| unsafe { core::mem::transmute::<dispatch::HandlerFn, unsafe extern "C" fn(_, _, _, _)>(h.function) });
        // SAFETY: the caller's promise.
        unsafe {
            if !old_handler.is_null() {
                answer(old_handler, "old_handler", function)?;
            }
            if !old_user.is_null() {
                answer(old_user, "old_user", old.map_or(core::ptr::null_mut(), |h| h.user))?;
            }
        }
        Ok(())
    })
}

/// Bounds the infidelity that lossy compression may spend in this process from now on, all buffers together, ended ones included: in
/// [0, 1), 0 = no such bound, each buffer's own tolerance alone, and no loss in buffers that have none. Where more has been spent already, chunks go without loss from now on.
/// `error_spent` of `qmem_get_stats` says what has been.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_set_error_budget(infidelity: f64) -> memory_status_t {
    status(|| {
        fidelity::PROCESS.set_limit(fraction(infidelity, "infidelity")?);
        Ok(())
    })
}

/// Runs an operation of the program's own (its cache, its device code, its files) under qmem's error handling: a status other than
/// MEMORY_STATUS_OK is dispatched to the error handler as `error`, with `message`, and the operation is retried as the handler and recovery
/// say. `run` NULL: the failure is dispatched as it is, with MEMORY_STATUS_INTERNAL. Gives the last status that `run` gave, or
/// MEMORY_STATUS_ABORTED. `run` is called with no lock of qmem held and must not throw or jump.
///
/// # Safety
/// `message` is NULL or a string; `run` takes `user`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_run_operation(
    error: MaybeUninit<memory_error_t>,
    message: *const c_char,
    run: Option<unsafe extern "C" fn(user: *mut c_void) -> MaybeUninit<memory_status_t>>,
    user: *mut c_void,
) -> memory_status_t {
    let class = match enumerator(error, "error") {
        Ok(memory_error_t::MEMORY_ERROR_NONE) => {
            return remember(&fail!(InvalidArgument, "error = MEMORY_ERROR_NONE is no failure"));
        }
        Ok(error) => Class::from(error),
        Err(bad) => return remember(&bad),
    };
    // SAFETY: the caller's promise.
    let words = if message.is_null() { c"an operation of the program failed" } else { unsafe { CStr::from_ptr(message) } };
    let words = words.to_str().unwrap_or("(a message that is not UTF-8)");
    operation(
        "qmem_run_operation",
        |_| Some(class),
        || {
            // SAFETY: the caller's promise.
            let status = run.map_or(Status::Internal, |run| Status::from_number(number(unsafe { run(user) })));
            if status == Status::Ok { Ok(()) } else { Err(Error::new(status, format_args!("{words}"))) }
        },
    )
}
