//! Geometry: how a slab of each block size is laid out, and which block serves a request. Called by the rest of the pools; pure.
#![forbid(unsafe_code)]

use crate::config;
use crate::error::Error;
use crate::fail;

/// What slabs are counted in: the heap's slices.
const SLICE: usize = 64 << 10;
/// The largest slab of more than one block: such slabs lie in the heap's windows, which stay mapped for ever.
const MOST: usize = 1 << 20;
/// Blocks that a slab has at least, where they fit.
const GOOD: usize = 8;
/// Blocks whose states and bits fit into a slab's record.
pub const INLINE: usize = 32;
/// Blocks of a slab at most: a word of the summary has a bit for each word of bits.
pub const MOST_BLOCKS: usize = 64 * 64;
/// `index_of` multiplies, then shifts by this.
const SHIFT: u32 = 40;
/// Buckets of sizes: steps of 16 bytes up to 128, then eight per doubling.
const BUCKETS: usize = 8 + 8 * (config::POOL_BLOCK.ilog2() as usize - 7);

/// How the slabs of one block size are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes from one block to the next: a multiple of 16.
    pub stride: usize,
    /// Blocks of a slab.
    pub blocks: usize,
    /// Bytes of a slab.
    pub bytes: usize,
    /// 2^40 / stride, rounded up.
    pub magic: u64,
    /// Offset of the state bytes; 0: in the slab's record.
    pub states: usize,
    /// Offset of the bits that say which blocks are free; 0: in the slab's record.
    pub bits: usize,
}

impl Shape {
    /// For blocks of `size` bytes, 1 to [`config::POOL_BLOCK`].
    pub fn of(size: usize) -> Self {
        let stride = size.next_multiple_of(16);
        let magic = (1u64 << SHIFT).div_ceil(stride as u64);
        let bytes = (GOOD * stride).next_multiple_of(SLICE).clamp(SLICE, MOST);
        let most = (bytes / stride).clamp(1, MOST_BLOCKS);
        if most <= INLINE {
            return Self { stride, blocks: most, bytes: (most * stride).max(SLICE), magic, states: 0, bits: 0 };
        }
        let side = |blocks: usize| blocks.next_multiple_of(8) + blocks.div_ceil(64) * 8;
        let mut blocks = most;
        while blocks * stride + side(blocks) > bytes {
            blocks -= 1;
        }
        let states = blocks * stride;
        Self { stride, blocks, bytes, magic, states, bits: states + blocks.next_multiple_of(8) }
    }
}

/// Which block the byte at `offset` of a slab belongs to, and whether it is its first. Exact for offsets and strides up to 2^20;
/// larger blocks are alone in their slab.
#[inline]
pub const fn index_of(offset: usize, stride: usize, magic: u64) -> (usize, bool) {
    if offset >= MOST || stride > MOST {
        return (0, offset == 0);
    }
    let index = (offset as u64 * magic) >> SHIFT;
    (index as usize, index as usize * stride == offset)
}

/// From a request to the smallest block that holds it: for each bucket of sizes the first block size that is not below it.
pub struct Choice {
    first: [u16; BUCKETS + 1],
}

impl Choice {
    /// Of block sizes in increasing order.
    pub fn of(sizes: &[usize]) -> Self {
        let mut first = [sizes.len() as u16; BUCKETS + 1];
        for (index, size) in sizes.iter().enumerate().rev() {
            first.iter_mut().take(bucket(*size) + 1).for_each(|first| *first = index as u16);
        }
        Self { first }
    }

    /// Index of the smallest of `sizes`, in increasing order, that is at least `size`; None if there is none.
    #[inline]
    pub fn find(&self, size: usize, at: impl Fn(usize) -> usize) -> Option<usize> {
        let size = size.max(1);
        if size > config::POOL_BLOCK {
            return None;
        }
        let bucket = bucket(size);
        let (mut low, mut high) = (usize::from(*self.first.get(bucket)?), usize::from(*self.first.get(bucket + 1)?));
        while low < high {
            let middle = low.midpoint(high);
            if at(middle) < size { low = middle + 1 } else { high = middle }
        }
        Some(low)
    }
}

/// The bucket of a size, 1 to [`config::POOL_BLOCK`].
#[inline]
const fn bucket(size: usize) -> usize {
    let last = size - 1;
    if last < 128 {
        return last >> 4;
    }
    let group = last.ilog2() as usize - 7;
    8 + group * 8 + ((last >> (group + 4)) & 7)
}

