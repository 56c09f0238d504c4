//! What is said on stderr: refused blocks, once in a while, and bad pointers, then abort. Called by `blocks.rs`.

use core::fmt::Arguments;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use qmem::os::{output, worker};

/// Seconds between two lines about refused blocks.
const PAUSE: usize = 10;

/// Says that a block was refused; at most one line every few seconds, as a program that ignores NULL may ask for ever.
#[cold]
pub fn refused(size: usize, error: &qmem::error::Error) {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    let (now, told) = (worker::seconds(), TOLD.load(Relaxed));
    if told != 0 && now < told + PAUSE {
        return;
    }
    if TOLD.compare_exchange(told, now, Relaxed, Relaxed).is_ok() {
        output::line(format_args!("qmem: a block of {size} bytes was refused: {error}"));
    }
}

/// Ends the process: its memory is in disorder, and to go on would lose data.
#[cold]
pub fn bad_pointer(arguments: Arguments<'_>) -> ! {
    output::line(arguments);
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}
