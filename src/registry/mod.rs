//! Any pointer to what it is. Floor 5: every free, resize and query of a pointer goes through here; called by system and ffi.
//! Heap and paged blocks are found through the page map by the floors below; foreign and custom ones in `foreign.rs`; what only
//! few blocks have (more references than one, a layout) in `extras.rs`. Holds no lock while it calls anyone's function.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod extras;
mod foreign;

use crate::ds::page_map::{self, Tag};
use crate::error::Error;
use crate::heap::{self, Lookup};
use crate::{fail, paged, pool};
use core::ptr::NonNull;

pub use extras::{Layout, MAX_DIMS, layout, references, release, retain, set_layout};
pub use foreign::{add_custom, remove_custom, track, track_as, untrack};

/// Tag of a preloaded program's own malloc. To whoever uses the API such a block is foreign: it may be tracked.
pub const TAG_MALLOC: u8 = heap::PLAIN_TAG;

/// Tag of pools' blocks and the slabs that they lie in.
pub const TAG_OWNED: u8 = heap::OWNED_TAG;

/// What kind of memory a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The heap's.
    Heap,
    /// A paged region.
    Paged,
    /// Made by a registered interface.
    Custom,
    /// Foreign: it only enters statistics and the leak report.
    Tracked,
    /// A pool's.
    Pool,
}

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// What it is.
    pub kind: Kind,
    /// Its first byte.
    pub start: *mut u8,
    /// Bytes requested, or logical bytes.
    pub size: usize,
    /// Bytes that may be used.
    pub usable: usize,
    /// As given.
    pub tag: u8,
}

impl From<heap::Block> for Info {
    fn from(block: heap::Block) -> Self {
        Self { kind: Kind::Heap, start: block.start, size: block.size, usable: block.usable, tag: block.tag }
    }
}

impl From<pool::Block> for Info {
    fn from(block: pool::Block) -> Self {
        Self { kind: Kind::Pool, start: block.start, size: block.size, usable: block.size, tag: TAG_OWNED }
    }
}

impl From<paged::Found> for Info {
    fn from(found: paged::Found) -> Self {
        Self { kind: Kind::Paged, start: found.start, size: found.size, usable: found.size, tag: found.tag }
    }
}

/// The live block around any address. A custom block inside a block of qmem's own (an arena, say) is the one found, and so is a
/// tracked one that is a preloaded program's malloc's.
pub fn find(ptr: *const u8) -> Option<Info> {
    let own = own(ptr);
    match foreign::find(ptr) {
        Some(info) if own.is_none_or(|own| own.tag == TAG_MALLOC) || info.kind == Kind::Custom => Some(info),
        _ => own,
    }
}

/// The heap block or paged region around any address, whatever is registered there.
pub fn own(ptr: *const u8) -> Option<Info> {
    match page_map::get(ptr as usize)?.tag {
        Tag::Region => paged::find(ptr).map(Info::from),
        Tag::Segment | Tag::Large => match heap::find(ptr) {
            Lookup::Live(block) | Lookup::Interior(block) if block.tag == heap::OWNED_TAG => {
                pool::find(ptr).filter(|block| block.live).map(Info::from)
            }
            Lookup::Live(block) | Lookup::Interior(block) => Some(block.into()),
            Lookup::Freed { .. } | Lookup::Unknown => None,
        },
    }
}

/// The live block that starts exactly at `ptr`; the error says in words what `ptr` is instead.
pub fn find_start(ptr: *const u8) -> Result<Info, Error> {
    match find(ptr) {
        Some(info) if core::ptr::eq(info.start, ptr) => Ok(info),
        Some(info) => Err(fail!(
            InvalidArgument,
            "{ptr:?} is inside the block of {} bytes that starts at {:?}, {} bytes after its start; pass the start",
            info.size,
            info.start,
            (ptr as usize).wrapping_sub(info.start as usize)
        )),
        None => Err(stranger(ptr)),
    }
}

