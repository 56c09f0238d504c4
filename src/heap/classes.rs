//! Size classes: which block sizes there are and how a slice of each is laid out, computed at compile time. Called by the rest of
//! the heap; pure. Steps of 16 bytes up to 1 KiB, then eight per doubling: at most 1/8 of a block is waste beyond 128 bytes.
#![forbid(unsafe_code)]

/// Unit of the heap's address space: one slice holds blocks of one class; a larger block is a run of slices.
pub const SLICE: usize = 64 << 10;
/// Number of classes.
pub const COUNT: usize = SMALL / 16 + 8 * (MAX_SMALL / SMALL).ilog2() as usize;
/// Largest block of a class that is one of 16-byte steps: the bins' sizes.
pub const SMALL: usize = 1024;
/// Largest block in a slice.
pub const MAX_SMALL: usize = 32 << 10;
/// Largest run; larger blocks are mapped on their own.
pub const MAX_RUN: usize = 1 << 20;
/// Slices of the largest run.
pub const RUNS: usize = MAX_RUN / SLICE;
/// Bytes of side arrays that fit into a span's record.
pub const INLINE_SIDE: usize = 32;

/// A size class by number, always below [`COUNT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(u8);

/// How a slice of one class is laid out.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Bytes per block.
    pub size: u32,
    /// 2^32 / size, rounded up: `offset * magic`, cut to 32 bits, is below `magic` where the offset is a multiple of the size
    /// (Lemire, Kaser and Kurz, "Faster remainder by direct computation"), and its upper half is the quotient.
    pub magic: u32,
    /// Plain blocks per slice.
    pub blocks: u32,
    /// Blocks that a bin gets at least when it is filled, if they can be had, so that filling it is not the rule.
    pub good: u32,
    /// Described blocks per slice: fewer where the side arrays take room.
    pub described: u32,
    /// Offset of the side arrays from the slice's start; 0 = in the span's record.
    pub side: u32,
    /// Offset of the slack array from the state array's start.
    pub slack: u32,
    /// Bytes per slack entry: 1 or 2.
    pub width: u32,
}

/// Blocks of a class in a magazine at most.
pub const MAGAZINE: u32 = 31;
/// Bytes of blocks in a magazine at most, but for the largest, of which there are two: each may keep a slice of its own.
const MAGAZINE_BYTES: u32 = 32 << 10;

/// Bytes of blocks in a bin that was filled, between the bounds of [`GOOD`].
const GOOD_BYTES: usize = 4096;
/// Blocks in a bin that was filled.
pub const GOOD: core::ops::RangeInclusive<u32> = 10..=128;

/// One shape per class.
#[allow(clippy::indexing_slicing)] // evaluated by the compiler: a wrong index does not build
static SHAPES: [Shape; COUNT] = {
    let mut shapes = [Shape { size: 0, magic: 0, blocks: 0, good: 0, described: 0, side: 0, slack: 0, width: 0 }; COUNT];
    let mut i = 0;
    while i < COUNT {
        shapes[i] = shape(size_of_class(i));
        i += 1;
    }
    shapes
};

/// Classes of sizes above [`SMALL`] are multiples of so many bytes, as a power of two.
const STEP_BITS: u32 = 7;
/// Classes of 16-byte steps.
const STEPS: usize = SMALL / 16;

/// The classes by steps, so that finding one is a load.
#[allow(clippy::indexing_slicing)] // as above
static MEDIUM: [u8; MAX_SMALL >> STEP_BITS] = {
    let mut steps = [0; MAX_SMALL >> STEP_BITS];
    let mut i = 0;
    while i < steps.len() {
        if i << STEP_BITS >= SMALL {
            steps[i] = Class::of_size((i << STEP_BITS) + 1).0 - STEPS as u8;
        }
        i += 1;
    }
    steps
};

const fn size_of_class(class: usize) -> usize {
    if class < STEPS {
        return (class + 1) * 16;
    }
    let (group, step) = ((class - STEPS) / 8, (class - STEPS) % 8);
    (SMALL << group) + ((step + 1) << (group as u32 + STEP_BITS))
}

const fn shape(size: usize) -> Shape {
    let width = if size <= 1 << 8 { 1 } else { 2 };
    let blocks = SLICE / size;
    let mut described = blocks;
    if side_bytes(described, width) > INLINE_SIDE {
        while described * size + side_bytes(described, width) > SLICE {
            described -= 1;
        }
    }
    let side = side_bytes(described, width);
    Shape {
        size: size as u32,
        magic: (1u64 << 32).div_ceil(size as u64) as u32,
        blocks: blocks as u32,
        good: match (GOOD_BYTES / size) as u32 {
            few if few < *GOOD.start() => *GOOD.start(),
            many if many > *GOOD.end() => *GOOD.end(),
            good => good,
        },
        described: described as u32,
        side: if side > INLINE_SIDE { (SLICE - side) as u32 } else { 0 },
        slack: slack_offset(described, width) as u32,
        width: width as u32,
    }
}

const fn slack_offset(blocks: usize, width: usize) -> usize {
    blocks.next_multiple_of(width)
}

/// One state byte and one slack entry per block, the whole a multiple of 16.
const fn side_bytes(blocks: usize, width: usize) -> usize {
    (slack_offset(blocks, width) + blocks * width).next_multiple_of(16)
}

