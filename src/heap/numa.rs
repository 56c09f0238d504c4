//! On which memory node blocks lie, by the setting HEAP_NUMA. The kernel puts a page on the node of the thread that touches it first,
//! so a thread's own heap is near by itself; what is decided here is which thread gets the heap that another one left, and whether
//! memory is spread instead. Called where the heap maps memory and where heaps change hands.

use super::local::Heap;
use crate::config;
use crate::os::vm;
use crate::topology;
use core::cell::Cell;

const ANY: usize = 2;
const SPREAD: usize = 3;
/// Idle heaps that are looked at for one of the own node.
const LOOK: usize = 64;

/// New address space of the heap, before it is touched. Where the kernel refuses, it places the pages as it does without.
pub fn place(start: usize, bytes: usize) {
    if config::HEAP_NUMA.get() == SPREAD {
        vm::interleave(start, bytes);
    }
}

/// The heap was used on this node: its free pages lie there.
pub fn note(heap: &Heap) {
    heap.node.set(topology::here());
}

/// Takes one out of a list of idle heaps: one that was used on the caller's node before others, the first one before later ones. True:
/// it comes from another node, so that its free pages had better go.
///
/// # Safety
/// The list is the caller's and of heaps that nobody runs.
pub unsafe fn adopt(first: &Cell<*const Heap>) -> Option<(&'static Heap, bool)> {
    if config::HEAP_NUMA.get() == ANY {
        // SAFETY: the caller's promise.
        return unsafe { take(first, |_| true) }.map(|heap| (heap, false));
    }
    let here = topology::here();
    // SAFETY: the caller's promise.
    unsafe {
        match take(first, |heap| heap.node.get() == here) {
            Some(near) => Some((near, false)),
            None => take(first, |_| true).map(|far| (far, true)),
        }
    }
}

/// Takes this one out of the list, if it is among the first and was used on the caller's node.
///
/// # Safety
/// As for [`adopt`].
pub unsafe fn adopt_this(first: &Cell<*const Heap>, wanted: &Heap) -> Option<&'static Heap> {
    let near = |heap: &Heap| config::HEAP_NUMA.get() == ANY || heap.node.get() == topology::here();
    // SAFETY: the caller's promise.
    unsafe { take(first, |heap| core::ptr::eq(heap, wanted) && near(heap)) }
}

/// # Safety
/// As for [`adopt`].
unsafe fn take(first: &Cell<*const Heap>, fits: impl Fn(&Heap) -> bool) -> Option<&'static Heap> {
    let mut place = first;
    for _ in 0..LOOK {
        // SAFETY: the caller's promise; heaps are never unmapped.
        let heap: &'static Heap = unsafe { place.get().as_ref()? };
        if fits(heap) {
            place.set(heap.next_idle.get());
            return Some(heap);
        }
        place = &heap.next_idle;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr::null;

    #[test]
    fn a_heap_of_the_own_node_goes_first_and_none_is_lost() {
        let heaps: Vec<&'static Heap> = (0..5).map(|_| &*Box::leak(Box::new(Heap::without_memory(null())))).collect();
        let first = Cell::new(null());
        for (heap, node) in heaps.iter().zip([topology::here(), 900, topology::here(), 901, 902]) {
            heap.node.set(node);
            heap.next_idle.set(first.replace(*heap));
        }
        // SAFETY: the list is the test's, of heaps that nobody runs.
        let taken =
            || unsafe { adopt(&first) }.map(|(heap, far)| (heaps.iter().position(|h| core::ptr::eq(*h, heap)).unwrap(), far));
        // SAFETY: as above.
        let this = |heap: &Heap| unsafe { adopt_this(&first, heap) }.is_some();
        assert_eq!([this(heaps[1]), this(heaps[0]), this(heaps[0])], [false, true, false]);
        heaps[0].next_idle.set(first.replace(heaps[0]));
        assert_eq!([taken(), taken(), taken()], [Some((0, false)), Some((2, false)), Some((4, true))]);
        assert_eq!([taken(), taken(), taken()], [Some((3, true)), Some((1, true)), None]);
    }
}
