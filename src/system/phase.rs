//! The life cycle that every subsystem shares, and which calls are in order: uninitialised → running → stopped → cleaned →
//! running … Called by the subsystems, under their locks.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::fail;

/// Where a subsystem stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Never initialised.
    Uninitialised = 0,
    /// Works.
    Running = 1,
    /// Nothing new; what was given stays usable.
    Stopped = 2,
    /// Nothing left.
    Cleaned = 3,
}

impl Phase {
    /// The phase stored as a number by `as u8`.
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Uninitialised,
            1 => Self::Running,
            2 => Self::Stopped,
            _ => Self::Cleaned,
        }
    }

    /// May `initialize` run now?
    pub fn may_start(self, subsystem: &str) -> Result<(), Error> {
        match self {
            Self::Uninitialised | Self::Cleaned => Ok(()),
            Self::Running => {
                Err(fail!(AlreadyInitialized, "{subsystem} runs already; stop it and clean it up to configure it anew"))
            }
            Self::Stopped => Err(fail!(Busy, "{subsystem} is stopped but not cleaned up; call its cleanup function first")),
        }
    }

    /// `stop`: is there anything to do?
    pub fn may_stop(self, subsystem: &str) -> Result<bool, Error> {
        match self {
            Self::Uninitialised => Err(fail!(NotInitialized, "{subsystem} cannot be stopped: it was never initialised")),
            Self::Running => Ok(true),
            Self::Stopped | Self::Cleaned => Ok(false),
        }
    }

    /// `cleanup`: is there anything to do?
    pub fn may_clean(self, subsystem: &str) -> Result<bool, Error> {
        match self {
            Self::Uninitialised => Err(fail!(NotInitialized, "{subsystem} cannot be cleaned up: it was never initialised")),
            Self::Running => Err(fail!(Busy, "{subsystem} is running: stop it first, then clean it up")),
            Self::Stopped => Ok(true),
            Self::Cleaned => Ok(false),
        }
    }

    /// May blocks be given? Before initialisation they may, with defaults.
    pub fn may_give(self, subsystem: &str) -> Result<(), Error> {
        match self {
            Self::Uninitialised | Self::Running => Ok(()),
            Self::Stopped => Err(fail!(NotInitialized, "{subsystem} is stopped and gives nothing new")),
            Self::Cleaned => Err(fail!(NotInitialized, "{subsystem} was cleaned up; initialise it again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn the_table() {
        use Phase::*;
        let status = |r: Result<(), Error>| r.map_or_else(|e| e.status, |()| Status::Ok);
        let todo = |r: Result<bool, Error>| r.map_err(|e| e.status);
        for (phase, start, stop, clean, give) in [
            (Uninitialised, Status::Ok, Err(Status::NotInitialized), Err(Status::NotInitialized), Status::Ok),
            (Running, Status::AlreadyInitialized, Ok(true), Err(Status::Busy), Status::Ok),
            (Stopped, Status::Busy, Ok(false), Ok(true), Status::NotInitialized),
            (Cleaned, Status::Ok, Ok(false), Ok(false), Status::NotInitialized),
        ] {
            assert_eq!(Phase::from_number(phase as u8), phase);
            assert_eq!(status(phase.may_start("x")), start);
            assert_eq!(todo(phase.may_stop("x")), stop);
            assert_eq!(todo(phase.may_clean("x")), clean);
            assert_eq!(status(phase.may_give("x")), give);
        }
    }
}