#[cold]
fn stranger(ptr: *const u8) -> Error {
    match heap::find(ptr) {
        _ if ptr.is_null() => fail!(InvalidArgument, "NULL is no block"),
        Lookup::Live(_) | Lookup::Interior(_) if let Some(block) = pool::find(ptr).filter(|block| block.given) => {
            let (start, size) = (block.start, block.size);
            fail!(
                InvalidArgument,
                "{ptr:?} is in a pool's block of {size} bytes that starts at {start:?} and was released already"
            )
        }
        Lookup::Freed { start } if core::ptr::eq(start, ptr) => fail!(InvalidArgument, "the block at {ptr:?} was freed already"),
        Lookup::Freed { start } => {
            fail!(InvalidArgument, "{ptr:?} is inside a block that was freed already and started at {start:?}")
        }
        _ => fail!(NotFound, "{ptr:?} is not from qmem: neither its heap, a paged buffer, nor a registered block is there"),
    }
}

/// Calls `f` for every live block of every kind with this tag. `f` may free blocks.
pub fn for_each_live(tag: u8, f: &mut dyn FnMut(Info)) {
    foreign::for_each(tag, f);
    paged::for_each_region(&mut |found| {
        if found.tag == tag {
            f(found.into());
        }
    });
    heap::for_each_live(tag, &mut |block| f(block.into()));
}

/// Ends a heap block, pool block or paged region and all that is known of it, however many references it has. Of several threads that free
/// one block at the same time exactly one succeeds.
///
/// # Safety
/// If `ptr` is the start of a live block, nobody uses that block any more.
pub unsafe fn free(ptr: *mut u8) -> Result<(), Error> {
    // SAFETY: the caller's promise. The extras go while the address cannot be given again.
    if foreign::is_empty() && unsafe { heap::free_after(ptr, || extras::forget(ptr)) } {
        return Ok(());
    }
    let info = find_start(ptr)?;
    match info.kind {
        // SAFETY: as above.
        Kind::Heap if unsafe { heap::free_after(ptr, || extras::forget(ptr)) } => Ok(()),
        Kind::Heap => Err(fail!(InvalidArgument, "the block at {ptr:?} was freed already, by another thread")),
        Kind::Paged => {
            extras::forget(ptr);
            // SAFETY: the caller's promise.
            unsafe { paged::free(ptr) }
        }
        // SAFETY: the caller's promise.
        Kind::Pool => unsafe { pool::free(ptr) },
        Kind::Custom => {
            Err(fail!(Unsupported, "the block at {ptr:?} belongs to a registered interface; its own free must end it"))
        }
        Kind::Tracked => Err(fail!(Unsupported, "the block at {ptr:?} is only tracked, not qmem's; free it where it came from")),
    }
}

/// Gives a heap block, pool block or paged region another size; it may move, a heap block to a multiple of `align`. Contents up to the smaller
/// size, kind and tag are kept; a layout is forgotten, since it described the old size. On failure all is as it was. A block with
/// several references is refused: the other holders would be left with a stale pointer.
///
/// # Safety
/// Nobody uses the block during the call, nor its old address afterwards if it moved.
pub unsafe fn resize(ptr: *mut u8, size: usize, align: usize) -> Result<NonNull<u8>, Error> {
    let info = find_start(ptr)?;
    let shared = references(ptr);
    if shared > 1 {
        return Err(fail!(Busy, "the block at {ptr:?} has {shared} references and cannot be resized; release the others first"));
    }
    let kept = layout(ptr);
    extras::forget(ptr); // before the old address can be given again
    let resized = match info.kind {
        // SAFETY: the caller's promise.
        Kind::Heap => unsafe { heap::resize_aligned(ptr, size, align) },
        // SAFETY: as above.
        Kind::Paged => unsafe { paged::resize(ptr, size) },
        // SAFETY: as above.
        Kind::Pool => unsafe { pool::resize(ptr, size) },
        Kind::Custom | Kind::Tracked => {
            Err(fail!(Unsupported, "the block at {ptr:?} is not qmem's own; its own allocator must resize it"))
        }
    };
    if let (Err(_), Some(layout)) = (&resized, kept) {
        let _ = set_layout(ptr, &layout); // its place was just freed; the resize's error is the one to report
    }
    resized
}

/// Before fork(2): keeps other threads out of the registry's tables until [`after_fork`]. The heap's and the pager's own follow it.
pub fn before_fork() {
    extras::before_fork();
    foreign::before_fork();
}

/// After fork(2), in the parent and in the child.
///
/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe {
        foreign::after_fork();
        extras::after_fork();
    }
}
