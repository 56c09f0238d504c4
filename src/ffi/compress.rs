//! Chapter "compression, deduplication" of <qmem.h>. Called by C only. Compressors and stores are plain objects behind pointers; a
//! program hands back only what it was given, and destroys it once.

use super::guard::{answer, enumerator, fraction, reference, status, value, zero};
use super::types::*;
use crate::compress::{self, Algorithm, Compressor, Foreign, Settings, dedup::Dedup};
use crate::error::Error;
use crate::fail;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr::null_mut;

/// A compressor. Any number of threads may use one at a time.
pub struct qmem_compressor_t {
    _opaque: [u8; 0],
}

/// How a compressor works. Zero is the default of each field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_compressor_config_t {
    /// "none" (checksums only), "lz4", "zstd", "snappy", "shuffle-lz4" (bytes or bits of numbers reordered, then LZ4), "pco" (numbers),
    /// "amplitude" (complex or real amplitudes, lossy within the tolerance), or a name given to `qmem_compressor_register`.
    /// "jpeg2000" is MEMORY_STATUS_UNSUPPORTED in this build.
    pub algorithm: *const c_char,
    /// Effort. lz4: -64 to 12, from 3 on its HC variant, below 0 ever faster; zstd: -7 to 22, 0 is 3; shuffle-lz4: 0 to 12, from 3 on
    /// HC; pco: 0 to 12, 0 is 8; amplitude: 1 fast, 0 and 2 dense; others: 0.
    pub level: c_int,
    /// Bytes compressed on their own, and by one thread: 4096 to 1 GiB, a multiple of the element; 0 is 64 MiB.
    pub chunk_size: usize,
    /// Chunks at a time, at most 256; 0 is as many as there are cores.
    pub threads: u32,
    /// What the bytes are; "amplitude" needs a kind of number, "pco" and "shuffle-lz4" work better with it.
    pub element: MaybeUninit<qmem_element_t>,
    /// "amplitude": the L2 norm of the error over that of the whole input, above 0 and below 1; its square is the infidelity. Others: 0.
    pub tolerance: f64,
    /// Of images, which this build does not compress: 0.
    pub quality: c_int,
    /// Of images: 0.
    pub width: u32,
    /// Of images: 0.
    pub height: u32,
    /// Of images: 0.
    pub components: u32,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// A codec of the program's own. Its functions are called from any thread, several at a time, without a qmem lock held.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_codec_t {
    /// Bytes that are always enough for `size` bytes compressed.
    pub bound: Option<unsafe extern "C" fn(size: usize, user: *mut c_void) -> usize>,
    /// Compresses `size` bytes at `src` into at most `cap` bytes at `dst`; `*written` is how many. MEMORY_STATUS_OK or a failure.
    pub compress: Option<
        unsafe extern "C" fn(
            src: *const c_void,
            size: usize,
            dst: *mut c_void,
            cap: usize,
            written: *mut usize,
            user: *mut c_void,
        ) -> memory_status_t,
    >,
    /// The inverse: `cap` is exactly the size that was compressed, and `*written` must become it.
    pub decompress: Option<
        unsafe extern "C" fn(
            src: *const c_void,
            size: usize,
            dst: *mut c_void,
            cap: usize,
            written: *mut usize,
            user: *mut c_void,
        ) -> memory_status_t,
    >,
    /// Passed to each; stays the program's.
    pub user: *mut c_void,
}

/// A store that keeps equal blocks once. Any number of threads may use one at a time.
pub struct qmem_dedup_t {
    _opaque: [u8; 0],
}

/// What is in a store now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_dedup_stats_t {
    /// Bytes of all items.
    pub bytes_in: u64,
    /// Bytes of their different blocks, which are what is kept.
    pub bytes_unique: u64,
    /// bytes_in / bytes_unique; 1 if the store is empty.
    pub dedup_ratio: f64,
    /// (bytes_in - bytes_unique) / 1e9.
    pub space_saved_gb: f64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Text from C.
///
/// # Safety
/// `text` is NULL or a C string that nobody changes during the call.
unsafe fn words<'a>(text: *const c_char, name: &str) -> Result<&'a str, Error> {
    // SAFETY: the caller's promise; a char is aligned anywhere.
    unsafe { reference(text, name)? };
    // SAFETY: not NULL; the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| fail!(InvalidArgument, "{name} is no text in UTF-8"))
}

