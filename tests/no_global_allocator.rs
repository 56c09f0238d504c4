//! Heap, registry and the pager's codecs never allocate through the global allocator: one that counts reads the same after they were used.
#![allow(clippy::undocumented_unsafe_blocks)] // blocks are live, and the allocator passes on to the system's

use qmem::codec::amplitude::{self, Element, Mode, Request};
use qmem::codec::lz4;
use qmem::pool::{self, objects};
use qmem::registry::Layout;
use qmem::{heap, registry};
use std::alloc::{GlobalAlloc, Layout as Wanted, System};
use std::cell::Cell;
use std::sync::Mutex;

struct Counting;

thread_local! {
    /// By thread: the harness has one of its own that allocates when it likes.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, request: Wanted) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        unsafe { System.alloc(request) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, request: Wanted) {
        CALLS.set(CALLS.get() + 1);
        unsafe { System.dealloc(ptr, request) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn pools() {
    for thread_cache in [false, true] {
        let config = pool::Config { sizes: &[64, 3000, 100_000], initial: 3, max: 50, thread_cache };
        let handle = pool::create(&config).unwrap();
        for size in [1, 64, 65, 99_000] {
            let blocks: [_; 50] = std::array::from_fn(|_| pool::allocate(handle, size).ok());
            assert!(pool::allocate(handle, size).is_err() && pool::warm(handle, size, 50).is_err());
            blocks.into_iter().flatten().for_each(|block| unsafe { pool::release(handle, block.as_ptr()).unwrap() });
        }
        assert_eq!(pool::stats(handle).unwrap().live, 0);
        pool::trim(handle).unwrap();
        unsafe { pool::destroy(handle, &mut |_, _| ()).unwrap() };
    }
    unsafe extern "C" fn make(next: *mut std::ffi::c_void) -> *mut std::ffi::c_void {
        unsafe { *next.cast::<usize>() += 8 };
        unsafe { *next.cast::<usize>() as *mut std::ffi::c_void }
    }
    let mut next = 0usize;
    let user = (&raw mut next).cast();
    let handle =
        objects::create(&objects::Config { create: make, reset: None, destroy: None, user, initial: 3, max: 200 }).unwrap();
    let objects: [usize; 200] = std::array::from_fn(|_| objects::acquire(handle, 0).unwrap());
    assert!(objects::acquire(handle, 1).is_err());
    objects.into_iter().for_each(|object| objects::release(handle, object).unwrap());
    unsafe { objects::destroy(handle, &mut |_| ()).unwrap() };
}

fn work() {
    let mut blocks = [std::ptr::null_mut::<u8>(); 500];
    for (i, block) in blocks.iter_mut().enumerate() {
        let size = [16, 40, 300, 5000, 70_000, 600_000][i % 6] + i;
        *block = heap::allocate(size, 64, i % 2 == 0, 1).unwrap().as_ptr();
        *block = unsafe { registry::resize(*block, size * 2, 64) }.unwrap().as_ptr();
        registry::retain(*block).unwrap();
        let layout = Layout { num_dims: 2, dimensions: [4; 16], strides: [1; 16], offset: 0 };
        registry::set_layout(*block, &layout).unwrap();
    }
    let foreign = [0u8; 64];
    registry::track(foreign.as_ptr(), 64).unwrap();
    registry::for_each_live(1, &mut |info| assert!(registry::references(info.start) > 0));
    registry::untrack(foreign.as_ptr()).unwrap();
    for block in blocks {
        assert_eq!(registry::release(block).unwrap(), 1);
        unsafe { registry::free(block) }.unwrap();
        assert!(unsafe { registry::free(block) }.is_err());
    }
    for size in [0, 16, 1000, 5000, 50_000, 3 << 20] {
        let block = heap::malloc(size);
        unsafe { heap::free_or(block, |block| assert!(heap::free(block))) };
    }
    heap::trim();
    heap::stats();
    pools();
    codecs();
}

/// A chunk of a wave, of noise and of a constant through each mode of the lossy codec, in static room.
fn codecs() {
    const BYTES: usize = 256 << 10;
    struct Room {
        context: lz4::Context,
        chunk: [u8; BYTES],
        work: [u8; amplitude::work_bytes(BYTES, Element::C128)],
        out: [u8; amplitude::bound(BYTES, Element::C128)],
    }
    static ROOM: Mutex<Room> = Mutex::new(Room { context: lz4::Context::new(), chunk: [0; BYTES], work: [0; _], out: [0; _] });
    let room = &mut *ROOM.lock().unwrap();
    for kind in 0..3u32 {
        for (i, number) in room.chunk.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let noise = (i as u32).wrapping_mul(2654435761).wrapping_mul(i as u32 | 1) >> 8;
            let x = [(i as f64 * 0.3).sin(), f64::from(noise) / f64::from(1 << 24) - 0.5, 0.25][kind as usize];
            *number = x.to_le_bytes();
        }
        for mode in [Mode::Fast, Mode::Dense] {
            let request = Request { element: Element::C128, max_error: 0.5, mode };
            let done = amplitude::encode(request, &mut room.context, &room.chunk, &mut room.work, &mut room.out).unwrap();
            assert!(amplitude::decode(&room.out[..done.len], &mut room.chunk, &mut room.work));
        }
    }
}

#[test]
fn nothing_is_allocated_globally() {
    let before = CALLS.get();
    work();
    assert_eq!(CALLS.get(), before);
    // Neither by a new thread's first and last steps in the heap: counted inside the thread, whose making costs std something.
    let inside = std::thread::spawn(|| {
        let before = CALLS.get();
        work();
        CALLS.get() - before
    });
    assert_eq!(inside.join().unwrap(), 0);
}
