//! Disjoint address intervals, ordered by start, in mapped memory: a directory of leaves of up to 170 intervals each, both sorted,
//! so that a search is two binary searches and a million entries cost a few KiB of moves per insertion. Called by the registry,
//! which locks and charges it.

use super::{MappedArray, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::os::vm;

/// An interval and what the owner wants to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// First byte.
    pub start: usize,
    /// Bytes, > 0.
    pub size: usize,
    /// The owner's.
    pub kind: u8,
    /// The owner's.
    pub tag: u8,
}

/// Intervals per leaf.
const LEAF: usize = 170;

/// A page of intervals.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Leaf {
    len: usize,
    /// Index plus one of the next unused leaf while this one is unused.
    next: usize,
    items: [Interval; LEAF],
}
const _: () = assert!(size_of::<Leaf>() == vm::PAGE);

/// Directory entry: a leaf's first start and its index. (The first leaf may get smaller starts without an update: they all lead to
/// it anyway.)
#[derive(Clone, Copy)]
struct Child {
    first: usize,
    leaf: usize,
}

// SAFETY: zero is a valid value of every field.
unsafe impl Zeroed for Leaf {}
// SAFETY: as above.
unsafe impl Zeroed for Child {}

/// Up to `limit` disjoint intervals.
pub struct IntervalMap {
    store: Option<Store>,
    len: usize,
    limit: usize,
}

struct Store {
    leaves: MappedArray<Leaf>,
    children: MappedArray<Child>,
    /// Entries of `children` in use.
    width: usize,
    /// Leaves ever used.
    used: usize,
    /// Index plus one of the first unused leaf below `used`.
    unused: usize,
}

impl IntervalMap {
    /// No intervals, and nothing mapped until the first.
    pub const fn new(limit: usize) -> Self {
        Self { store: None, len: 0, limit }
    }

    /// Intervals.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No intervals.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that may be resident.
    pub fn bytes(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.bytes(0))
    }

    /// Bytes more that may be resident after the next insertion; to be charged before it.
    pub fn growth(&self) -> usize {
        match &self.store {
            None => 2 * vm::PAGE,
            Some(store) => store.bytes(if store.unused == 0 { 1 } else { 0 }) - store.bytes(0),
        }
    }

    /// The interval around `address`.
    pub fn find(&self, address: usize) -> Option<Interval> {
        let below = self.last_at_or_before(address)?;
        (address - below.start < below.size).then_some(below)
    }

    /// Some interval that shares a byte with `[start, start + size)`.
    pub fn overlap(&self, start: usize, size: usize) -> Option<Interval> {
        let last = self.last_at_or_before(start.saturating_add(size.saturating_sub(1)))?;
        (last.start.saturating_add(last.size) > start && size > 0).then_some(last)
    }

    /// The first interval that starts at `start` or after it.
    pub fn next(&self, start: usize) -> Option<Interval> {
        let store = self.store.as_ref()?;
        let (mut at, _) = store.seek(start)?;
        loop {
            let leaf = store.leaf(at)?;
            let items = leaf.items.get(..leaf.len)?;
            if let Some(item) = items.get(items.partition_point(|item| item.start < start)) {
                return Some(*item);
            }
            at += 1;
        }
    }

    fn last_at_or_before(&self, address: usize) -> Option<Interval> {
        let (_, leaf) = self.store.as_ref()?.seek(address)?;
        let items = leaf.items.get(..leaf.len)?;
        items.get(items.partition_point(|item| item.start <= address).checked_sub(1)?).copied()
    }

    /// Enters an interval that overlaps none (the caller has asked [`overlap`](Self::overlap)).
    pub fn insert(&mut self, item: Interval) -> Result<(), Error> {
        if self.len >= self.limit {
            return Err(fail!(Limit, "{} blocks are registered, the most there can be; unregister some first", self.len));
        }
        let store = match &mut self.store {
            Some(store) => store,
            none => none.insert(Store::new(self.limit)?),
        };
        if store.insert(item).is_none() {
            return Err(fail!(Internal, "the interval at {:#x} found no leaf", item.start));
        }
        self.len += 1;
        Ok(())
    }

    /// Takes the interval that starts at `start` out. The last one to go gives all memory back.
    pub fn remove(&mut self, start: usize) -> Option<Interval> {
        let item = self.store.as_mut()?.remove(start)?;
        self.len -= 1;
        if self.len == 0 {
            self.store = None;
        }
        Some(item)
    }
}

