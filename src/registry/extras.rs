//! What only few blocks have: references beyond the first, and layouts. Called by the registry's face. Blocks without extras pay
//! one atomic load. Its lock may be held while `foreign.rs` takes its own, never the other way round.

use super::{Kind, find_start};
use crate::ds::{AddressMap, Zeroed};
use crate::error::Error;
use crate::monitor::account::{self, Holder};
use crate::sync::{Guard, Mutex};
use crate::{fail, heap};
use core::sync::atomic::{AtomicUsize, Ordering, fence};

/// Most dimensions of a layout.
pub const MAX_DIMS: usize = 16;

/// How a buffer's elements are arranged; as `qmem_layout_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Dimensions in use.
    pub num_dims: usize,
    /// Elements per dimension.
    pub dimensions: [usize; MAX_DIMS],
    /// Elements from one index to the next, per dimension.
    pub strides: [usize; MAX_DIMS],
    /// Elements before the first.
    pub offset: usize,
}

// SAFETY: integers only.
unsafe impl Zeroed for Layout {}

struct Extras {
    /// References beyond the first.
    references: AddressMap<u64>,
    layouts: AddressMap<Layout>,
}

static EXTRAS: Mutex<Extras> = Mutex::new(Extras { references: AddressMap::new(), layouts: AddressMap::new() });
/// Entries in both maps, and those about to be entered: 0 lets everyone pass without the lock.
static ENTRIES: AtomicUsize = AtomicUsize::new(0);

impl Extras {
    fn bytes(&self) -> usize {
        self.references.bytes() + self.layouts.bytes()
    }

    fn count(&self) {
        ENTRIES.store(self.references.len() + self.layouts.len(), Ordering::SeqCst);
    }
}

/// The lock, with room charged for one more entry as `growth` says.
fn lock_with_room(growth: fn(&Extras) -> usize) -> Result<(Guard<'static, Extras>, usize), Error> {
    loop {
        let extras = EXTRAS.lock();
        let need = growth(&extras);
        if need == 0 || account::try_charge(Holder::Tables, need) {
            return Ok((extras, need));
        }
        drop(extras);
        account::charge(Holder::Tables, need)?; // makes room, without the lock
        account::uncharge(Holder::Tables, need);
    }
}

/// Enters something for the live block at `ptr`. `growth` is what the entry may cost, charged before.
fn enter(ptr: *const u8, growth: fn(&Extras) -> usize, put: impl FnOnce(&mut Extras) -> Result<(), Error>) -> Result<(), Error> {
    let (mut extras, charged) = lock_with_room(growth)?;
    let before = extras.bytes();
    // Announced before the block is looked at: a thread that frees it either is seen here or sees this and waits for the lock.
    ENTRIES.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    heap::watch(ptr);
    let done = find_start(ptr).and_then(|info| match info.kind {
        Kind::Tracked => Err(fail!(InvalidArgument, "the block at {ptr:?} is only tracked, not qmem's")),
        Kind::Pool => Err(fail!(Unsupported, "the block at {ptr:?} is a pool's: it has one holder, and no layout")),
        _ => put(&mut extras),
    });
    settle(&extras, before + charged);
    done
}

/// Brings the charge from `charged` to what the maps take now.
fn settle(extras: &Extras, charged: usize) {
    account::uncharge(Holder::Tables, charged.saturating_sub(extras.bytes()));
    extras.count();
}

/// One more reference to the live block that starts at `ptr`.
pub fn retain(ptr: *const u8) -> Result<(), Error> {
    enter(
        ptr,
        |extras| extras.references.growth(),
        |extras| {
            let now = extras.references.get(ptr as usize).copied().unwrap_or(0);
            let Some(more) = now.checked_add(1) else {
                return Err(fail!(Limit, "the block at {ptr:?} has {now} references, the most there can be"));
            };
            extras.references.insert(ptr as usize, more)
        },
    )
}

/// One reference less. Returns how many are left; 0: that was the last one, and the caller must free the block.
pub fn release(ptr: *const u8) -> Result<usize, Error> {
    find_start(ptr)?;
    if ENTRIES.load(Ordering::Acquire) == 0 {
        return Ok(0);
    }
    let mut extras = EXTRAS.lock();
    let before = extras.bytes();
    let left = match extras.references.get_mut(ptr as usize) {
        None => 0,
        Some(more) if *more > 1 => {
            *more -= 1;
            *more as usize + 1
        }
        Some(_) => {
            extras.references.remove(ptr as usize);
            settle(&extras, before);
            1
        }
    };
    Ok(left)
}

/// References to the live block that starts at `ptr`; 0 if there is none.
pub fn references(ptr: *const u8) -> usize {
    if find_start(ptr).is_err() {
        return 0;
    }
    if ENTRIES.load(Ordering::Acquire) == 0 {
        return 1;
    }
    EXTRAS.lock().references.get(ptr as usize).map_or(1, |more| *more as usize + 1)
}

/// Keeps `layout` with the live block that starts at `ptr`, in place of any other.
pub fn set_layout(ptr: *const u8, layout: &Layout) -> Result<(), Error> {
    if layout.num_dims == 0 || layout.num_dims > MAX_DIMS {
        return Err(fail!(InvalidArgument, "a layout has 1 to {MAX_DIMS} dimensions, not {}", layout.num_dims));
    }
    enter(ptr, |extras| extras.layouts.growth(), |extras| extras.layouts.insert(ptr as usize, *layout))
}

/// What [`set_layout`] kept for the live block that starts at `ptr`.
pub fn layout(ptr: *const u8) -> Option<Layout> {
    if ENTRIES.load(Ordering::Acquire) == 0 {
        return None;
    }
    find_start(ptr).ok()?;
    EXTRAS.lock().layouts.get(ptr as usize).copied()
}

/// Forgets all about the block at `ptr`, which ends or changes.
#[inline]
pub fn forget(ptr: *const u8) {
    if ENTRIES.load(Ordering::SeqCst) > 0 {
        forget_slowly(ptr as usize);
    }
}

#[cold]
fn forget_slowly(key: usize) {
    let mut extras = EXTRAS.lock();
    let before = extras.bytes();
    extras.references.remove(key);
    extras.layouts.remove(key);
    settle(&extras, before);
}

/// See the face.
pub fn before_fork() {
    EXTRAS.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork() {
    // SAFETY: the caller's promise.
    unsafe { EXTRAS.unlock_after_fork() };
}
