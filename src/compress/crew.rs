//! Several threads at one piece of work: what they take from it one at a time, what they give back in order, and the first failure.
//! Called by the compressor only.

use crate::error::Error;
use crate::fail;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Something that threads take turns at.
pub struct Turn<T> {
    state: Mutex<State<T>>,
    moved: Condvar,
}

struct State<T> {
    inner: T,
    /// Whose turn it is, of those that go in order.
    next: usize,
    abandoned: bool,
}

impl<T> Turn<T> {
    /// Nobody's yet.
    pub fn new(inner: T) -> Self {
        Self { state: Mutex::new(State { inner, next: 0, abandoned: false }), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // What a panic leaves is not used: the whole run has failed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever comes first.
    pub fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        act(&mut self.lock().inner)
    }

    /// After all with smaller numbers: each number once, from 0 on. An error ends it for all.
    pub fn in_order<R>(&self, number: usize, act: impl FnOnce(&mut T) -> Result<R, Error>) -> Result<R, Error> {
        let mut state = self.lock();
        while state.next != number && !state.abandoned {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            return Err(fail!(Aborted, "another thread failed first"));
        }
        let result = act(&mut state.inner);
        state.next += 1;
        state.abandoned = result.is_err();
        drop(state);
        self.moved.notify_all();
        result
    }

    /// For a thread that takes turns: if it ends in any other way than it says, nobody waits for its turn any more.
    pub fn leaving(&self) -> Leaving<'_, T> {
        Leaving(Some(self))
    }

    /// When all are done.
    pub fn into_inner(self) -> T {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).inner
    }
}

/// See [`Turn::leaving`].
pub struct Leaving<'a, T>(Option<&'a Turn<T>>);

impl<T> Leaving<'_, T> {
    /// The thread's work is done.
    pub fn in_order(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Leaving<'_, T> {
    fn drop(&mut self) {
        if let Some(turn) = self.0 {
            turn.lock().abandoned = true;
            turn.moved.notify_all();
        }
    }
}

/// Runs `work` on this thread and on as many more as make `threads`, fewer if the system gives no more. The first failure; those that
/// only followed from another one's come last.
pub fn run(threads: usize, work: impl Fn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let start = || std::thread::Builder::new().name("qmem-compress".into()).spawn_scoped(scope, &work);
        let others: Vec<_> = (1..threads).map_while(|_| start().ok()).collect();
        let mut result = work();
        for other in others {
            let theirs = other.join().unwrap_or_else(|_| Err(fail!(Internal, "a thread that compressed ended in a panic")));
            let followed = |r: &Result<(), Error>| matches!(r, Err(e) if e.status == crate::error::Status::Aborted);
            if result.is_ok() || (followed(&result) && !followed(&theirs)) {
                result = theirs.and(result);
            }
        }
        result
    })
}
