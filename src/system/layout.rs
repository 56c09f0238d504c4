//! Geometric layouts: where the elements of a complex<double> array of up to 16 dimensions lie. Row-major; rows whose length
//! would put neighbours into the same cache sets are padded by one cache line. Called by `memory`; pure arithmetic.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::fail;
use crate::registry::Layout;

/// Dimensions at most.
pub const MAX_DIMS: usize = 16;
/// Bytes of one element, complex<double>.
const ELEMENT: usize = 16;
/// Elements of padding: one cache line of 64 bytes.
const PAD: usize = 64 / ELEMENT;
/// Rows that are a multiple of this many bytes meet in a few cache sets: L1 repeats every 4 KiB, and four such rows do too.
const CONFLICT: usize = 1024;

/// The layout of an array, and its bytes from the first element to behind the last row.
pub fn plan(dimensions: &[usize], padded: bool) -> Result<(Layout, usize), Error> {
    let n = dimensions.len();
    if n == 0 || n > MAX_DIMS {
        return Err(fail!(InvalidArgument, "num_dims = {n} is outside 1 to {MAX_DIMS}"));
    }
    let mut layout = Layout { num_dims: n, dimensions: [0; MAX_DIMS], strides: [0; MAX_DIMS], offset: 0 };
    let mut stride = 1usize;
    for (axis, &extent) in dimensions.iter().enumerate().rev() {
        if extent == 0 {
            return Err(fail!(InvalidArgument, "dimensions[{axis}] = 0: every dimension must be at least 1"));
        }
        layout.dimensions[axis] = extent;
        layout.strides[axis] = stride;
        let mut next = stride.checked_mul(extent).filter(|elements| *elements <= isize::MAX as usize / ELEMENT - PAD);
        if axis + 1 == n && n > 1 && padded {
            next = next.map(pad);
        }
        stride = next.ok_or_else(|| {
            fail!(
                InvalidArgument,
                "dimensions[{axis}] = {extent}: the product of the dimensions times 16 bytes passes PTRDIFF_MAX"
            )
        })?;
    }
    if stride > isize::MAX as usize / ELEMENT {
        return Err(fail!(InvalidArgument, "the padded array of {stride} elements of 16 bytes passes PTRDIFF_MAX"));
    }
    Ok((layout, stride * ELEMENT))
}

/// The row stride for a row of `elements`.
fn pad(elements: usize) -> usize {
    let bytes = elements * ELEMENT;
    if bytes >= CONFLICT && bytes.is_multiple_of(CONFLICT) { elements + PAD } else { elements }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_only_where_they_conflict() {
        for (row, want) in [(1, 1), (63, 63), (64, 68), (65, 65), (128, 132), (1000, 1000), (1024, 1028)] {
            let (layout, bytes) = plan(&[3, row], true).unwrap();
            assert_eq!(layout.strides[..2], [want, 1], "{row}");
            assert_eq!(bytes, 3 * want * 16);
            assert!(row < 256 || !(layout.strides[0] * 16).is_multiple_of(4096));
            assert_eq!(plan(&[3, row], false).unwrap().0.strides[0], row);
        }
        assert_eq!(plan(&[1024], true).unwrap().1, 1024 * 16);
        assert_eq!(plan(&[2, 3, 64], true).unwrap().0.strides[..3], [3 * 68, 68, 1]);
    }

    #[test]
    fn every_element_has_its_own_place() {
        let dims = [3, 5, 64];
        let (layout, bytes) = plan(&dims, true).unwrap();
        let mut seen = vec![false; bytes / 16];
        for i in 0..3 {
            for j in 0..5 {
                for k in 0..64 {
                    let at = layout.offset + i * layout.strides[0] + j * layout.strides[1] + k * layout.strides[2];
                    assert!(!std::mem::replace(&mut seen[at], true));
                }
            }
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        assert!(plan(&[], true).is_err());
        assert!(plan(&[1; 17], true).is_err());
        assert!(plan(&[1; 16], true).is_ok());
        assert!(plan(&[4, 0], true).is_err());
        assert!(plan(&[usize::MAX], true).is_err());
        assert!(plan(&[1 << 32, 1 << 32], false).is_err());
        assert!(plan(&[1 << 30, 1 << 29], true).is_err());
        assert!(plan(&[isize::MAX as usize / 16], true).is_err());
    }
}