/// Block sizes as a program gives them, checked and put into increasing order in `sorted`.
pub fn sort<'a>(given: &[usize], sorted: &'a mut [usize; config::POOL_SIZES]) -> Result<&'a [usize], Error> {
    let most = config::POOL_SIZES;
    let Some(sizes) = sorted.get_mut(..given.len()).filter(|sizes| !sizes.is_empty()) else {
        return Err(fail!(InvalidArgument, "{} block sizes: a pool has 1 to {most}", given.len()));
    };
    sizes.copy_from_slice(given);
    if let Some(at) = given.iter().position(|size| *size == 0 || *size > config::POOL_BLOCK) {
        let (size, most) = (given.get(at).copied().unwrap_or(0), config::POOL_BLOCK);
        return Err(fail!(InvalidArgument, "block_sizes[{at}] = {size} is outside 1 to {most}"));
    }
    sizes.sort_unstable();
    if let Some(pair) = sizes.array_windows::<2>().find(|[a, b]| a == b) {
        return Err(fail!(InvalidArgument, "block_sizes has {} more than once", pair[0]));
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_hold_their_blocks_and_what_is_known_of_them() {
        for size in (1..5000).chain((5000..3_000_000).step_by(7717)).chain([1 << 20, (1 << 20) + 1, config::POOL_BLOCK]) {
            let shape = Shape::of(size);
            assert!(shape.stride >= size && shape.stride < size + 16 && shape.stride.is_multiple_of(16));
            assert!(shape.bytes > 32 << 10 && (shape.blocks == 1 || shape.bytes <= MOST) && shape.blocks <= MOST_BLOCKS);
            assert!(shape.blocks >= GOOD || shape.bytes + shape.stride > MOST, "{size}: {shape:?}");
            if shape.states == 0 {
                assert!(shape.blocks <= INLINE && shape.blocks * shape.stride <= shape.bytes);
            } else {
                assert!(shape.states >= shape.blocks * shape.stride && shape.bits.is_multiple_of(8));
                assert!(shape.bits >= shape.states + shape.blocks && shape.bits + shape.blocks.div_ceil(64) * 8 <= shape.bytes);
            }
        }
    }

    #[test]
    fn offsets_find_their_block() {
        for stride in (16..70_000).step_by(16).chain([100_000, 1 << 19, 1 << 20]) {
            let shape = Shape::of(stride);
            for block in 0..shape.blocks {
                let first = block * stride;
                assert_eq!(index_of(first, stride, shape.magic), (block, true));
                assert_eq!(index_of(first + 1, stride, shape.magic), (block, false));
                assert_eq!(index_of(first + stride - 1, stride, shape.magic), (block, false));
            }
        }
        assert_eq!((index_of(0, 3 << 20, 1), index_of(2 << 20, 3 << 20, 1)), ((0, true), (0, false)));
    }

    #[test]
    fn the_smallest_block_that_holds_a_size_is_chosen() {
        let mut state = 11u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for round in 0..300 {
            let top = [200, 5000, 1 << 20, config::POOL_BLOCK][round % 4];
            let count = 1 + random(if round % 7 == 0 { config::POOL_SIZES.min(top / 2) } else { 12 });
            let mut sizes: Vec<usize> = (0..count).map(|_| 1 + random(top.min(1 << 31))).collect();
            sizes.sort_unstable();
            sizes.dedup();
            let choice = Choice::of(&sizes);
            for _ in 0..500 {
                let near = sizes[random(sizes.len())];
                let size = if random(2) == 0 { random(top.min(1 << 31) + 10) } else { near + 1 - random(3).min(near) };
                let want = sizes.iter().position(|s| *s >= size);
                assert_eq!(choice.find(size, |i| sizes[i]).filter(|i| *i < sizes.len()), want, "{size} of {sizes:?}");
            }
        }
    }

    #[test]
    fn bad_block_sizes_are_named() {
        let mut room = [0; config::POOL_SIZES];
        assert_eq!(sort(&[300, 7, 64], &mut room).unwrap(), [7, 64, 300]);
        for (sizes, word) in [(&[64, 0][..], "block_sizes[1] = 0"), (&[64, 32, 64], "64 more than once"), (&[], "0 block sizes")]
        {
            assert!(sort(sizes, &mut room).unwrap_err().to_string().contains(word));
        }
        assert!(sort(&[config::POOL_BLOCK + 1], &mut room).is_err());
        assert!(sort(&[1; config::POOL_SIZES + 1], &mut room).is_err());
    }
}
