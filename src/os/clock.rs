//! Time and who runs: clocks and thread numbers, by plain system calls that any context may make (signal handlers too). Called by
//! logs, histograms and whoever waits with a bound.

/// Nanoseconds of the monotonic clock.
pub fn monotonic() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970, UTC.
pub fn wall() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// Nanoseconds of processor time that this process has used, all threads together.
pub fn processor() -> u64 {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Milliseconds of the monotonic clock, a few behind, for a few nanoseconds: where idle memory is looked for.
pub fn coarse_milliseconds() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE) / 1_000_000
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec to write to.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The kernel's number of the calling thread.
pub fn thread() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// The process's number.
pub fn process() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getpid() as u32 }
}

/// Date and time of a [`wall`] time: year, month, day, hour, minute, second, nanosecond. Gregorian, no leap seconds.
pub fn civil(wall: u64) -> (u64, u64, u64, u64, u64, u64, u64) {
    let (seconds, nanos) = (wall / 1_000_000_000, wall % 1_000_000_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years; the leap day is the last of such a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds: u64| {
            let (y, mo, d, h, mi, s, _) = civil(seconds * 1_000_000_000);
            (y, mo, d, h, mi, s)
        };
        assert_eq!(at(0), (1970, 1, 1, 0, 0, 0));
        assert_eq!(at(951_782_399), (2000, 2, 28, 23, 59, 59));
        assert_eq!(at(951_782_400), (2000, 2, 29, 0, 0, 0));
        assert_eq!(at(4_107_542_400), (2100, 3, 1, 0, 0, 0));
        assert_eq!(at(1_798_761_599), (2026, 12, 31, 23, 59, 59));
    }

    #[test]
    fn clocks_run() {
        let before = monotonic();
        assert!(monotonic() >= before && wall() > 1_700_000_000_000_000_000 && thread() > 0);
    }
}
