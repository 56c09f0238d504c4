//! A pipe for small messages from signal handlers: written whole, read whole. Called by the pager's signal backend only.

use super::vm::errno;
use crate::error::Error;
use crate::fail;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

/// Both ends. Reading never waits; writing does while the pipe is full.
pub struct Pipe {
    /// Change only in a child of fork, before it has a second thread.
    ends: [AtomicI32; 2],
}

impl Pipe {
    /// An empty one.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { ends: Self::open()?.map(AtomicI32::new) })
    }

    /// In a child of fork: a pipe of its own, not the parent's.
    pub fn reopen(&self) -> Result<(), Error> {
        for (end, new) in self.ends.iter().zip(Self::open()?) {
            // SAFETY: the parent's descriptor; the child has no use for it.
            unsafe { libc::close(end.swap(new, Relaxed)) };
        }
        Ok(())
    }

    fn open() -> Result<[i32; 2], Error> {
        let mut ends = [0; 2];
        // SAFETY: two descriptors of ours, or an error.
        unsafe {
            if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                return Err(fail!(OutOfMemory, "no pipe (errno {}): check ulimit -n", errno()));
            }
            libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK);
        }
        Ok(ends)
    }

    /// For poll(2).
    pub fn read_end(&self) -> i32 {
        self.ends[0].load(Relaxed)
    }

    /// For [`Self::send`].
    pub fn write_end(&self) -> i32 {
        self.ends[1].load(Relaxed)
    }

    /// Writes a message of less than PIPE_BUF bytes. False if the descriptor is no longer the pipe's. Safe in a signal handler; no
    /// cancellation point.
    pub fn send<T: Copy>(write_end: i32, message: &T) -> bool {
        loop {
            // SAFETY: the message's bytes are readable.
            let n = unsafe { libc::syscall(libc::SYS_write, write_end, core::ptr::from_ref(message), size_of::<T>()) };
            if n == size_of::<T>() as i64 || n >= 0 || errno() != libc::EINTR {
                return n == size_of::<T>() as i64;
            }
        }
    }

    /// The next message, if there is one. `T` is what was sent, and valid whatever its bytes are.
    pub fn receive<T: Copy + Default>(&self) -> Option<T> {
        let mut message = T::default();
        loop {
            // SAFETY: the message's bytes are ours to write.
            let n = unsafe { libc::read(self.read_end(), (&raw mut message).cast(), size_of::<T>()) };
            if n == size_of::<T>() as isize {
                return Some(message);
            }
            if n >= 0 || errno() != libc::EINTR {
                return None;
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // SAFETY: the descriptors are ours.
        unsafe {
            libc::close(self.read_end());
            libc::close(self.write_end());
        }
    }
}