impl Store {
    fn new(limit: usize) -> Result<Self, Error> {
        // Neighbours that fit into half a leaf are merged, so two of them always hold more than that: `limit / 42` leaves and one
        // would do. Address space only; what is used becomes resident.
        let most = limit / 32 + 16;
        Ok(Self { leaves: MappedArray::new(most)?, children: MappedArray::new(most)?, width: 0, used: 0, unused: 0 })
    }

    fn bytes(&self, more: usize) -> usize {
        let leaves = self.used + more;
        leaves.saturating_mul(size_of::<Leaf>()) + vm::round_up(leaves.saturating_mul(size_of::<Child>()).max(1), vm::PAGE)
    }

    /// The child whose leaf holds `start` or would: the last that begins at or before it, else the first.
    fn seek(&self, start: usize) -> Option<(usize, &Leaf)> {
        let children = self.children.get(..self.width)?;
        let at = children.partition_point(|child| child.first <= start).saturating_sub(1);
        Some((at, self.leaf(at)?))
    }

    fn leaf(&self, at: usize) -> Option<&Leaf> {
        self.leaves.get(self.children.get(..self.width)?.get(at)?.leaf)
    }

    fn leaf_mut(&mut self, at: usize) -> Option<&mut Leaf> {
        let child = *self.children.get(..self.width)?.get(at)?;
        self.leaves.get_mut(child.leaf)
    }

    fn insert(&mut self, item: Interval) -> Option<()> {
        let mut at = match self.seek(item.start) {
            Some((at, _)) => at,
            None => {
                let leaf = self.new_leaf()?;
                self.new_child(0, Child { first: item.start, leaf })?;
                0
            }
        };
        if self.leaf(at)?.len == LEAF {
            at = self.split(at, item.start)?;
        }
        let leaf = self.leaf_mut(at)?;
        let len = leaf.len;
        let place = leaf.items.get(..len)?.partition_point(|other| other.start < item.start);
        leaf.items.copy_within(place..len, place + 1);
        *leaf.items.get_mut(place)? = item;
        leaf.len += 1;
        Some(())
    }

    /// Splits a full leaf; returns the half that `start` belongs to. A leaf filled in ascending order stays nearly full.
    fn split(&mut self, at: usize, start: usize) -> Option<usize> {
        let ascending = at + 1 == self.width && start > self.leaf(at)?.items.last()?.start;
        let keep = if ascending { LEAF - 1 } else { LEAF / 2 };
        let index = self.new_leaf()?;
        let old = *self.leaf(at)?;
        let moved = old.items.get(keep..)?;
        let new = self.leaves.get_mut(index)?;
        new.items.get_mut(..moved.len())?.copy_from_slice(moved);
        new.len = moved.len();
        self.leaf_mut(at)?.len = keep;
        let first = moved.first()?.start;
        self.new_child(at + 1, Child { first, leaf: index })?;
        Some(if start < first { at } else { at + 1 })
    }

    fn new_leaf(&mut self) -> Option<usize> {
        let index = match self.unused.checked_sub(1) {
            Some(index) => {
                self.unused = self.leaves.get(index)?.next;
                index
            }
            None => {
                self.used += 1;
                self.used - 1
            }
        };
        self.leaves.get_mut(index)?.len = 0;
        Some(index)
    }

    fn new_child(&mut self, at: usize, child: Child) -> Option<()> {
        let width = self.width;
        self.children.get_mut(..=width)?.copy_within(at..width, at + 1);
        *self.children.get_mut(at)? = child;
        self.width += 1;
        Some(())
    }

    fn remove(&mut self, start: usize) -> Option<Interval> {
        let (at, leaf) = self.seek(start)?;
        let len = leaf.len;
        let place = leaf.items.get(..len)?.binary_search_by_key(&start, |item| item.start).ok()?;
        let leaf = self.leaf_mut(at)?;
        let item = *leaf.items.get(place)?;
        leaf.items.copy_within(place + 1..len, place);
        leaf.len -= 1;
        if leaf.len > 0 {
            let first = leaf.items.first()?.start;
            self.children.get_mut(at)?.first = first;
        }
        self.merge(at);
        if let Some(before) = at.checked_sub(1) {
            self.merge(before);
        }
        if self.leaf(at).is_some_and(|leaf| leaf.len == 0) {
            self.drop_child(at)?; // the only leaf
        }
        Some(item)
    }

