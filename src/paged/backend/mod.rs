//! How frames get into a region and out of it: the seam between the pager and the kernel. Three mechanisms, chosen once, the best
//! first: MOVE (`moving.rs`), REMAP (`remap.rs`), SIGNAL (`signal.rs`). What each must do is said here. Called by fill, evict and
//! the face; knows addresses only, no chunks and no frames.

mod moving;
mod remap;
mod signal;

use crate::config;
use crate::error::{Class, Error, report};
use crate::fail;
use crate::os::uffd::Fault;
use crate::os::{limits, vm, worker};
use moving::Moving;
use remap::Remap;
use signal::Signal;

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// All of it is there.
    Whole,
    /// All of it is there, but no longer as one huge page: its frame is not worth keeping.
    InPieces,
    /// Nothing moved: the kernel holds a page (pinned for I/O), or has no mapping left.
    Refused,
}

/// The mechanisms, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// userfaultfd with UFFDIO_MOVE: Linux 6.8.
    Move,
    /// userfaultfd, pages moved by mremap: Linux 5.7.
    Remap,
    /// No userfaultfd: SIGSEGV tells of a fault, pages are moved by mremap where it can, else copied.
    Signal,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Move, Self::Remap, Self::Signal];

    /// As in QMEM_BACKEND.
    pub fn name(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Remap => "remap",
            Self::Signal => "signal",
        }
    }
}

/// What is in use and why nothing better is.
#[derive(Debug)]
pub struct Info {
    /// The mechanism.
    pub kind: Kind,
    /// QMEM_BACKEND asked for it.
    pub forced: bool,
    /// System calls may be given any paged address. Otherwise they fail with EFAULT on what is not resident: hold it first.
    pub kernel_faults: bool,
    /// Most frames at a time that vm.max_map_count allows; usize::MAX where it does not matter.
    pub max_frames: usize,
    /// Better mechanisms and what stood against each.
    pub refused: [Option<(Kind, Error)>; 2],
}

impl Info {
    /// Must what a system call is given be held resident?
    pub fn needs_hold(&self) -> bool {
        self.kind != Kind::Move || !self.kernel_faults
    }
}

#[allow(clippy::large_enum_variant)] // there is one in a process
enum Mechanism {
    Move(Moving),
    Remap(Remap),
    Signal(Signal),
}

/// The mechanism in use.
pub struct Backend {
    mechanism: Mechanism,
    /// Told to whoever asks.
    pub info: Info,
}

/// The same call for whichever mechanism it is.
macro_rules! each {
    ($self:ident, $m:ident => $call:expr) => {
        match &$self.mechanism {
            Mechanism::Move($m) => $call,
            Mechanism::Remap($m) => $call,
            Mechanism::Signal($m) => $call,
        }
    };
}

