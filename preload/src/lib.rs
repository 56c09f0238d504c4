//! libqmem_preload.so: qmem as the malloc of a program that knows nothing of it. Every C function here has the name of one of
//! libc's or of C++'s; what they do is in `blocks.rs`, which is the only file that names the heap and the pager. Called by the
//! dynamic linker (`start`, `end`) and by everything in the process. Never panics, never allocates elsewhere: what it calls runs
//! before the program's first instruction and after its last.
//!
//! The library also exports the whole C API of qmem, so that a program that is linked with qmem and preloaded has one registry,
//! one budget and one pager.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod blocks;
mod calls;
mod family;
mod maps;
mod math;
mod next;
mod report;
mod streams;
mod vectors;

/// Called once by the dynamic linker, after libc's own start and before the program's. Allocations come earlier: they are heap
/// blocks without a budget.
extern "C" fn start() {
    calls::prepare();
    blocks::start();
}

/// Called when the program ends by exit(3) or by returning from main.
extern "C" fn end() {
    qmem::heap::verify();
    qmem::system::status::publish_last();
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;