    /// Moves the leaf after `at` into the one at `at`, if both fit into half a leaf.
    fn merge(&mut self, at: usize) -> Option<()> {
        if self.leaf(at)?.len + self.leaf(at + 1)?.len > LEAF / 2 {
            return None;
        }
        let from = *self.leaf(at + 1)?;
        let into = self.leaf_mut(at)?;
        let (have, sum) = (into.len, into.len + from.len);
        into.items.get_mut(have..sum)?.copy_from_slice(from.items.get(..from.len)?);
        into.len = sum;
        let first = into.items.first()?.start;
        self.children.get_mut(at)?.first = first;
        self.drop_child(at + 1)
    }

    fn drop_child(&mut self, at: usize) -> Option<()> {
        let index = self.children.get(at)?.leaf;
        let unused = self.unused;
        self.leaves.get_mut(index)?.next = unused;
        self.unused = index + 1;
        let width = self.width;
        self.children.get_mut(..width)?.copy_within(at + 1..width, at);
        self.width -= 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn item(start: usize, size: usize) -> Interval {
        Interval { start, size, kind: start as u8, tag: size as u8 }
    }

    fn slow_overlap(model: &BTreeMap<usize, usize>, start: usize, size: usize) -> bool {
        model.range(..start + size).next_back().is_some_and(|(s, n)| s + n > start)
    }

    #[test]
    fn agrees_with_a_tree_map() {
        let (mut map, mut model) = (IntervalMap::new(1 << 20), BTreeMap::new());
        let mut state = 3u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for step in 0..60_000 {
            let (start, size) = (1 + random(1 << 18), 1 + random(40));
            assert_eq!(map.overlap(start, size).is_some(), slow_overlap(&model, start, size));
            let growing = step % 30_000 < 20_000;
            if random(10) < if growing { 8 } else { 1 } {
                if !slow_overlap(&model, start, size) {
                    let promised = map.bytes() + map.growth();
                    map.insert(item(start, size)).unwrap();
                    assert!(map.bytes() <= promised);
                    model.insert(start, size);
                }
            } else if let Some((at, n)) = model.range(start..).next().map(|(s, n)| (*s, *n)) {
                assert_eq!(map.next(start), Some(item(at, n)));
                assert_eq!(map.remove(at), Some(item(at, n)));
                assert_eq!(map.remove(at), None);
                model.remove(&at);
            }
            let found = model.range(..=start).next_back().filter(|(s, n)| *s + **n > start).map(|(s, n)| item(*s, *n));
            assert_eq!(map.find(start), found);
            assert_eq!(map.len(), model.len());
        }
        let (mut at, mut seen) = (0, 0);
        while let Some(next) = map.next(at) {
            assert_eq!(model.get(&next.start), Some(&next.size));
            (at, seen) = (next.start + 1, seen + 1);
        }
        assert_eq!(seen, model.len());
        for start in model.into_keys() {
            assert!(map.remove(start).is_some());
        }
        assert_eq!((map.len(), map.bytes()), (0, 0));
    }

    #[test]
    fn a_million_entries_in_any_order() {
        let n = 1 << 20;
        let mut map = IntervalMap::new(n);
        for i in 0..n {
            map.insert(item(64 * (1 + (i * 0x9E3779B1) % n), 64)).unwrap();
        }
        assert!(map.insert(item(64 * (n + 5), 1)).is_err());
        assert!(map.bytes() < n * 48, "{} bytes for {n} intervals", map.bytes());
        for i in 1..=n {
            assert_eq!(map.find(64 * i + 63).unwrap().start, 64 * i);
        }
        assert_eq!((map.find(63), map.find(64 * n + 64)), (None, None));
        // Thin it out to one of 200: leaves are merged and memory is reused, not kept per leaf.
        for i in (1..=n).rev().filter(|i| i % 200 != 0) {
            assert!(map.remove(64 * i).is_some());
        }
        let store = map.store.as_ref().unwrap();
        assert!(store.width < map.len() / 42 + 2, "{} leaves hold {}", store.width, map.len());
        for i in (1..=n).filter(|i| i % 200 == 0) {
            assert!(map.remove(64 * i).is_some());
        }
        assert!(map.is_empty());
        for i in 1..=n {
            map.insert(item(64 * i, 64)).unwrap();
        }
        assert!(map.bytes() < n * 26, "{} bytes for {n} ascending intervals", map.bytes());
    }
}
