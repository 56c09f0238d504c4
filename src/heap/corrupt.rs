//! The one report of a heap that can no longer be trusted: a line on stderr, then abort. Called by the heap where a link or a
//! state byte is not what qmem wrote. Never allocates, never returns.

use crate::os::output;

/// Ends the process: `what` was found at `address`.
#[cold]
pub fn report(what: &str, address: usize) -> ! {
    output::line(format_args!(
        "qmem: heap corrupted: {what} at {address:#x}; a program error wrote outside a live block or freed it twice"
    ));
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}
