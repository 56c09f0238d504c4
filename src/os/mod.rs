//! Every system call and OS contract, one file per concern. Floor 0: called by every floor, calls only `error` and `ds::Text`.

pub mod clock;
pub mod document;
pub mod escape;
pub mod file;
pub mod fork;
pub mod hollow;
pub mod journal;
pub mod limits;
pub mod output;
pub mod pipe;
pub mod random;
pub mod segv;
pub mod shared;
pub mod thread;
pub mod uffd;
pub mod vm;
pub mod watch;
pub mod worker;
