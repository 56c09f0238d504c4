//! Reordering before LZ4: the first bytes of all numbers, then the second ones, and so on; or the same with bits. Numbers of similar
//! size so get long runs. Called by `algorithm`; the compiler vectorises the loops.
#![forbid(unsafe_code)]

/// How bytes are reordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not at all.
    Plain,
    /// Bytes of numbers of this width (4 or 8).
    Bytes(usize),
    /// Bits of numbers of this width.
    Bits(usize),
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Bytes(4), Self::Bytes(8), Self::Bits(4), Self::Bits(8)];

    /// Reorders; what does not make eight numbers at the end stays as it is. `out` is as long as `input`.
    pub fn shuffle(self, input: &[u8], out: &mut [u8]) {
        match self {
            Order::Plain => out.copy_from_slice(input),
            Order::Bytes(4) => split::<4>(input, out),
            Order::Bytes(_) => split::<8>(input, out),
            Order::Bits(width) => {
                Order::Bytes(width).shuffle(input, out);
                turn_planes(width, out);
            }
        }
    }

    /// The inverse; `input` is used up.
    pub fn unshuffle(self, input: &mut [u8], out: &mut [u8]) {
        match self {
            Order::Plain => out.copy_from_slice(input),
            Order::Bytes(4) => join::<4>(input, out),
            Order::Bytes(_) => join::<8>(input, out),
            Order::Bits(width) => {
                let count = (input.len() / width) & !7;
                for plane in input[..count * width].chunks_exact_mut(count.max(1)) {
                    turn_back(plane, out);
                }
                Order::Bytes(width).unshuffle(input, out);
            }
        }
    }
}

fn split<const WIDTH: usize>(input: &[u8], out: &mut [u8]) {
    let count = (input.len() / WIDTH) & !7;
    let (numbers, rest) = input.split_at(count * WIDTH);
    let (planes, end) = out.split_at_mut(count * WIDTH);
    for (k, plane) in planes.chunks_exact_mut(count.max(1)).enumerate() {
        for (byte, number) in plane.iter_mut().zip(numbers.as_chunks::<WIDTH>().0) {
            *byte = number[k];
        }
    }
    end.copy_from_slice(rest);
}

fn join<const WIDTH: usize>(input: &[u8], out: &mut [u8]) {
    let count = (input.len() / WIDTH) & !7;
    let (planes, rest) = input.split_at(count * WIDTH);
    let (numbers, end) = out.split_at_mut(count * WIDTH);
    for (k, plane) in planes.chunks_exact(count.max(1)).enumerate() {
        for (byte, number) in plane.iter().zip(numbers.as_chunks_mut::<WIDTH>().0) {
            number[k] = *byte;
        }
    }
    end.copy_from_slice(rest);
}

/// The bits of eight bytes as an 8 by 8 matrix, transposed.
fn transpose(x: u64) -> u64 {
    let swap = |x: u64, shift: u32, mask: u64| {
        let t = (x ^ (x >> shift)) & mask;
        x ^ t ^ (t << shift)
    };
    let x = swap(x, 7, 0x00AA_00AA_00AA_00AA);
    let x = swap(x, 14, 0x0000_CCCC_0000_CCCC);
    swap(x, 28, 0x0000_0000_F0F0_F0F0)
}

/// In each plane of bytes: all first bits, then all second ones, and so on.
fn turn_planes(width: usize, planes: &mut [u8]) {
    let count = (planes.len() / width) & !7;
    let mut turned = vec![0u8; count];
    for plane in planes[..count * width].chunks_exact_mut(count.max(1)) {
        for (i, eight) in plane.as_chunks::<8>().0.iter().enumerate() {
            for (bit, byte) in transpose(u64::from_le_bytes(*eight)).to_le_bytes().into_iter().enumerate() {
                turned[bit * (count / 8) + i] = byte;
            }
        }
        plane.copy_from_slice(&turned);
    }
}

/// The inverse for one plane; `work` is at least as long.
fn turn_back(plane: &mut [u8], work: &mut [u8]) {
    let eighth = plane.len() / 8;
    let work = &mut work[..plane.len()];
    for (i, to) in work.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let eight = core::array::from_fn(|bit| plane[bit * eighth + i]);
        *to = transpose(u64::from_le_bytes(eight)).to_le_bytes();
    }
    plane.copy_from_slice(work);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_turns_back() {
        for len in (0..200).chain([4096, 4097, 65535]) {
            let input: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
            for order in Order::ALL {
                let (mut there, mut back) = (vec![1; len], vec![2; len]);
                order.shuffle(&input, &mut there);
                order.unshuffle(&mut there.clone(), &mut back);
                assert!(back == input, "{order:?}, {len} bytes");
                if order == Order::Bits(4) && len >= 32 {
                    // The definition: bit b of byte k of number i.
                    let count = (len / 4) & !7;
                    for i in 0..count {
                        for (k, b) in [(0, 0), (1, 3), (3, 7)] {
                            let at = k * count + b * (count / 8) + i / 8;
                            assert_eq!(there[at] >> (i % 8) & 1, input[4 * i + k] >> b & 1);
                        }
                    }
                }
            }
        }
    }
}
