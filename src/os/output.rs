//! Lines on stderr by write(2): no lock, no allocation, usable on the fault path and from signal handlers.

use crate::ds::Text;
use core::fmt;

/// Writes one line (cut at 1 KiB) to stderr in a single write(2).
pub fn line(arguments: fmt::Arguments<'_>) {
    let mut text = Text::<1024>::new();
    let _ = fmt::Write::write_fmt(&mut text, arguments);
    let mut bytes = [0u8; 1025];
    let len = text.as_str().len();
    bytes[..len].copy_from_slice(text.as_str().as_bytes());
    bytes[len] = b'\n';
    // SAFETY: the buffer is ours and `len + 1` bytes long at least; a failed or short write has no one to be told.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), len + 1) };
}