/// Bytes from C. NULL is fine for none.
///
/// # Safety
/// `bytes` is NULL or points to `size` bytes that nobody writes during the call.
unsafe fn input<'a>(bytes: *const c_void, size: usize, name: &str) -> Result<&'a [u8], Error> {
    if size == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise.
    unsafe { reference(bytes.cast::<MaybeUninit<u8>>(), name)? };
    if size > isize::MAX as usize {
        return Err(fail!(InvalidArgument, "{name} has {size} bytes, more than any object"));
    }
    // SAFETY: not NULL, and no longer than an object may be; the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(bytes.cast(), size) })
}

/// Room that C gives. NULL is fine for none.
///
/// # Safety
/// `bytes` is NULL or points to `cap` bytes that nobody else touches during the call.
unsafe fn output<'a>(bytes: *mut c_void, cap: usize, name: &str) -> Result<&'a mut [u8], Error> {
    if cap == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the caller's promise.
    unsafe { reference(bytes.cast::<MaybeUninit<u8>>(), name)? };
    // A capacity may be "as much as you like"; no object is larger than this.
    let cap = cap.min(isize::MAX as usize);
    // SAFETY: not NULL, no longer than an object may be, and the caller's to write; bytes are only written before they are read.
    Ok(unsafe { core::slice::from_raw_parts_mut(bytes.cast(), cap) })
}

/// # Safety
/// `config.algorithm` is NULL or a C string.
unsafe fn checked(config: &qmem_compressor_config_t) -> Result<Settings, Error> {
    // SAFETY: the caller's promise.
    let name = unsafe { words(config.algorithm, "algorithm")? };
    let algorithm = Algorithm::named(name)?;
    for (number, field) in [
        (i64::from(config.quality), "quality"),
        (i64::from(config.width), "width"),
        (i64::from(config.height), "height"),
        (i64::from(config.components), "components"),
    ] {
        if number != 0 {
            return Err(fail!(
                InvalidArgument,
                "{field} = {number} is for images, which '{name}' does not compress; set it to 0"
            ));
        }
    }
    zero(&config.reserved, "reserved")?;
    Ok(Settings {
        algorithm,
        level: config.level,
        chunk_size: config.chunk_size,
        threads: config.threads as usize,
        element: super::paged::element(enumerator(config.element, "element")?),
        tolerance: fraction(config.tolerance, "tolerance")?,
    })
}

/// Makes a compressor by a config, which is copied; the program destroys it. NULL on failure: MEMORY_STATUS_UNSUPPORTED for an
/// algorithm that is unknown or cannot take the element, MEMORY_STATUS_INVALID_ARGUMENT for a number that is out of its range. Between
/// calls it keeps what one thread worked with, up to about a chunk's size.
///
/// # Safety
/// `config` is NULL or points to a config.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_compressor_create(config: *const qmem_compressor_config_t) -> *mut qmem_compressor_t {
    value(null_mut(), || {
        // SAFETY: the caller's promise.
        let settings = unsafe { checked(reference(config, "config")?)? };
        Ok(Box::into_raw(Box::new(Compressor::new(settings)?)).cast())
    })
}

/// # Safety
/// `c` is NULL or a live compressor.
unsafe fn compressor<'a>(c: *const qmem_compressor_t) -> Result<&'a Compressor, Error> {
    // SAFETY: the caller's promise; what was given out is a Compressor.
    unsafe { reference(c.cast::<Compressor>(), "c") }
}

/// Bytes that are always enough for `size` bytes compressed by `c`; SIZE_MAX if there is no such number; 0 if `c` is NULL.
///
/// # Safety
/// `c` is NULL or a live compressor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_compress_bound(c: *const qmem_compressor_t, size: usize) -> usize {
    // SAFETY: the caller's promise.
    value(0, || Ok(unsafe { compressor(c)? }.bound(size)))
}

