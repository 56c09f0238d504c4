//! Names of regions, for checkpoints: given by the program, or made from the region's number. Called by the face and checkpoints.

use super::image::NAME;
use super::pager::Pager;
use super::region::{MAX_REGIONS, Region};
use crate::ds::{MappedArray, Text, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::sync::Mutex;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

/// A name and the serial of the region that it was given to.
#[derive(Clone, Copy)]
struct Name {
    serial: u64,
    len: u32,
    bytes: [u8; NAME],
}
// SAFETY: zero is an empty name of no region.
unsafe impl Zeroed for Name {}

/// The names, by region; one whose serial is another region's is out of date.
pub struct Names {
    table: Mutex<MappedArray<Name>>,
}

impl Names {
    /// No names; costs address space only.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { table: Mutex::new(MappedArray::new(MAX_REGIONS)?) })
    }

    /// See `fork.rs`.
    pub fn before_fork(&self) {
        self.table.lock_for_fork();
    }

    /// # Safety
    /// This thread called [`Self::before_fork`].
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.table.unlock_after_fork() };
    }
}

impl Pager {
    /// Names a region; the empty name takes the name away. A name that another live region has is refused.
    pub fn set_name(&self, index: u32, region: &Region, name: &str) -> Result<(), Error> {
        if name.len() > NAME {
            return Err(fail!(InvalidArgument, "a buffer's name of {} bytes is longer than {NAME}: \"{name}\"", name.len()));
        }
        if name.starts_with('#') {
            return Err(fail!(InvalidArgument, "\"{name}\": names with # are those of buffers without a name"));
        }
        let mut table = self.names.table.lock();
        let taken = !name.is_empty()
            && self.regions.live().any(|(i, other)| {
                let has = table.get(i as usize).filter(|n| n.serial == other.serial.load(Relaxed));
                i != index && has.is_some_and(|n| n.bytes.get(..n.len as usize) == Some(name.as_bytes()))
            });
        if taken {
            return Err(fail!(InvalidArgument, "another paged buffer is named \"{name}\" already"));
        }
        if let Some(entry) = table.get_mut(index as usize) {
            *entry = Name { serial: region.serial.load(Relaxed), len: name.len() as u32, bytes: [0; NAME] };
            if let Some(bytes) = entry.bytes.get_mut(..name.len()) {
                bytes.copy_from_slice(name.as_bytes());
            }
        }
        Ok(())
    }

    /// A region goes on as another one, with its name.
    pub fn rename_region(&self, (from, source): (u32, &Region), (to, target): (u32, &Region)) {
        let mut table = self.names.table.lock();
        target.serial.store(source.serial.load(Relaxed), Relaxed);
        target.element.store(source.element.load(Relaxed), Relaxed);
        let name = table.get(from as usize).copied();
        if let (Some(name), Some(place)) = (name, table.get_mut(to as usize)) {
            *place = name;
        }
    }

    /// A region's name: as given, or # and its number.
    pub fn name_of(&self, region: &Region) -> Text<64> {
        let mut text = Text::new();
        let serial = region.serial.load(Relaxed);
        let index = super::region_index(region.start.load(Relaxed)).unwrap_or(u32::MAX);
        let table = self.names.table.lock();
        let given = table.get(index as usize).filter(|name| name.serial == serial && name.len > 0);
        match given.and_then(|name| core::str::from_utf8(name.bytes.get(..name.len as usize)?).ok()) {
            Some(name) => drop(text.write_str(name)),
            None => drop(write!(text, "#{serial}")),
        }
        text
    }
}
