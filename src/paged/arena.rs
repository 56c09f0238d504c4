//! The arena: bays of address space, and the frames (resident memory for one chunk) that stand in them. A frame moves between
//! a bay and a chunk of a region; the bay it left is empty. Six classes of bays, 64 KiB to 2 MiB; frames of 2 MiB are huge
//! pages. Every frame is charged to the budget before it exists. Called by fill, evict and pool.

use super::backend::Backend;
use crate::ds::MappedArray;
use crate::error::Error;
use crate::monitor::account::{self, Holder};
use crate::os::vm;
use crate::sync::Mutex;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// log2 of the smallest frame.
pub const MIN_SHIFT: usize = 16;
/// Number of sizes: 64 KiB, 128 KiB … 2 MiB.
pub const CLASSES: usize = 6;
/// The class of whole chunks.
pub const HUGE_CLASS: usize = CLASSES - 1;

/// A bay of a known class.
pub type Bay = u32;

/// A frame taken for use.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where it stands.
    pub bay: Bay,
    /// Straight from the kernel: all zeros.
    pub fresh: bool,
}

struct Class {
    base: usize,
    bays: usize,
    /// Bays with a free frame, and bays without any.
    full: MappedArray<u32>,
    empty: MappedArray<u32>,
    fulls: usize,
    empties: usize,
    /// Bays from here on were never used.
    fresh: usize,
}

/// All bays.
pub struct Arena {
    classes: Mutex<[Option<Class>; CLASSES]>,
    bases: [AtomicUsize; CLASSES],
    free_bytes: AtomicUsize,
    /// Address space of each class.
    extent: usize,
    /// Frames asked for as huge pages, and those of them that came as 4 KiB pages.
    pub huge_asked: AtomicUsize,
    /// As above.
    pub huge_refused: AtomicUsize,
}

/// Bytes of a class's frames.
pub const fn bytes(class: usize) -> usize {
    1 << (MIN_SHIFT + class)
}

impl Arena {
    /// An arena whose classes can each hold `extent` bytes of frames.
    pub fn new(extent: usize) -> Self {
        Self {
            classes: Mutex::new([const { None }; CLASSES]),
            bases: [const { AtomicUsize::new(0) }; CLASSES],
            free_bytes: AtomicUsize::new(0),
            extent: vm::round_up(extent, vm::HUGE),
            huge_asked: AtomicUsize::new(0),
            huge_refused: AtomicUsize::new(0),
        }
    }

    /// Makes a class usable: reserves its address space and registers it, so that frames can be moved into it.
    pub fn prepare(&self, class: usize, backend: &Backend) -> Result<(), Error> {
        let mut classes = self.classes.lock();
        let (Some(entry), Some(base)) = (classes.get_mut(class), self.bases.get(class)) else { return Ok(()) };
        if entry.is_some() {
            return Ok(());
        }
        let bays = self.extent / bytes(class);
        let full = MappedArray::new(bays)?;
        let empty = MappedArray::new(bays)?;
        let start = vm::reserve(self.extent, vm::HUGE)?.as_ptr();
        let advice = if class == HUGE_CLASS { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: our own fresh range; without huge pages it works in small ones. A child of fork must not share frames.
        unsafe {
            let _ = vm::advise(start, self.extent, advice);
            let _ = vm::advise(start, self.extent, libc::MADV_DONTFORK);
            let _ = vm::advise(start, self.extent, libc::MADV_DONTDUMP);
        }
        backend.add_bays(start as usize, self.extent)?;
        base.store(start as usize, Relaxed);
        *entry = Some(Class { base: start as usize, bays, full, empty, fulls: 0, empties: 0, fresh: 0 });
        Ok(())
    }

    /// Advises the kernel of every bay that can be used.
    pub fn advise(&self, advice: i32) {
        for base in self.bases.iter().map(|b| b.load(Relaxed)).filter(|base| *base != 0) {
            // SAFETY: our own mapping; advice about fork changes no contents.
            let _ = unsafe { vm::advise(base as *mut u8, self.extent, advice) };
        }
    }

    /// In a child of fork: has the backend take over every class.
    pub fn take_over(&self, backend: &Backend) -> Result<(), Error> {
        let mut bases = self.bases.iter().map(|b| b.load(Relaxed)).filter(|base| *base != 0);
        bases.try_for_each(|base| backend.take_over_bays(base, self.extent))
    }

    /// Where a bay is.
    pub fn address(&self, class: usize, bay: Bay) -> usize {
        self.bases.get(class).map_or(0, |b| b.load(Relaxed)) + bay as usize * bytes(class)
    }

    /// Bytes of free frames plus what the budget would still allow.
    pub fn headroom(&self) -> usize {
        self.free_bytes.load(Relaxed) + account::budget().saturating_sub(account::resident())
    }

    /// Bytes of free frames.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes.load(Relaxed)
    }