/// Compresses `size` bytes at `src` into `dst`, which has room for `cap` bytes and does not overlap them; `*written` is how many it
/// took. MEMORY_STATUS_LIMIT if they do not fit (`qmem_compress_bound` bytes always do); what is in `dst` then is of no use. The
/// result says itself what it is, and every byte of it is covered by a checksum.
///
/// # Safety
/// `c` is NULL or a live compressor; `src` and `dst` are NULL or as long as said; `written` is NULL or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_compress(
    c: *mut qmem_compressor_t,
    src: *const c_void,
    size: usize,
    dst: *mut c_void,
    cap: usize,
    written: *mut usize,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise, here and below.
        let compressor = unsafe { compressor(c)? };
        // SAFETY: as above. Nothing is written yet.
        unsafe { reference(written.cast::<MaybeUninit<usize>>(), "written")? };
        // SAFETY: as above.
        let (from, to) = unsafe { (input(src, size, "src")?, output(dst, cap, "dst")?) };
        let done = compressor.compress(from, to)?;
        // SAFETY: as above.
        unsafe { answer(written, "written", done) }
    })
}

/// Bytes that decompressing `size` bytes at `src` will give. MEMORY_STATUS_CORRUPT if they are no compressed buffer.
///
/// # Safety
/// `src` is NULL or points to `size` bytes; `out` is NULL or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_decompressed_size(src: *const c_void, size: usize, out: *mut usize) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise. Nothing is written yet.
        unsafe { reference(out.cast::<MaybeUninit<usize>>(), "out")? };
        // SAFETY: as above.
        let bytes = unsafe { input(src, size, "src")? };
        // SAFETY: as above.
        unsafe { answer(out, "out", compress::decompressed_size(bytes)?) }
    })
}

/// Decompresses what any compressor made; of `c` only the number of threads counts. MEMORY_STATUS_CORRUPT if any byte is not as it
/// was written, MEMORY_STATUS_LIMIT if `cap` is too little; never a write beyond `cap`. A failure may leave part of the result in `dst`.
///
/// # Safety
/// As for `qmem_compress`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_decompress(
    c: *mut qmem_compressor_t,
    src: *const c_void,
    size: usize,
    dst: *mut c_void,
    cap: usize,
    written: *mut usize,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise, here and below.
        let compressor = unsafe { compressor(c)? };
        // SAFETY: as above. Nothing is written yet.
        unsafe { reference(written.cast::<MaybeUninit<usize>>(), "written")? };
        // SAFETY: as above.
        let (from, to) = unsafe { (input(src, size, "src")?, output(dst, cap, "dst")?) };
        let done = compressor.decompress(from, to)?;
        // SAFETY: as above.
        unsafe { answer(written, "written", done) }
    })
}

/// Frees a compressor; NULL is fine.
///
/// # Safety
/// `c` is NULL or a live compressor that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_compressor_destroy(c: *mut qmem_compressor_t) {
    value((), || {
        if !c.is_null() {
            // SAFETY: it came from Box::into_raw in qmem_compressor_create, and the caller gives it up.
            drop(unsafe { Box::from_raw(c.cast::<Compressor>()) });
        }
        Ok(())
    });
}

/// Makes a codec known under a name of 1 to 63 bytes that is none of qmem's own; the config and the name are copied. The same name
/// again replaces it for compressors created and buffers decompressed from then on. MEMORY_STATUS_LIMIT beyond 64 names.
///
/// # Safety
/// `algorithm` is NULL or a C string; `codec` is NULL or points to a codec whose functions keep to what is said there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_compressor_register(algorithm: *const c_char, codec: *const qmem_codec_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let (name, codec) = unsafe { (words(algorithm, "algorithm")?, reference(codec, "codec")?) };
        let (Some(bound), Some(compress), Some(decompress)) = (codec.bound, codec.compress, codec.decompress) else {
            return Err(fail!(InvalidArgument, "the codec '{name}' needs all of bound, compress and decompress"));
        };
        type AsC = unsafe extern "C" fn(*const c_void, usize, *mut c_void, usize, *mut usize, *mut c_void) -> memory_status_t;
        type AsNumber = unsafe extern "C" fn(*const c_void, usize, *mut c_void, usize, *mut usize, *mut c_void) -> i32;
        // A status that C makes up may be none of ours: it is read as the number that it is.
        // SAFETY: the types differ only in what they return, which is an int to C in both.
        let number = |function: AsC| unsafe { core::mem::transmute::<AsC, AsNumber>(function) };
        compress::register(name, Foreign { bound, compress: number(compress), decompress: number(decompress), user: codec.user })
    })
}

