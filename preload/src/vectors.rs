//! System calls that are handed several buffers at once: readv, writev and their kin, sendmsg and recvmsg. As in `calls.rs`; the
//! vectors go to the kernel as far as they can be held at once. Called by the program and its libraries.

use crate::calls::{Own, fault, hold, is_file, missing, needs_help, release};
use core::ffi::c_int;
use libc::{iovec, msghdr, off_t, ssize_t};
use qmem::paged::Hold;

/// Vectors of one call; those after them wait for the next one.
const VECTORS: usize = 64;
/// Bytes of one call.
const BYTES: usize = 8 << 20;

/// The beginning of a list of vectors, each held as far as it is in the list.
struct Part {
    vectors: [iovec; VECTORS],
    count: usize,
    bytes: usize,
    held: [Option<Hold>; VECTORS],
}

/// The next vectors from `skip` bytes on. None: the first of them cannot be held.
fn part(all: &[iovec], mut skip: usize) -> Option<Part> {
    const NOTHING: iovec = iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
    let mut part = Part { vectors: [NOTHING; VECTORS], count: 0, bytes: 0, held: [const { None }; VECTORS] };
    for vector in all {
        let passed = skip.min(vector.iov_len);
        skip -= passed;
        let (base, len) = (vector.iov_base.wrapping_byte_add(passed), (vector.iov_len - passed).min(BYTES - part.bytes));
        if len == 0 {
            continue;
        }
        let (Some(place), Some(room)) = (part.vectors.get_mut(part.count), part.held.get_mut(part.count)) else { break };
        let Some(held) = hold(base, len) else { break };
        let whole = held.bytes == vector.iov_len - passed;
        *place = iovec { iov_base: base, iov_len: held.bytes };
        part.bytes += held.bytes;
        *room = Some(held);
        part.count += 1;
        if !whole || part.bytes == BYTES {
            break;
        }
    }
    (part.count > 0).then_some(part)
}

/// The vectors, if one of them needs help and there is something to transfer.
///
/// # Safety
/// `vectors` points to `count` vectors, or is anything the kernel would refuse.
unsafe fn troubled<'a>(vectors: *const iovec, count: usize) -> Option<&'a [iovec]> {
    if vectors.is_null() || count == 0 || count > libc::UIO_MAXIOV as usize || needs_help(vectors.cast()) {
        return None;
    }
    // SAFETY: the caller's promise.
    let all = unsafe { core::slice::from_raw_parts(vectors, count) };
    all.iter().any(|v| v.iov_len > 0 && needs_help(v.iov_base)).then_some(all)
}

/// As `in_parts`, for vectors.
fn in_parts(all: &[iovec], whole: bool, mut call: impl FnMut(usize, &Part) -> ssize_t) -> ssize_t {
    let total = all.iter().fold(0usize, |sum, v| sum.saturating_add(v.iov_len));
    let mut done = 0;
    while done < total {
        let Some(part) = part(all, done) else {
            return if done > 0 { done as ssize_t } else { fault() };
        };
        let moved = call(done, &part);
        let bytes = part.bytes;
        release(part);
        if moved < 0 {
            return if done > 0 { done as ssize_t } else { moved };
        }
        done += moved as usize;
        if !whole || (moved as usize) < bytes {
            break;
        }
    }
    done as ssize_t
}

