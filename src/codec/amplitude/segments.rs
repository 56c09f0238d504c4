//! Segments of a chunk that repeat an earlier one in codes: as it is, with the order of its amplitudes reversed (a state that is
//! symmetric under flipping every qubit), or with the sign changed. Called by `codes`; works on codes, so what it finds costs no error.
#![forbid(unsafe_code)]

use super::passes::magnitude;

/// Numbers in one segment; the last of a chunk may be shorter.
pub const SEGMENT: usize = 8192;
/// Earlier segments that one is compared with at most, the nearest ones.
const LOOK_BACK: usize = 4096;
/// Of a segment that is like no other.
const NO_SUM: u64 = u64::MAX;

/// How a segment follows from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The last amplitude comes first.
    pub reversed: bool,
    /// Every sign is changed.
    pub negated: bool,
}

const RELATIONS: [Relation; 4] = [
    Relation { reversed: false, negated: false },
    Relation { reversed: true, negated: false },
    Relation { reversed: false, negated: true },
    Relation { reversed: true, negated: true },
];

/// An entry of the table: 0 for a segment with codes of its own, else 1 + 4 * earlier segment + relation.
pub type Entry = u32;

/// What an entry says: the earlier segment and how to make this one of it.
pub fn read(entry: Entry) -> Option<(usize, Relation)> {
    let word = entry.checked_sub(1)?;
    Some(((word >> 2) as usize, RELATIONS[word as usize & 3]))
}

/// Segments of so many numbers.
pub const fn count(numbers: usize) -> usize {
    numbers.div_ceil(SEGMENT)
}

/// Fills `table`, one entry for each segment; how many have codes of their own. `group`: numbers of one amplitude (1 or 2).
/// `sums`: as many places as segments, to work in.
pub fn find(codes: &[i16], group: usize, table: &mut [Entry], sums: &mut [u64]) -> usize {
    let mut own = 0;
    for (s, segment) in codes.chunks(SEGMENT).enumerate() {
        // The sum of magnitudes is the same under every relation: only segments that share it are looked at.
        let sum = match magnitude(segment) {
            (_, true) => NO_SUM, // a saturated code does not say what the number was
            (sum, false) => sum,
        };
        let found = (s.saturating_sub(LOOK_BACK)..s).find_map(|earlier| {
            let same = *sums.get(earlier)? == sum && *table.get(earlier)? == 0 && sum != NO_SUM;
            let other = codes.get(earlier * SEGMENT..(earlier + 1) * SEGMENT).filter(|_| same && segment.len() == SEGMENT)?;
            let relation = RELATIONS.iter().position(|r| holds(*r, segment, other, group))?;
            Some(1 + 4 * earlier as u32 + relation as u32)
        });
        if let (Some(to), Some(place)) = (table.get_mut(s), sums.get_mut(s)) {
            (*to, *place) = (found.unwrap_or(0), sum);
        }
        own += usize::from(found.is_none());
    }
    own
}

/// Is `segment` what the relation makes of `other`?
fn holds(relation: Relation, segment: &[i16], other: &[i16], group: usize) -> bool {
    let same = |(a, b): (&i16, &i16)| if relation.negated { *a == b.wrapping_neg() } else { a == b };
    if !relation.reversed {
        return if relation.negated { segment.iter().zip(other).all(same) } else { segment == other };
    }
    segment.chunks_exact(group).zip(other.chunks_exact(group).rev()).all(|(a, b)| a.iter().zip(b).all(same))
}

/// Makes a segment's bytes of an earlier one's. `amplitude`: bytes of one; `number`: bytes of one number of it, little-endian floats.
pub fn rebuild(relation: Relation, earlier: &[u8], amplitude: usize, number: usize, out: &mut [u8]) {
    if relation.reversed {
        for (to, from) in out.chunks_exact_mut(amplitude).zip(earlier.chunks_exact(amplitude).rev()) {
            to.copy_from_slice(from);
        }
    } else if out.len() == earlier.len() {
        out.copy_from_slice(earlier);
    }
    if relation.negated {
        // The sign is the last byte's top bit; zero stays +0, which is what its code gives.
        for number in out.chunks_exact_mut(number) {
            if number.iter().any(|byte| *byte != 0)
                && let Some(last) = number.last_mut()
            {
                *last ^= 0x80;
            }
        }
    }
}
