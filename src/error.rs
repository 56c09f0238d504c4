//! The one internal error: a status as C sees it and a message in a fixed buffer (no allocation, so the fault path may use it).
//! Called by everyone; calls nothing but `core::fmt` and write(2). Floor 0.

use crate::ds::Text;
use core::ffi::CStr;
use core::fmt;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Why a call failed; the values are those of `memory_status_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)] // the names are the meaning, spelled out at `memory_status_t`
pub enum Status {
    Ok = 0,
    InvalidArgument = -1,
    OutOfMemory = -2,
    NotInitialized = -3,
    AlreadyInitialized = -4,
    Busy = -5,
    Timeout = -6,
    Unsupported = -7,
    NotFound = -8,
    Limit = -9,
    Aborted = -10,
    Io = -16,
    Corrupt = -17,
    Device = -18,
    Internal = -127,
}

impl Status {
    /// A status from C; Internal for a number that is none.
    pub fn from_number(number: i32) -> Self {
        const ALL: [Status; 14] = [
            Status::Ok,
            Status::InvalidArgument,
            Status::OutOfMemory,
            Status::NotInitialized,
            Status::AlreadyInitialized,
            Status::Busy,
            Status::Timeout,
            Status::Unsupported,
            Status::NotFound,
            Status::Limit,
            Status::Aborted,
            Status::Io,
            Status::Corrupt,
            Status::Device,
        ];
        ALL.into_iter().find(|status| *status as i32 == number).unwrap_or(Self::Internal)
    }
}

/// The name of a status's number, as C spells it.
pub fn status_name(number: i32) -> &'static CStr {
    match number {
        0 => c"MEMORY_STATUS_OK",
        -1 => c"MEMORY_STATUS_INVALID_ARGUMENT",
        -2 => c"MEMORY_STATUS_OUT_OF_MEMORY",
        -3 => c"MEMORY_STATUS_NOT_INITIALIZED",
        -4 => c"MEMORY_STATUS_ALREADY_INITIALIZED",
        -5 => c"MEMORY_STATUS_BUSY",
        -6 => c"MEMORY_STATUS_TIMEOUT",
        -7 => c"MEMORY_STATUS_UNSUPPORTED",
        -8 => c"MEMORY_STATUS_NOT_FOUND",
        -9 => c"MEMORY_STATUS_LIMIT",
        -10 => c"MEMORY_STATUS_ABORTED",
        -16 => c"MEMORY_STATUS_IO",
        -17 => c"MEMORY_STATUS_CORRUPT",
        -18 => c"MEMORY_STATUS_DEVICE",
        -127 => c"MEMORY_STATUS_INTERNAL",
        _ => c"unknown status",
    }
}

/// What kind of failure is dispatched; the values are those of `memory_error_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Class {
    None = 0,
    Allocation = 1,
    Cache = 2,
    Resources = 3,
    Corruption = 4,
    Leak = 5,
    Io = 6,
    Device = 7,
}

/// Number of classes.
pub const CLASSES: usize = 8;

impl Class {
    /// Its name as C spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "MEMORY_ERROR_NONE",
            Self::Allocation => "MEMORY_ERROR_ALLOCATION",
            Self::Cache => "MEMORY_ERROR_CACHE",
            Self::Resources => "MEMORY_ERROR_RESOURCES",
            Self::Corruption => "MEMORY_ERROR_CORRUPTION",
            Self::Leak => "MEMORY_ERROR_LEAK",
            Self::Io => "MEMORY_ERROR_IO",
            Self::Device => "MEMORY_ERROR_DEVICE",
        }
    }

    /// The kind of failure that a status stands for; None where it is the caller's mistake or an answer.
    pub fn of(status: Status) -> Option<Self> {
        match status {
            Status::OutOfMemory | Status::Limit => Some(Self::Allocation),
            Status::Io => Some(Self::Io),
            Status::Corrupt => Some(Self::Corruption),
            Status::Device => Some(Self::Device),
            _ => None,
        }
    }
}

/// Longest message kept; the rest is cut.
pub const MESSAGE_BYTES: usize = 400;

/// A failed operation: what C is told and what a person is told.
#[derive(Clone)]
pub struct Error {
    /// For the program.
    pub status: Status,
    /// For the person: what failed, the numbers, what to do.
    pub message: Text<MESSAGE_BYTES>,
}

impl Error {
    /// Formats without allocating; used through [`fail!`](crate::fail).
    #[cold]
    pub fn new(status: Status, arguments: fmt::Arguments<'_>) -> Self {
        let mut message = Text::new();
        let _ = fmt::Write::write_fmt(&mut message, arguments); // a Text takes what fits and never fails
        Self { status, message }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.status, self.message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_str())
    }
}

/// `fail!(Limit, "text {}", n)`: an [`Error`] with that status.
#[macro_export]
macro_rules! fail {
    ($status:ident, $($arg:tt)*) => {
        $crate::error::Error::new($crate::error::Status::$status, format_args!($($arg)*))
    };
}

/// Tries a failed operation again.
pub type Again<'a> = &'a dyn Fn() -> Result<(), Error>;

/// A failure that no caller is waiting for: a worker's I/O error, a leak at clean-up, a pointer that is no block.
pub struct Failure<'a> {
    /// Its kind.
    pub class: Class,
    /// Status and words.
    pub error: &'a Error,
    /// It is on stderr already.
    pub told: bool,
    /// The operation that failed, where it can be tried again.
    pub again: Option<Again<'a>>,
}

/// Where such failures go. Ok: the operation has been done after all.
pub type Hook = fn(&Failure<'_>) -> Result<(), Error>;

static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the error-dispatch hook; the floors above own what dispatch means.
pub fn set_hook(hook: Hook) {
    HOOK.store(hook as *mut (), Ordering::Release);
}

/// Hands a failure to the error dispatch. Without a hook it is one line on stderr.
#[cold]
pub fn dispatch(failure: &Failure<'_>) -> Result<(), Error> {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        if !failure.told {
            crate::os::output::line(format_args!("qmem: {}", failure.error));
        }
        return Err(failure.error.clone());
    }
    // SAFETY: HOOK only ever holds null or a `Hook` stored by `set_hook`; fn pointers and data pointers have one size here.
    let hook: Hook = unsafe { core::mem::transmute(hook) };
    hook(failure)
}

/// Hands over a failure that cannot be tried again.
#[cold]
pub fn report(class: Class, error: &Error) {
    let _ = dispatch(&Failure { class, error, told: false, again: None }); // nothing to be done
}
