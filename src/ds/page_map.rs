//! From any address to what qmem has there: one lock-free radix map of the process, 2 MiB units of 47-bit addresses, 13 + 13
//! bits. Called by heap and pager, which enter what they map, and by the registry; `get` is wait-free and safe in signal
//! handlers. It knows nothing of what the entries mean.

use crate::error::Error;
use crate::fail;
use crate::os::vm;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Bytes that share one entry.
pub const UNIT: usize = vm::HUGE;
const UNIT_BITS: u32 = UNIT.trailing_zeros();
const LEAF_BITS: u32 = 13;
const FANOUT: usize = 1 << LEAF_BITS;
const ADDRESS_BITS: u32 = UNIT_BITS + 2 * LEAF_BITS;
const TAG_BITS: u32 = 8;
/// Largest payload plus one.
pub const PAYLOAD_END: u64 = 1 << 48;

/// Who maps a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A heap segment.
    Segment = 1,
    /// A large block of the heap.
    Large = 2,
    /// A paged region.
    Region = 3,
}

/// What lies in a unit: the owner and 48 bits of its choice (a pointer or an index).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The owner.
    pub tag: Tag,
    /// Below [`PAYLOAD_END`].
    pub payload: u64,
}

impl Entry {
    const fn encode(self) -> u64 {
        (self.payload << TAG_BITS) | self.tag as u64
    }

    const fn decode(word: u64) -> Option<Self> {
        let tag = match word & ((1 << TAG_BITS) - 1) {
            1 => Tag::Segment,
            2 => Tag::Large,
            3 => Tag::Region,
            _ => return None,
        };
        Some(Self { tag, payload: word >> TAG_BITS })
    }
}

type Leaf = [AtomicU64; FANOUT];

/// 64 KiB of zero pages until used. Leaves (64 KiB of address space for 16 GiB each) are never given back.
static ROOT: [AtomicPtr<Leaf>; FANOUT] = [const { AtomicPtr::new(null_mut()) }; FANOUT];

/// What lies at `address`, if it is qmem's.
#[inline]
pub fn get(address: usize) -> Option<Entry> {
    let unit = address >> UNIT_BITS;
    let leaf = ROOT.get(unit >> LEAF_BITS)?.load(Ordering::Acquire);
    // SAFETY: ROOT holds null or a leaf that is never unmapped.
    let leaf = unsafe { leaf.as_ref() }?;
    Entry::decode(leaf.get(unit & (FANOUT - 1))?.load(Ordering::Acquire))
}

/// Enters `[start, start + bytes)`: `start` is a multiple of [`UNIT`], the end is rounded up to one. On failure nothing is entered.
pub fn set_range(start: usize, bytes: usize, entry: Entry) -> Result<(), Error> {
    let end = start.checked_add(bytes).filter(|end| *end <= 1 << ADDRESS_BITS);
    if end.is_none() || !start.is_multiple_of(UNIT) || bytes == 0 || entry.payload >= PAYLOAD_END {
        return Err(fail!(
            Internal,
            "{bytes} bytes at {start:#x} cannot be entered into the page map (payload {:#x})",
            entry.payload
        ));
    }
    let first = start >> UNIT_BITS;
    let units = bytes.div_ceil(UNIT);
    for unit in first..first + units {
        let Some(slot) = slot_or_new(unit) else {
            clear_range(start, (unit - first) * UNIT);
            return Err(fail!(
                OutOfMemory,
                "no address space left for a 64 KiB table of the page map: check ulimit -v and vm.max_map_count"
            ));
        };
        slot.store(entry.encode(), Ordering::Release);
    }
    Ok(())
}

/// Takes `[start, start + bytes)` out, rounded as in [`set_range`]. Called before the range is unmapped.
pub fn clear_range(start: usize, bytes: usize) {
    let first = start >> UNIT_BITS;
    for unit in first..first.saturating_add(bytes.div_ceil(UNIT)) {
        let Some(root) = ROOT.get(unit >> LEAF_BITS) else { return };
        // SAFETY: as in `get`.
        if let Some(leaf) = unsafe { root.load(Ordering::Acquire).as_ref() }
            && let Some(slot) = leaf.get(unit & (FANOUT - 1))
        {
            slot.store(0, Ordering::Release);
        }
    }
}

fn slot_or_new(unit: usize) -> Option<&'static AtomicU64> {
    let root = ROOT.get(unit >> LEAF_BITS)?;
    let mut leaf = root.load(Ordering::Acquire);
    if leaf.is_null() {
        let fresh = vm::reserve(size_of::<Leaf>(), vm::PAGE).ok()?;
        match root.compare_exchange(null_mut(), fresh.as_ptr().cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => leaf = fresh.as_ptr().cast(),
            Err(first) => {
                // SAFETY: the leaf that lost the race was seen by nobody.
                unsafe { vm::release(fresh, size_of::<Leaf>()) };
                leaf = first;
            }
        }
    }
    // SAFETY: not null, a zeroed mapping of a leaf's size, never unmapped once in ROOT.
    unsafe { &*leaf }.get(unit & (FANOUT - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_at_their_borders_and_nowhere_else() {
        // Addresses near the top of the lower half: nothing of a test process is mapped there.
        let start = (1usize << 46) + 3 * (UNIT << LEAF_BITS) - 2 * UNIT;
        let bytes = 5 * UNIT - 4096;
        let entry = Entry { tag: Tag::Region, payload: PAYLOAD_END - 1 };
        assert_eq!(get(start), None);
        set_range(start, bytes, entry).unwrap();
        assert_eq!((get(start - 1), get(start), get(start + 5 * UNIT - 1)), (None, Some(entry), Some(entry)));
        assert_eq!(get(start + 5 * UNIT), None);
        let inner = Entry { tag: Tag::Large, payload: 0 };
        set_range(start + UNIT, 1, inner).unwrap();
        assert_eq!((get(start), get(start + UNIT), get(start + 2 * UNIT)), (Some(entry), Some(inner), Some(entry)));
        clear_range(start, bytes);
        assert_eq!((get(start), get(start + UNIT), get(start + 5 * UNIT - 1)), (None, None, None));
    }

    #[test]
    fn what_is_no_user_address_is_unknown_and_refused() {
        for address in [0, 1 << 47, usize::MAX, 1 << 63, (1 << 47) + UNIT] {
            assert_eq!(get(address), None, "{address:#x}");
        }
        let entry = Entry { tag: Tag::Segment, payload: 1 };
        for (start, bytes) in
            [(1usize << 47, 1), ((1 << 47) - UNIT, UNIT + 1), (UNIT + 4096, 1), (usize::MAX - UNIT + 1, UNIT), (UNIT, 0)]
        {
            assert!(set_range(start, bytes, entry).is_err(), "{start:#x} {bytes:#x}");
        }
        assert!(set_range(1 << 46, 1, Entry { tag: Tag::Segment, payload: PAYLOAD_END }).is_err());
        clear_range(usize::MAX - UNIT + 1, UNIT);
    }
}
