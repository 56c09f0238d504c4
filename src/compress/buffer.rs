//! A worker's room: bytes that nobody has to fill with zeros first, of huge pages where there are many. Called by `algorithm`.
#![forbid(unsafe_code)]

use crate::ds::MappedArray;
use crate::error::Error;
use crate::os::vm::HUGE;

/// Room that grows. What it holds is whatever was there.
pub struct Buffer(Option<MappedArray<u8>>);

impl Buffer {
    /// None yet.
    pub const fn new() -> Self {
        Self(None)
    }

    /// So many bytes of it.
    pub fn room(&mut self, bytes: usize) -> Result<&mut [u8], Error> {
        if self.bytes().len() < bytes {
            self.0 = None; // first: both at a time may be too much
            self.0 = Some(if bytes < HUGE { MappedArray::new(bytes)? } else { MappedArray::new_huge(bytes)? });
        }
        Ok(self.0.as_deref_mut().and_then(|whole| whole.get_mut(..bytes)).unwrap_or_default())
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
