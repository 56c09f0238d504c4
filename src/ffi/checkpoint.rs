//! Chapter "paged buffers" of <qmem.h>, second part: names, snapshots, checkpoints. Called by C only.

use super::guard::{answer, memory, operation, reference};
use super::memory::non_null;
use super::types::*;
use crate::error::{Class, Error};
use crate::system::saved;
use crate::{fail, paged};
use core::ffi::{CStr, c_char, c_void};

/// # Safety
/// `text` is NULL or a NUL-terminated string.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a CStr, Error> {
    if text.is_null() {
        return Err(fail!(InvalidArgument, "{name} is NULL"));
    }
    // SAFETY: the caller's promise, and not NULL.
    Ok(unsafe { CStr::from_ptr(text) })
}

fn utf8<'a>(text: &'a CStr, name: &str) -> Result<&'a str, Error> {
    text.to_str().map_err(|_| fail!(InvalidArgument, "{name} is not UTF-8"))
}

/// A second buffer with the contents that `buffer` has now, freed by `qmem_free`. Both share every chunk until one of them writes to
/// it, so what it costs is what changes; its size counts as granted, since everything may. What is resident is stored first: the
/// chunks in use fault once more. Writes by other threads meanwhile are in it or not, chunk by chunk. NULL on failure, with the
/// reason in `qmem_last_error`: not the start of a paged buffer, no room by the commit rule, a lost chunk.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_snapshot(buffer: *const c_void) -> *mut c_void {
    memory("qmem_snapshot", || {
        non_null(buffer, "buffer")?;
        saved::snapshot(buffer.cast_mut().cast())
    })
}

/// Gives a paged buffer a name of up to 63 bytes (UTF-8, not beginning with #), by which a checkpoint's reader finds it; "" takes it
/// away. MEMORY_STATUS_NOT_FOUND if `buffer` is not the start of a paged buffer, MEMORY_STATUS_INVALID_ARGUMENT if another live one
/// has the name.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_set_name(buffer: *mut c_void, name: *const c_char) -> memory_status_t {
    operation("qmem_set_name", Class::of, || {
        non_null(buffer, "buffer")?;
        // SAFETY: the caller's promise.
        let name = unsafe { text(name, "name")? };
        paged::set_name(buffer.cast(), utf8(name, "name")?)
    })
}

/// Writes the contents of a paged buffer (NULL: of all) to the file at `path`, compressed and checksummed. If the file holds an
/// earlier checkpoint, only chunks that changed are written. The checkpoint counts when it is complete and on the disk; before that,
/// whatever happens, the file holds the earlier one. Writes by other threads meanwhile are in it or not, chunk by chunk.
/// MEMORY_STATUS_IO with the earlier checkpoint intact, MEMORY_STATUS_BUSY if another process uses the file, MEMORY_STATUS_CORRUPT
/// if a chunk is lost or the file is damaged or no checkpoint; a file that is none is never overwritten.
///
/// # Safety
/// `path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_checkpoint(buffer: *const c_void, path: *const c_char) -> memory_status_t {
    operation("qmem_checkpoint", Class::of, || {
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path")? };
        paged::write_checkpoint((!buffer.is_null()).then(|| buffer.cast_mut().cast()), path)
    })
}

/// Reads a buffer back from a checkpoint, in this process or another one: a new paged buffer in `*buffer`, freed by `qmem_free`, its
/// bytes in `*size` (which may be NULL). `name` NULL: the only one in the file. Every chunk is verified; the first damaged one is
/// named in the message, and nothing is restored. MEMORY_STATUS_NOT_FOUND: no such file or buffer.
///
/// # Safety
/// The strings are NULL or NUL-terminated; `buffer` and `size` are NULL or point to room for the answers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_restore(
    path: *const c_char,
    name: *const c_char,
    buffer: *mut *mut c_void,
    size: *mut usize,
) -> memory_status_t {
    operation("qmem_restore", Class::of, || {
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path")? };
        let name = match name.is_null() {
            true => None,
            // SAFETY: the caller's promise.
            false => Some(utf8(unsafe { text(name, "name")? }, "name")?),
        };
        // SAFETY: as above; checked before anything is made.
        unsafe { reference(buffer.cast::<core::mem::MaybeUninit<*mut c_void>>(), "buffer")? };
        let (start, bytes) = saved::restore(path, name)?;
        // SAFETY: as above.
        unsafe { answer(buffer, "buffer", start.cast::<c_void>())? };
        if !size.is_null() {
            // SAFETY: as above.
            unsafe { answer(size, "size", bytes)? };
        }
        Ok(())
    })
}
