//! Small numbers in few bytes: seven bits at a time, the lowest first, the top bit set in all but the last. Called by `codes`.
#![forbid(unsafe_code)]

/// Writes a number at a place in `to`; the place after it. None if there is no room.
pub fn write(mut value: u32, to: &mut [u8], mut at: usize) -> Option<usize> {
    while value >= 128 {
        *to.get_mut(at)? = value as u8 | 128;
        value >>= 7;
        at += 1;
    }
    *to.get_mut(at)? = value as u8;
    Some(at + 1)
}

/// Reads a number and gives what follows it; None if there is none of 32 bits.
pub fn read(from: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in from.iter().take(5).enumerate() {
        value |= u64::from(byte & 127) << (7 * i);
        if *byte < 128 {
            return Some((u32::try_from(value).ok()?, from.get(i + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 16383, 16384, 1 << 21, u32::MAX - 1, u32::MAX] {
            let mut room = [0; 8];
            let at = write(value, &mut room, 1).unwrap();
            assert_eq!(read(&room[1..at]), Some((value, &[][..])));
            assert_eq!(read(&room[1..at - 1]), None);
            assert_eq!(write(value, &mut room[..at - 2], 0), None, "{value}");
        }
        assert_eq!(read(&[255; 8]), None);
        assert_eq!(read(&[255, 255, 255, 255, 31]), None);
    }
}
