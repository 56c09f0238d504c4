//! Codecs that programs register under a name. Called by the C API and by `algorithm`.

use super::Algorithm;
use crate::config::COMPRESS_CODECS;
use crate::error::Error;
use crate::fail;
use core::ffi::c_void;
use std::sync::{Arc, PoisonError, RwLock};

/// Bytes of a name at most.
pub const MAX_NAME: usize = 63;

type Transform = unsafe extern "C" fn(*const c_void, usize, *mut c_void, usize, *mut usize, *mut c_void) -> i32;

/// A program's own codec: its functions, which any thread may call at any time.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// Room that is enough for `size` bytes.
    pub bound: unsafe extern "C" fn(usize, *mut c_void) -> usize,
    /// Compresses; 0 is success.
    pub compress: Transform,
    /// Decompresses; 0 is success.
    pub decompress: Transform,
    /// Passed to each.
    pub user: *mut c_void,
}

// SAFETY: the functions may be called from any thread and `user` is theirs alone: the program promised so when it registered them.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Foreign {
    /// Compresses into `out`; the length. None if the codec failed or claims more than it had room for.
    pub fn compress(&self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        // SAFETY: the program's function, as it was registered.
        let bound = unsafe { (self.bound)(input.len(), self.user) };
        out.try_reserve(bound.saturating_sub(out.len())).ok()?;
        out.resize(bound.max(out.len()), 0);
        self.call(self.compress, input, &mut out[..bound])
    }

    /// Decompresses to exactly `out.len()` bytes.
    pub fn decompress(&self, input: &[u8], out: &mut [u8]) -> bool {
        self.call(self.decompress, input, out) == Some(out.len())
    }

    fn call(&self, function: Transform, input: &[u8], out: &mut [u8]) -> Option<usize> {
        let mut written = 0;
        // SAFETY: both buffers are live and as long as said; the rest is the program's function's own.
        let status = unsafe {
            function(input.as_ptr().cast(), input.len(), out.as_mut_ptr().cast(), out.len(), &raw mut written, self.user)
        };
        (status == 0 && written <= out.len()).then_some(written)
    }
}

static CODECS: RwLock<Vec<(Arc<str>, Foreign)>> = RwLock::new(Vec::new());

/// Makes a codec known under a name. The same name again replaces it for compressors made from then on.
pub fn register(name: &str, codec: Foreign) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(fail!(InvalidArgument, "the name '{name}' has {} bytes, outside 1 to {MAX_NAME}", name.len()));
    }
    if Algorithm::is_built_in(name) {
        return Err(fail!(InvalidArgument, "'{name}' is one of qmem's own algorithms; register yours under another name"));
    }
    let mut codecs = CODECS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = codecs.iter_mut().find(|(known, _)| **known == *name) {
        *known = codec;
    } else if codecs.len() >= COMPRESS_CODECS {
        return Err(fail!(Limit, "{COMPRESS_CODECS} codecs are registered, which is the most; '{name}' is not"));
    } else {
        codecs.push((name.into(), codec));
    }
    Ok(())
}

/// The codec of a name, with the name.
pub fn find(name: &str) -> Option<(Arc<str>, Foreign)> {
    let codecs = CODECS.read().unwrap_or_else(PoisonError::into_inner);
    codecs.iter().find(|(known, _)| **known == *name).cloned()
}
