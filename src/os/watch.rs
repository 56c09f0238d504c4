//! Watching a child of fork from afar: a pipe whose writing end only the child (and what it forks) holds, so that the kernel says
//! when the last of them has ended or exec'd, however they ended. Called by the pager's swap only.

/// The parent's view of one child.
pub struct Watch {
    reading: i32,
    /// Closed in the parent right after fork.
    writing: i32,
}

impl Watch {
    /// To be made before fork. None if there are no descriptors left.
    pub fn new() -> Option<Self> {
        let mut ends = [-1; 2];
        // SAFETY: room for two descriptors.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == 0;
        made.then_some(Self { reading: ends[0], writing: ends[1] })
    }

    /// After fork, in the parent.
    pub fn keep_reading_end(&mut self) {
        if self.writing >= 0 {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(self.writing) };
            self.writing = -1;
        }
    }

    /// After fork, in the child: it holds the writing end until it ends, and watches none of its parent's other children.
    pub fn leave_to_child(self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.reading) };
        core::mem::forget(self);
    }

    /// Has everybody who could write ended?
    pub fn has_ended(&self) -> bool {
        let mut fd = libc::pollfd { fd: self.reading, events: 0, revents: 0 };
        // SAFETY: one valid pollfd; no waiting.
        self.writing < 0 && unsafe { libc::poll(&raw mut fd, 1, 0) } == 1
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.keep_reading_end();
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.reading) };
    }
}