impl Class {
    /// The smallest class for `size` bytes (0 counts as 1) at a multiple of the power of two `align`; None if there is none.
    #[inline]
    pub fn of(size: usize, align: usize) -> Option<Self> {
        if size > MAX_SMALL || align > MAX_SMALL {
            return None;
        }
        let class = Self::of_size((size.max(1) + align - 1) & !(align - 1)); // align is a power of two
        if class.shape().size as usize & (align - 1) == 0 {
            return (class.0 < COUNT as u8).then_some(class);
        }
        // Within one doubling every size that is a multiple of 1/8 of it is a class; a few steps up there is one that divides.
        (class.0..COUNT as u8).map(Self).find(|class| class.shape().size as usize & (align - 1) == 0)
    }

    /// The class of `size` bytes, 1 to [`MAX_SMALL`].
    #[inline]
    pub const fn of_size(size: usize) -> Self {
        let last = size - 1;
        if size <= SMALL {
            return Self((last >> 4) as u8);
        }
        let group = last.ilog2() - SMALL.ilog2();
        Self((STEPS as u32 + group * 8 + ((last >> (group + STEP_BITS)) as u32 & 7)) as u8)
    }

    /// [`of_size`](Self::of_size) for sizes up to 1024; 0 counts as 1.
    #[inline(always)]
    pub fn of_small(size: usize) -> Self {
        debug_assert!(size <= SMALL);
        Self((size.saturating_sub(1) >> 4) as u8)
    }

    /// The number among those above [`SMALL`] of the class of `size` bytes, more than that.
    #[inline(always)]
    pub fn medium_of(size: usize) -> u32 {
        debug_assert!(size > SMALL && size <= MAX_SMALL);
        u32::from(MEDIUM.get((size - 1) >> STEP_BITS).copied().unwrap_or(0)) // always there
    }

    /// Is it one of those above [`SMALL`]: without a bin, and with a bit for each block of a slice?
    #[inline(always)]
    pub fn is_medium(self) -> bool {
        self.0 as usize >= STEPS
    }

    /// Its number among those.
    #[inline(always)]
    pub fn medium(self) -> u32 {
        u32::from(self.0) - STEPS as u32
    }

    /// How many blocks its magazine holds.
    #[inline]
    pub fn magazine(self) -> u32 {
        (MAGAZINE_BYTES / self.shape().size).clamp(2, MAGAZINE)
    }

    /// As stored in a span's record; None if it is no class.
    #[inline]
    pub fn from_number(number: u8) -> Option<Self> {
        ((number as usize) < COUNT).then_some(Self(number))
    }

    /// As stored in a span's record.
    #[inline]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// How its slices are laid out.
    #[inline]
    pub fn shape(self) -> &'static Shape {
        const EMPTY: Shape = Shape { size: 16, magic: 0, blocks: 0, good: 0, described: 0, side: 0, slack: 0, width: 1 };
        SHAPES.get(self.0 as usize).unwrap_or(&EMPTY) // never EMPTY: the number is below COUNT
    }
}

impl Shape {
    /// Which block the byte at `offset` of a slice belongs to; the result may be no block if the offset is past the last.
    #[inline]
    pub const fn index_of(&self, offset: usize) -> usize {
        ((offset as u64 * self.magic as u64) >> 32) as usize
    }

    /// Is that many bytes into a slice where a block starts?
    #[inline]
    pub fn starts_at(&self, offset: usize) -> bool {
        (offset as u32).wrapping_mul(self.magic) < self.magic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=MAX_SMALL {
            let class = Class::of(size, 1).unwrap();
            assert!(class.shape().size as usize >= size);
            assert!(class.0 == 0 || (Class(class.0 - 1).shape().size as usize) < size, "{size}");
            assert!(
                if size > SMALL { Class::medium_of(size) == class.medium() } else { Class::of_small(size) == class },
                "{size}"
            );
            if size > 128 {
                let waste = class.shape().size as usize - size;
                assert!(waste * 8 <= class.shape().size as usize, "{size} wastes {waste}");
            }
        }
        assert!(Class::of(MAX_SMALL + 1, 1).is_none());
        assert_eq!(Class::of(0, 1), Class::of(1, 1));
        assert_eq!(Class(COUNT as u8 - 1).shape().size as usize, MAX_SMALL);
    }

    #[test]
    fn alignment_is_met_by_some_class_without_much_waste() {
        for shift in 0..=14 {
            let align = 1usize << shift;
            for size in (0..MAX_SMALL).step_by(37).chain([MAX_SMALL]) {
                let shape = Class::of(size, align).unwrap().shape();
                assert!(shape.size as usize >= size && (shape.size as usize).is_multiple_of(align), "{size} {align}");
                let want = size.max(1).next_multiple_of(align.max(16));
                assert!(shape.size as usize <= 2 * want, "{size} at {align} takes {}", shape.size);
            }
        }
        assert!(Class::of(1, MAX_SMALL * 2).is_none());
    }

    #[test]
    fn offsets_find_their_block_and_side_arrays_their_room() {
        for class in (0..COUNT as u8).map(Class) {
            let shape = class.shape();
            let (size, blocks) = (shape.size as usize, shape.described as usize);
            let end = if shape.side == 0 { SLICE } else { shape.side as usize };
            assert!(blocks * size <= end && blocks > 0 && shape.blocks as usize * size <= SLICE, "{size}");
            for offset in 0..SLICE {
                assert_eq!(shape.index_of(offset), offset / size);
                let is_start = shape.starts_at(offset); // as `free` asks
                assert_eq!(is_start, offset.is_multiple_of(size), "{offset} in blocks of {size}");
            }
            assert!(
                shape.slack as usize + blocks * shape.width as usize <= if shape.side == 0 { INLINE_SIDE } else { SLICE - end }
            );
        }
    }
}