    /// A frame: a free one, or a new one if the budget allows it now, if need be in exchange for free ones of other sizes.
    pub fn take(&self, class: usize, backend: &Backend) -> Option<Frame> {
        if let Some(bay) = self.pop_full(class) {
            return Some(Frame { bay, fresh: false });
        }
        let fits = || account::held(Holder::Frames) + bytes(class) <= backend.most_bytes();
        while !fits() || !account::try_charge(Holder::Frames, bytes(class)) {
            if !self.release_one(class) {
                return None;
            }
        }
        let frame = self.pop_empty(class).and_then(|bay| self.populate(class, bay, backend));
        if frame.is_none() {
            account::uncharge(Holder::Frames, bytes(class));
        }
        frame
    }

    /// Asks the kernel for a frame in an empty bay.
    fn populate(&self, class: usize, bay: Bay, backend: &Backend) -> Option<Frame> {
        let huge = class == HUGE_CLASS;
        // SAFETY: the bay was taken for us and is empty.
        let made = unsafe { backend.make_frame(self.address(class, bay), bytes(class), huge) };
        let Some(as_wished) = made else {
            self.push_empty(class, bay);
            return None;
        };
        if huge {
            self.huge_asked.fetch_add(1, Relaxed);
            self.huge_refused.fetch_add(usize::from(!as_wished), Relaxed);
        }
        Some(Frame { bay, fresh: true })
    }

    /// A bay to move a frame into.
    pub fn take_empty(&self, class: usize) -> Option<Bay> {
        self.pop_empty(class)
    }

    /// The frame of this bay is free.
    pub fn give(&self, class: usize, bay: Bay) {
        let mut classes = self.classes.lock();
        if let Some(Some(c)) = classes.get_mut(class)
            && let Some(place) = c.full.get_mut(c.fulls)
        {
            *place = bay;
            c.fulls += 1;
        }
        self.free_bytes.fetch_add(bytes(class), Relaxed);
    }

    /// The frame of this bay went into a region.
    pub fn give_empty(&self, class: usize, bay: Bay) {
        self.push_empty(class, bay);
    }

    /// Gives a free frame of any class but `except` back to the kernel.
    fn release_one(&self, except: usize) -> bool {
        (0..CLASSES).rev().filter(|class| *class != except).any(|class| self.release(class))
    }

    /// Gives one free frame of a class back to the kernel and the budget.
    pub fn release(&self, class: usize) -> bool {
        let Some(bay) = self.pop_full(class) else { return false };
        self.scrap(class, bay);
        true
    }

    /// The frame of this bay is free, and goes back to the kernel and the budget.
    pub fn scrap(&self, class: usize, bay: Bay) {
        // SAFETY: a free frame of ours; the bay is empty afterwards.
        unsafe { vm::drop_pages(self.address(class, bay), bytes(class)) };
        self.push_empty(class, bay);
        account::uncharge(Holder::Frames, bytes(class));
    }

    /// Gives free frames of every class back until `bytes` of them are left.
    pub fn trim(&self, keep: usize) {
        while self.free_bytes() > keep && (0..CLASSES).any(|class| self.release(class)) {}
    }

    fn pop_full(&self, class: usize) -> Option<Bay> {
        let mut classes = self.classes.lock();
        let c = classes.get_mut(class)?.as_mut()?;
        c.fulls = c.fulls.checked_sub(1)?;
        let bay = c.full.get(c.fulls).copied();
        self.free_bytes.fetch_sub(bytes(class), Relaxed);
        bay
    }

    fn pop_empty(&self, class: usize) -> Option<Bay> {
        let mut classes = self.classes.lock();
        let c = classes.get_mut(class)?.as_mut()?;
        if c.empties > 0 {
            c.empties -= 1;
            return c.empty.get(c.empties).copied();
        }
        let bay = (c.fresh < c.bays).then_some(c.fresh as u32)?;
        c.fresh += 1;
        Some(bay)
    }

    fn push_empty(&self, class: usize, bay: Bay) {
        let mut classes = self.classes.lock();
        if let Some(Some(c)) = classes.get_mut(class)
            && let Some(place) = c.empty.get_mut(c.empties)
        {
            *place = bay;
            c.empties += 1;
        }
    }

    /// Ends every class: no frame is in use any more.
    pub fn clear(&self, backend: &Backend) {
        self.trim(0);
        let mut classes = self.classes.lock();
        for (entry, base) in classes.iter_mut().zip(&self.bases) {
            if let Some(class) = entry.take() {
                backend.remove(class.base, self.extent);
                base.store(0, Relaxed);
                if let Some(start) = core::ptr::NonNull::new(class.base as *mut u8) {
                    // SAFETY: reserved by `prepare` with this extent; no frame of it is used.
                    unsafe { vm::release(start, self.extent) };
                }
            }
        }
    }
}