macro_rules! wrap {
    ($($(#[doc = $doc:literal])* fn $name:ident = $own:ident $symbol:literal ($($offset:ident: $offset_type:ty $(, $flags:ident: $flags_type:ty)?)?);)*) => {$(
        $(#[doc = $doc])*
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            fd: c_int, vectors: *const iovec, count: c_int $(, $offset: $offset_type $(, $flags: $flags_type)?)?
        ) -> ssize_t {
            type Function = unsafe extern "C" fn(c_int, *const iovec, c_int $(, $offset_type $(, $flags_type)?)?) -> ssize_t;
            // SAFETY: of this type in libc.
            let Some(own) = (unsafe { $own.get::<Function>() }) else { return missing() };
            // SAFETY: the caller's promise.
            let Some(all) = (unsafe { troubled(vectors, usize::try_from(count).unwrap_or(0)) }) else {
                // SAFETY: the caller's promise.
                return unsafe { own(fd, vectors, count $(, $offset $(, $flags)?)?) };
            };
            in_parts(all, is_file(fd), |_done, part| {
                $(let $offset = if $offset < 0 { $offset } else { $offset + _done as off_t };)?
                // SAFETY: parts of the caller's buffers.
                unsafe { own(fd, part.vectors.as_ptr(), part.count as c_int $(, $offset $(, $flags)?)?) }
            })
        }
        static $own: Own = Own::new($symbol);
    )*
        /// Finds the functions of this file.
        pub fn look_up_all() {
            $($own.look_up();)*
            SENDMSG.look_up();
            RECVMSG.look_up();
        }
    };
}

wrap! {
    /// readv(2).
    fn readv = READV c"readv" ();
    /// writev(2).
    fn writev = WRITEV c"writev" ();
    /// preadv(2).
    fn preadv = PREADV c"preadv" (offset: off_t);
    /// preadv(2) under its other name.
    fn preadv64 = PREADV64 c"preadv64" (offset: off_t);
    /// pwritev(2).
    fn pwritev = PWRITEV c"pwritev" (offset: off_t);
    /// pwritev(2) under its other name.
    fn pwritev64 = PWRITEV64 c"pwritev64" (offset: off_t);
    /// preadv2(2).
    fn preadv2 = PREADV2 c"preadv2" (offset: off_t, flags: c_int);
    /// preadv2(2) under its other name.
    fn preadv64v2 = PREADV64V2 c"preadv64v2" (offset: off_t, flags: c_int);
    /// pwritev2(2).
    fn pwritev2 = PWRITEV2 c"pwritev2" (offset: off_t, flags: c_int);
    /// pwritev2(2) under its other name.
    fn pwritev64v2 = PWRITEV64V2 c"pwritev64v2" (offset: off_t, flags: c_int);
}

static SENDMSG: Own = Own::new(c"sendmsg");
static RECVMSG: Own = Own::new(c"recvmsg");

/// sendmsg(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    type Function = unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t;
    // SAFETY: of this type in libc.
    let Some(own) = (unsafe { SENDMSG.get::<Function>() }) else { return missing() };
    // SAFETY: the caller's promise.
    let Some((mut copy, all)) = (unsafe { troubled_message(message) }) else {
        // SAFETY: the caller's promise.
        return unsafe { own(fd, message, flags) };
    };
    in_parts(all, false, |_, part| {
        copy.msg_iov = part.vectors.as_ptr().cast_mut();
        copy.msg_iovlen = part.count;
        // SAFETY: the caller's message with the parts of its buffers that are held.
        unsafe { own(fd, &raw const copy, flags) }
    })
}

/// recvmsg(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    type Function = unsafe extern "C" fn(c_int, *mut msghdr, c_int) -> ssize_t;
    // SAFETY: of this type in libc.
    let Some(own) = (unsafe { RECVMSG.get::<Function>() }) else { return missing() };
    // SAFETY: the caller's promise.
    let Some((mut copy, all)) = (unsafe { troubled_message(message) }) else {
        // SAFETY: the caller's promise.
        return unsafe { own(fd, message, flags) };
    };
    let (vectors, count) = (copy.msg_iov, copy.msg_iovlen);
    let got = in_parts(all, false, |_, part| {
        copy.msg_iov = part.vectors.as_ptr().cast_mut();
        copy.msg_iovlen = part.count;
        // SAFETY: the caller's message with the parts of its buffers that are held.
        unsafe { own(fd, &raw mut copy, flags) }
    });
    copy.msg_iov = vectors;
    copy.msg_iovlen = count;
    // SAFETY: the caller's message: the kernel's answers besides the bytes.
    unsafe { message.write(copy) };
    got
}

/// A copy of a message and its vectors, if one of them needs help.
///
/// # Safety
/// `message` points to a message, or is anything the kernel would refuse.
unsafe fn troubled_message<'a>(message: *const msghdr) -> Option<(msghdr, &'a [iovec])> {
    if message.is_null() || needs_help(message.cast()) {
        return None;
    }
    // SAFETY: the caller's promise.
    let copy = unsafe { message.read() };
    // SAFETY: as above.
    let all = unsafe { troubled(copy.msg_iov, copy.msg_iovlen)? };
    Some((copy, all))
}
