//! Head of <qmem.h>: version, names of statuses, the thread's last failure. Called by C only.

use super::guard::{copy_text, number};
use super::types::*;
use crate::system::dispatch;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a version has no NUL"),
};

/// The library's version, "major.minor.patch". Static; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The name of a status, such as "MEMORY_STATUS_BUSY"; "unknown status" for any other number. Static; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_status_string(status: MaybeUninit<memory_status_t>) -> *const c_char {
    crate::error::status_name(number(status)).as_ptr()
}

/// This thread's last failure in words: what failed, the numbers, what can be done. Empty if nothing failed yet; a success
/// does not clear it. Writes at most `cap` bytes with the closing NUL to `buf` (NULL: none) and returns the full length.
///
/// # Safety
/// `buf` is NULL or has room for `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_last_error(buf: *mut c_char, cap: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { copy_text(dispatch::last_error().as_str(), buf, cap) }
}
