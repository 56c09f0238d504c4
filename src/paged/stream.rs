//! Streams of faults: which chunks a sweep will ask for next. Each thread's recent faults are matched against runs with stride
//! ±1, and against equal jumps by a power of two; what lies ahead is read before it is asked for. Called by fill on each
//! fault; keeps no chunk, only numbers.

use super::region::ChunkId;

/// Streams followed at once.
const STREAMS: usize = 64;
/// Resident chunks that a stream may pass without a fault.
const PASS: i64 = 4096;

#[derive(Clone, Copy, Default)]
struct Stream {
    thread: u32,
    region: u32,
    last: ChunkId,
    stride: i64,
    hits: u32,
    used: u64,
}

/// The streams that are being followed.
pub struct Streams {
    streams: [Stream; STREAMS],
    clock: u64,
    /// Above 0 while most of what is read ahead is asked for; within [`TRUST`] either way.
    trust: i32,
}

/// Chunks read ahead in vain, with as many more that were asked for, until streams are no longer trusted.
const TRUST: i32 = 32;

/// Where a fault's stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Step from chunk to chunk.
    pub stride: i64,
    /// How often the stream was right before.
    pub hits: u32,
}

impl Streams {
    /// None yet.
    pub const fn new() -> Self {
        let none = Stream { thread: 0, region: 0, last: 0, stride: 0, hits: 0, used: 0 };
        Self { streams: [none; STREAMS], clock: 0, trust: TRUST }
    }

    /// A chunk that was read ahead was asked for, or nobody came for it.
    pub fn judged(&mut self, right: bool) {
        self.trust = (self.trust + if right { 1 } else { -1 }).clamp(-TRUST, TRUST);
    }

    /// Is what streams foretell what mostly happens?
    pub fn trusted(&self) -> bool {
        self.trust > 0
    }

    /// A fault of `thread` on `chunk` of `region`. `passed(id)`: is this chunk in memory, so that a sweep passes it without
    /// a fault? Says where to read ahead, if the fault continues a stream.
    pub fn fault(&mut self, thread: u32, region: u32, chunk: ChunkId, passed: impl Fn(ChunkId) -> bool) -> Option<Ahead> {
        self.clock += 1;
        let clock = self.clock;
        let mine = |s: &Stream| s.used > 0 && s.thread == thread && s.region == region;
        let follows = |s: &Stream| {
            let distance = chunk as i64 - s.last as i64;
            let stride = if s.hits > 0 { s.stride } else { distance.signum() };
            if stride == 0 || distance.signum() != stride.signum() || distance % stride != 0 || distance / stride > PASS {
                return None;
            }
            // A new stream is believed if it is adjacent or passed only chunks in memory; so is an old one.
            let mut at = s.last as i64 + stride;
            while at != chunk as i64 {
                if !passed(at as ChunkId) {
                    return None;
                }
                at += stride;
            }
            Some((distance.abs(), stride))
        };
        let best = (self.streams.iter().enumerate())
            .filter(|(_, s)| mine(s))
            .filter_map(|(i, s)| follows(s).map(|(d, stride)| (i, d, stride)))
            .min_by_key(|(_, d, _)| *d);
        if let Some((i, _, stride)) = best {
            let s = self.streams.get_mut(i)?;
            *s = Stream { last: chunk, stride, hits: s.hits.saturating_add(1), used: clock, ..*s };
            return Some(Ahead { stride, hits: s.hits });
        }
        if let Some(ahead) = self.jump(thread, region, chunk) {
            return Some(ahead);
        }
        let oldest = self.streams.iter_mut().min_by_key(|s| s.used)?;
        *oldest = Stream { thread, region, last: chunk, stride: 0, hits: 0, used: clock };
        None
    }

    /// Two equal jumps by a power of two in a row make a stream of that stride.
    fn jump(&mut self, thread: u32, region: u32, chunk: ChunkId) -> Option<Ahead> {
        let clock = self.clock;
        let mut recent: [Option<usize>; 2] = [None; 2];
        for (i, s) in self.streams.iter().enumerate() {
            if s.used == 0 || s.thread != thread || s.region != region {
                continue;
            }
            let newer = |j: Option<usize>| j.and_then(|j| self.streams.get(j)).map_or(0, |o| o.used);
            if s.used > newer(recent[0]) {
                recent = [Some(i), recent[0]];
            } else if s.used > newer(recent[1]) {
                recent[1] = Some(i);
            }
        }
        let (last, before) = (*self.streams.get(recent[0]?)?, *self.streams.get(recent[1]?)?);
        let stride = chunk as i64 - last.last as i64;
        if stride.unsigned_abs().is_power_of_two()
            && last.last as i64 - before.last as i64 == stride
            && last.hits == 0
            && before.hits == 0
        {
            *self.streams.get_mut(recent[1]?)? = Stream::default();
            *self.streams.get_mut(recent[0]?)? = Stream { thread, region, last: chunk, stride, hits: 1, used: clock };
            return Some(Ahead { stride, hits: 1 });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(ChunkId) -> bool = |_| false;

    #[test]
    fn sequences_are_followed_forwards_and_backwards() {
        let mut s = Streams::new();
        assert_eq!(s.fault(1, 0, 100, NONE), None);
        assert_eq!(s.fault(1, 0, 101, NONE), Some(Ahead { stride: 1, hits: 1 }));
        assert_eq!(s.fault(2, 0, 102, NONE), None, "another thread's");
        assert_eq!(s.fault(1, 0, 102, NONE), Some(Ahead { stride: 1, hits: 2 }));
        assert_eq!(s.fault(1, 0, 900, NONE), None);
        assert_eq!(s.fault(1, 0, 899, NONE), Some(Ahead { stride: -1, hits: 1 }));
    }

    #[test]
    fn resident_chunks_are_passed() {
        let mut s = Streams::new();
        s.fault(1, 0, 10, NONE);
        assert_eq!(s.fault(1, 0, 15, |c| (11..15).contains(&c)), Some(Ahead { stride: 1, hits: 1 }));
        assert_eq!(s.fault(1, 0, 20, |c| c == 17), None);
    }

    #[test]
    fn both_halves_of_a_gate_are_sequences() {
        let mut s = Streams::new();
        let mut told = 0;
        for i in 0..16 {
            for c in [1000 + i, 1016 + i] {
                told += s.fault(1, 0, c, NONE).is_some_and(|a| a.stride == 1) as u32;
            }
        }
        assert_eq!(told, 30);
    }

    #[test]
    fn strides_by_powers_of_two_are_followed() {
        let mut s = Streams::new();
        let told: Vec<_> = (0..6).map(|i| s.fault(1, 0, 50 + 32 * i, NONE).map(|a| a.stride)).collect();
        assert_eq!(told, [None, None, Some(32), Some(32), Some(32), Some(32)]);
        let mut s = Streams::new();
        let told: Vec<_> = (0..6).map(|i| s.fault(1, 0, 50 + 33 * i, NONE).map(|a| a.stride)).collect();
        assert_eq!(told, [None; 6]);
    }

    #[test]
    fn trust_is_lost_by_what_was_read_in_vain_and_won_back() {
        let mut s = Streams::new();
        assert!(s.trusted());
        (0..TRUST).for_each(|_| s.judged(false));
        assert!(!s.trusted());
        (0..10 * TRUST).for_each(|_| s.judged(false)); // no more than it can win back
        (0..TRUST).for_each(|_| s.judged(true));
        assert!(!s.trusted());
        s.judged(true);
        assert!(s.trusted());
    }
}