impl Backend {
    /// The best mechanism this process may use, or the one that QMEM_BACKEND names.
    pub fn open() -> Result<Self, Error> {
        let asked = config::environment(config::BACKEND_ENV).map(|name| (name, name.to_str().unwrap_or("?")));
        if let Some((_, name)) = asked.filter(|(_, name)| *name != "auto") {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
                return Err(fail!(InvalidArgument, "the backend {name} (QMEM_BACKEND) is none of auto, move, remap, signal"));
            };
            let mechanism = Self::start(kind)
                .map_err(|error| fail!(Unsupported, "the backend {name} (QMEM_BACKEND) cannot be used: {error}"))?;
            return Ok(Self::with(mechanism, kind, true, [None, None]));
        }
        let mut refused = [None, None];
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            match Self::start(kind) {
                Ok(mechanism) => return Ok(Self::with(mechanism, kind, false, refused)),
                Err(error) => match refused.get_mut(i) {
                    Some(place) => *place = Some((kind, error)),
                    None => return Err(fail!(Unsupported, "no paged buffers here: {error}")),
                },
            }
        }
        Err(fail!(Internal, "no mechanism for paged buffers was tried"))
    }

    fn start(kind: Kind) -> Result<Mechanism, Error> {
        Ok(match kind {
            Kind::Move => Mechanism::Move(Moving::open()?),
            Kind::Remap => Mechanism::Remap(Remap::open()?),
            Kind::Signal => Mechanism::Signal(Signal::open()?),
        })
    }

    fn with(mechanism: Mechanism, kind: Kind, forced: bool, refused: [Option<(Kind, Error)>; 2]) -> Self {
        let (kernel_faults, per_frame) = match &mechanism {
            Mechanism::Move(m) => (m.kernel_faults(), 0),
            Mechanism::Remap(m) => (m.kernel_faults(), remap::MAPPINGS_PER_FRAME),
            Mechanism::Signal(_) => (false, signal::MAPPINGS_PER_FRAME),
        };
        let mappings = limits::mappings();
        let max_frames = (mappings - mappings / 4).checked_div(per_frame).unwrap_or(usize::MAX);
        Self { mechanism, info: Info { kind, forced, kernel_faults, max_frames, refused } }
    }

    /// Readable when faults wait.
    pub fn descriptor(&self) -> i32 {
        each!(self, m => m.descriptor())
    }

    /// The next waiting fault; never blocks.
    pub fn next_fault(&self) -> Option<Fault> {
        each!(self, m => m.next_fault())
    }

    /// In a child of fork, which has the parent's mappings but not what serves their faults: a mechanism of its own. Bays and
    /// regions are to be taken over one by one.
    pub fn reopen(&self) -> Result<(), Error> {
        each!(self, m => m.reopen())
    }

    /// A range of bays that was the parent's.
    pub fn take_over_bays(&self, start: usize, len: usize) -> Result<(), Error> {
        each!(self, m => m.add_bays(start, len))
    }

    /// A region that was the parent's; what is resident in it stays.
    pub fn take_over_region(&self, start: usize, len: usize) -> Result<(), Error> {
        match &self.mechanism {
            Mechanism::Move(m) => m.add_region(start, len),
            Mechanism::Remap(m) => m.add_region(start, len),
            Mechanism::Signal(_) => Ok(()), // what may not be touched may not be touched in the child either
        }
    }

    /// A fresh private range for bays, empty.
    pub fn add_bays(&self, start: usize, len: usize) -> Result<(), Error> {
        each!(self, m => m.add_bays(start, len))
    }

    /// A fresh private range for a region: faults in it come to us from now on.
    pub fn add_region(&self, start: usize, len: usize) -> Result<(), Error> {
        each!(self, m => m.add_region(start, len))
    }

    /// No more faults of a range of bays or of a region, which is unmapped next.
    pub fn remove(&self, start: usize, len: usize) {
        each!(self, m => m.remove(start, len));
    }

    /// Lets whoever waits in the range try again.
    pub fn wake(&self, start: usize, len: usize) {
        each!(self, m => m.wake(start, len));
    }

    /// Makes a frame of zeros in an empty bay, of one huge page if `huge` and the kernel can. None: no memory is to be had. Else,
    /// is it as wished?
    ///
    /// # Safety
    /// The bay is `len` bytes, the caller's, and empty.
    pub unsafe fn make_frame(&self, bay: usize, len: usize, huge: bool) -> Option<bool> {
        // SAFETY: the caller's promise.
        each!(self, m => unsafe { m.make_frame(bay, len, huge) })
    }

    /// The most bytes of frames that vm.max_map_count leaves room for; usize::MAX where it does not matter.
    pub fn most_bytes(&self) -> usize {
        self.info.max_frames.saturating_mul(vm::HUGE)
    }

    /// The smallest chunk with which `budget` bytes of frames are few enough, up to 2 MiB.
    pub fn least_chunk(&self, budget: usize) -> usize {
        budget.div_ceil(self.info.max_frames).clamp(1, vm::HUGE).next_power_of_two()
    }

    /// Moves a complete frame from `bay` to the unmapped chunk at `chunk`, at once for the program or page by page but never
    /// with wrong bytes, and wakes its waiters. Does not fail.
    ///
    /// # Safety
    /// Both are `len` bytes of the pager's own mappings and the caller owns chunk and frame.
    pub unsafe fn map_in(&self, chunk: usize, bay: usize, len: usize) {
        // SAFETY: the caller's promise.
        each!(self, m => unsafe { m.map_in(chunk, bay, len) });
    }

    /// Moves a mapped chunk out to the empty `bay`. Atomic for the program: an access from now on faults and waits.
    /// Refused leaves the chunk mapped as it was.
    ///
    /// # Safety
    /// As [`Self::map_in`].
    pub unsafe fn map_out(&self, bay: usize, chunk: usize, len: usize) -> Moved {
        // SAFETY: the caller's promise.
        each!(self, m => unsafe { m.map_out(bay, chunk, len) })
    }

    /// Drops a mapped chunk's frame, whose contents are not missed.
    ///
    /// # Safety
    /// The chunk is mapped and the caller's.
    pub unsafe fn unmap(&self, chunk: usize, len: usize) {
        // SAFETY: the caller's promise.
        each!(self, m => unsafe { m.unmap(chunk, len) });
    }

    /// A fault in a chunk that is mapped: the program dropped the page (MADV_DONTNEED), which then reads as zeros, or has
    /// forbidden itself the access, or the fault is out of date. The caller wakes the page.
    ///
    /// # Safety
    /// The fault's page lies in a mapped chunk that the caller owns.
    pub unsafe fn repair(&self, fault: &Fault) {
        // SAFETY: the caller's promise.
        each!(self, m => unsafe { m.repair(fault) });
    }

    /// Does this thread wait for a page of a chunk that it owns itself?
    pub fn is_unsharing(&self, fault: &Fault) -> bool {
        matches!(&self.mechanism, Mechanism::Move(m) if m.is_unsharing(fault))
    }

    /// Access to the chunk raises SIGBUS from now on.
    pub fn poison(&self, chunk: usize, len: usize) {
        each!(self, m => m.poison(chunk, len));
    }
}

/// Until it is done: mappings and memory come back as others give theirs up.
fn patiently(mut act: impl FnMut() -> Result<(), i32>) {
    let mut tries = 0;
    while let Err(error) = act() {
        tries += 1;
        if tries == 1000 {
            report(
                Class::Allocation,
                &fail!(
                    OutOfMemory,
                    "a paged chunk cannot be mapped (errno {error}) and an access waits: the process has too many mappings; raise vm.max_map_count (now {}) or lower max_memory",
                    limits::mappings()
                ),
            );
        }
        worker::pause(1000);
    }
}
