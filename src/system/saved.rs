//! Second copies of paged buffers: snapshots beside them, and what a checkpoint has. Called by `ffi`.

use super::allocation;
use super::memory::{self, Door};
use crate::error::Error;
use crate::paged::{self, Request};
use crate::{fail, registry};

/// A second paged buffer with the contents that one has now.
pub fn snapshot(pointer: *mut u8) -> Result<*mut u8, Error> {
    let info = registry::find_start(pointer)?;
    if info.kind != registry::Kind::Paged {
        return Err(fail!(InvalidArgument, "{pointer:p} is not a paged buffer: only those have snapshots"));
    }
    let (tag, _) = memory::enter(Door::Process)?;
    let block =
        memory::give(tag, info.size, true, || paged::snapshot(pointer, tag, memory::pooled(tag)).map(|block| block.as_ptr()))?;
    if let Some(layout) = registry::layout(pointer)
        && let Err(error) = registry::set_layout(block, &layout)
    {
        // SAFETY: given just now, and nobody has seen it.
        unsafe { memory::free(block)? };
        return Err(error);
    }
    Ok(block)
}

/// A paged buffer read back from a checkpoint, and its bytes.
pub fn restore(path: &core::ffi::CStr, name: Option<&str>) -> Result<(*mut u8, usize), Error> {
    allocation::ensure_pager()?;
    let saved = paged::Saved::open(path, name)?;
    let (tag, _) = memory::enter(Door::Process)?;
    let request =
        Request { size: saved.size(), chunk_size: saved.chunk_size(), tolerance: saved.tolerance(), ..memory::request(tag) };
    let block = memory::page(tag, request)?;
    // SAFETY: a fresh region of the buffer's size that nobody else knows.
    if let Err(error) = unsafe { saved.load(block) } {
        // SAFETY: given just now, and nobody has seen it.
        unsafe { memory::free(block)? };
        return Err(error);
    }
    Ok((block, saved.size()))
}
