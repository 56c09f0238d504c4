//! Small data structures without allocation: fixed strings, maps in mapped memory. Floor 0: called by everyone, calls only `os`.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod address_map;
mod array;
mod interval_map;
pub mod json;
pub mod page_map;
mod table;
mod text;

pub use address_map::AddressMap;
pub use array::{MappedArray, Zeroed};
pub use interval_map::{Interval, IntervalMap};
pub use table::Table;
pub use text::Text;