/// Makes a deduplicating store of blocks of `block_size` bytes (64 bytes to 16 MiB; 0 is 4096), found by `hash`: "xxhash" or NULL. The
/// program destroys it. NULL on failure: MEMORY_STATUS_UNSUPPORTED for another hash.
///
/// # Safety
/// `hash` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_create(block_size: usize, hash: *const c_char) -> *mut qmem_dedup_t {
    value(null_mut(), || {
        // SAFETY: the caller's promise.
        let hash = if hash.is_null() { "xxhash" } else { unsafe { words(hash, "hash")? } };
        if hash != "xxhash" {
            return Err(fail!(
                Unsupported,
                "hash '{hash}' is unknown: 'xxhash' is (XXH3; a block that it finds is compared byte by byte)"
            ));
        }
        Ok(Box::into_raw(Box::new(Dedup::new(block_size)?)).cast())
    })
}

/// # Safety
/// `d` is NULL or a live store.
unsafe fn store<'a>(d: *const qmem_dedup_t) -> Result<&'a Dedup, Error> {
    // SAFETY: the caller's promise; what was given out is a Dedup.
    unsafe { reference(d.cast::<Dedup>(), "d") }
}

/// Keeps a copy of `size` bytes, of which blocks that are there already cost nothing; `*id` is for getting it back, and never 0.
///
/// # Safety
/// `d` is NULL or a live store; `data` is NULL or points to `size` bytes; `id` is NULL or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_put(d: *mut qmem_dedup_t, data: *const c_void, size: usize, id: *mut u64) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise, here and below.
        let store = unsafe { store(d)? };
        // SAFETY: as above. Nothing is written yet.
        unsafe { reference(id.cast::<MaybeUninit<u64>>(), "id")? };
        // SAFETY: as above.
        let data = unsafe { input(data, size, "data")? };
        // SAFETY: as above.
        unsafe { answer(id, "id", store.put(data)?) }
    })
}

/// Copies an item to `dst`; `*written` is its size. MEMORY_STATUS_LIMIT if `cap` is less, MEMORY_STATUS_NOT_FOUND for an unknown id.
///
/// # Safety
/// `d` is NULL or a live store; `dst` is NULL or has room for `cap` bytes; `written` is NULL or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_get(
    d: *mut qmem_dedup_t,
    id: u64,
    dst: *mut c_void,
    cap: usize,
    written: *mut usize,
) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise, here and below.
        let store = unsafe { store(d)? };
        // SAFETY: as above. Nothing is written yet.
        unsafe { reference(written.cast::<MaybeUninit<usize>>(), "written")? };
        // SAFETY: as above.
        let to = unsafe { output(dst, cap, "dst")? };
        // SAFETY: as above.
        unsafe { answer(written, "written", store.get(id, to)?) }
    })
}

/// Forgets an item; blocks that no other item has are freed. MEMORY_STATUS_NOT_FOUND for an unknown id.
///
/// # Safety
/// `d` is NULL or a live store.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_remove(d: *mut qmem_dedup_t, id: u64) -> memory_status_t {
    // SAFETY: the caller's promise.
    status(|| unsafe { store(d)? }.remove(id))
}

/// What is in the store now.
///
/// # Safety
/// `d` is NULL or a live store; `stats` is NULL or points to room for the numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_get_stats(d: *const qmem_dedup_t, stats: *mut qmem_dedup_stats_t) -> memory_status_t {
    status(|| {
        // SAFETY: the caller's promise.
        let numbers = unsafe { store(d)? }.numbers();
        let (all, unique) = (numbers.bytes_in, numbers.bytes_unique);
        let stats_now = qmem_dedup_stats_t {
            bytes_in: all,
            bytes_unique: unique,
            dedup_ratio: if unique == 0 { 1.0 } else { all as f64 / unique as f64 },
            space_saved_gb: (all - unique) as f64 / 1e9,
            reserved: [0; 4],
        };
        // SAFETY: as above.
        unsafe { answer(stats, "stats", stats_now) }
    })
}

/// Frees a store with all that is in it; NULL is fine.
///
/// # Safety
/// `d` is NULL or a live store that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_dedup_destroy(d: *mut qmem_dedup_t) {
    value((), || {
        if !d.is_null() {
            // SAFETY: it came from Box::into_raw in qmem_dedup_create, and the caller gives it up.
            drop(unsafe { Box::from_raw(d.cast::<Dedup>()) });
        }
        Ok(())
    });
}
