//! The C functions: malloc and all its family, by the words of the C and POSIX standards and of glibc's manual. Called by the
//! program, its libraries and libc itself. Checks arguments and sets errno; what a block is, `blocks.rs` decides.

use crate::blocks::{self, ALIGN, Sizes, set_errno};
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use qmem::config;
use qmem::os::{output, vm};

/// Called by libqmem.so and libqmem.a when they find the preload (abi/defer.c): the program's `handle_memory_error`.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_preload_adopt_handler(handler: Option<unsafe extern "C" fn(qmem::ffi::types::memory_error_t)>) {
    if let Some(handler) = handler {
        qmem::ffi::errors::adopt_handler(handler);
    }
}

/// A block of `size` bytes, uninitialised; of 0 bytes a distinct one.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    blocks::malloc(size).cast()
}

/// An array of `count` zeroed elements of `size` bytes; ENOMEM where the product overflows.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(bytes) => blocks::calloc(bytes).cast(),
        None => no_memory(),
    }
}

fn no_memory() -> *mut c_void {
    set_errno(libc::ENOMEM);
    null_mut()
}

/// Ends the process at once, as libc's; but a block that the thread freed twice a moment ago is reported first.
#[unsafe(no_mangle)]
pub extern "C" fn _exit(status: c_int) -> ! {
    qmem::heap::verify();
    loop {
        // SAFETY: the system call does not return; what libc's own does.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// As [`_exit`], by the name that C gives it.
#[unsafe(no_mangle)]
pub extern "C" fn _Exit(status: c_int) -> ! {
    _exit(status)
}

/// Frees a block; NULL is fine. errno stays as it is.
///
/// # Safety
/// `pointer` is NULL or a live block that nobody uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(pointer: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { blocks::free(pointer.cast()) };
}

/// Free under its oldest name.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(pointer: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { free(pointer) };
}

/// C23's free that is told the size.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(pointer: *mut c_void, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { free(pointer) };
}

/// C23's free that is told alignment and size.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(pointer: *mut c_void, _alignment: usize, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { free(pointer) };
}

/// Another size for a block. As in glibc, NULL is a new block, and 0 bytes free it and give NULL.
///
/// # Safety
/// `pointer` is NULL or a live block that nobody uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    if pointer.is_null() {
        return malloc(size);
    }
    if size == 0 {
        // SAFETY: the caller's promise.
        unsafe { free(pointer) };
        return null_mut();
    }
    // SAFETY: the caller's promise.
    unsafe { blocks::resize(pointer.cast(), size).cast() }
}

/// As realloc, for `count` elements of `size` bytes; ENOMEM where the product overflows, and the block stays.
///
/// # Safety
/// As [`realloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(pointer: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(bytes) => unsafe { realloc(pointer, bytes) },
        None => no_memory(),
    }
}

/// A block at a multiple of `alignment`, a power of two that is a multiple of a pointer's size; else EINVAL. The error is the
/// result, errno stays as it is, and `*place` is written on success only.
///
/// # Safety
/// `place` points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    if !alignment.is_power_of_two() || !alignment.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let mut block = blocks::ready_aligned(size, alignment.max(ALIGN));
    if block.is_null() {
        let errno = vm::errno();
        block = blocks::allocate(size, alignment.max(ALIGN), false);
        set_errno(errno);
    }
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { place.write(block.cast()) };
    0
}

/// A block at a multiple of `alignment`, a power of two; else EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    if !alignment.is_power_of_two() {
        set_errno(libc::EINVAL);
        return null_mut();
    }
    blocks::aligned(size, alignment.max(ALIGN)).cast()
}

/// A block at a multiple of `alignment`, which is rounded up to a power of two as in glibc; EINVAL where there is none.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    match alignment.checked_next_power_of_two() {
        Some(alignment) => blocks::aligned(size, alignment.max(ALIGN)).cast(),
        None => {
            set_errno(libc::EINVAL);
            null_mut()
        }
    }
}

/// A block that starts at a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    blocks::aligned(size, vm::PAGE).cast()
}

/// A block of whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match size.max(1).checked_next_multiple_of(vm::PAGE) {
        Some(bytes) => blocks::aligned(bytes, vm::PAGE).cast(),
        None => no_memory(),
    }
}

/// Bytes that may be used at `pointer`; 0 for NULL.
///
/// # Safety
/// `pointer` is NULL or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(pointer: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    if pointer.is_null() { 0 } else { unsafe { blocks::usable(pointer.cast()) } }
}

/// Gives memory that is kept for reuse back to the kernel; 1 if there was any. The heap keeps nothing that `pad` could leave.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(blocks::trim())
}

/// Glibc's numbers, as far as they mean anything here.
fn report() -> libc::mallinfo2 {
    let Sizes { arena, mapped, used, free } = blocks::sizes();
    libc::mallinfo2 {
        arena,
        ordblks: 1,
        smblks: 0,
        hblks: 0,
        hblkhd: mapped,
        usmblks: 0,
        fsmblks: 0,
        uordblks: used,
        fordblks: free,
        keepcost: free,
    }
}

/// Sizes of the heap: `arena` and `hblkhd` are mapped in spans and in single blocks, `uordblks` in use, `fordblks` kept for reuse.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> libc::mallinfo2 {
    report()
}

/// The same in ints: what does not fit reads INT_MAX.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> libc::mallinfo {
    let wide = report();
    let int = |value: usize| c_int::try_from(value).unwrap_or(c_int::MAX);
    libc::mallinfo {
        arena: int(wide.arena),
        ordblks: int(wide.ordblks),
        smblks: int(wide.smblks),
        hblks: int(wide.hblks),
        hblkhd: int(wide.hblkhd),
        usmblks: int(wide.usmblks),
        fsmblks: int(wide.fsmblks),
        uordblks: int(wide.uordblks),
        fordblks: int(wide.fordblks),
        keepcost: int(wide.keepcost),
    }
}

/// Glibc's parameters: M_TRIM_THRESHOLD is how much the heap keeps for reuse. The others tune what this heap does not have; they
/// are accepted without effect. 0 for an unknown one or a bad value.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(parameter: c_int, value: c_int) -> c_int {
    match parameter {
        libc::M_TRIM_THRESHOLD => {
            let Ok(bytes) = usize::try_from(value) else { return 0 };
            c_int::from(config::HEAP_CACHE.set(bytes.max(config::HEAP_CACHE.min)).is_ok())
        }
        libc::M_MXFAST
        | libc::M_TOP_PAD
        | libc::M_MMAP_THRESHOLD
        | libc::M_MMAP_MAX
        | libc::M_CHECK_ACTION
        | libc::M_PERTURB
        | libc::M_ARENA_TEST
        | libc::M_ARENA_MAX => 1,
        _ => 0,
    }
}

/// Writes the sizes to stderr.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let Sizes { arena, mapped, used, free } = blocks::sizes();
    output::line(format_args!(
        "qmem: heap {arena} bytes mapped ({used} in use, {free} kept for reuse), {mapped} bytes in large blocks"
    ));
}
