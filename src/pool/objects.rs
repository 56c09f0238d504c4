//! Object pools: objects that a program's function makes, lent to one thread at a time. One lock; the program's functions run
//! without it. Threads that wait get objects in the order in which they came. Called by system and ffi.

use super::handles::Handles;
use crate::config;
use crate::ds::{AddressMap, Zeroed};
use crate::error::Error;
use crate::fail;
use crate::monitor::account::{self, Holder};
use crate::os::clock;
use crate::sync::{Guard, Mutex, futex_wait_for, futex_wake};
use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::null;
use core::sync::atomic::{AtomicU32, Ordering};

/// Makes an object; null: it cannot be had.
pub type CreateFn = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
/// Does something with an object.
pub type ObjectFn = unsafe extern "C" fn(*mut c_void, *mut c_void);

/// How an object pool is to be.
#[derive(Clone, Copy)]
pub struct Config {
    /// Makes an object.
    pub create: CreateFn,
    /// Called when one comes back.
    pub reset: Option<ObjectFn>,
    /// Called when one is given up.
    pub destroy: Option<ObjectFn>,
    /// Passed to each.
    pub user: *mut c_void,
    /// Objects made at once.
    pub initial: usize,
    /// Objects at most; 0 = the default.
    pub max: usize,
}

// SAFETY: the program says that its functions may be called from any thread with this pointer.
unsafe impl Send for Config {}
// SAFETY: as above.
unsafe impl Sync for Config {}

/// Where an object is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stand {
    /// In the pool.
    Free = 0,
    /// Somebody has it.
    Lent = 1,
    /// On its way back.
    Returning = 2,
}

#[derive(Clone, Copy)]
struct Object {
    stand: Stand,
    /// The next free one.
    next: usize,
}

// SAFETY: zero is `Free` and a number.
unsafe impl Zeroed for Object {}

const WAITING: u32 = 0;
/// The waiter has an object.
const SERVED: u32 = 1;
/// The waiter may make one.
const MAY_CREATE: u32 = 2;

/// A thread that waits, on its own stack.
struct Waiter {
    word: AtomicU32,
    /// Under the lock, as is `next`; read once the word is set.
    object: Cell<usize>,
    next: Cell<*const Waiter>,
}

struct State {
    objects: AddressMap<Object>,
    /// The first free object; 0 = none.
    free: usize,
    /// Objects that there are or that are being made.
    total: usize,
    /// Waiting threads, longest first.
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: waiters are touched under the lock while they are in the list.
unsafe impl Send for State {}

struct ObjectPool {
    config: Config,
    max: usize,
    state: Mutex<State>,
}

static POOLS: Handles<ObjectPool> = Handles::new("object pool", config::POOLS);

impl State {
    fn lend(&mut self) -> Option<usize> {
        let object = self.free;
        let known = self.objects.get_mut(object)?;
        known.stand = Stand::Lent;
        self.free = known.next;
        Some(object)
    }

    fn take_waiter(&mut self) -> Option<&'static Waiter> {
        // SAFETY: a waiter in the list is on the stack of a thread that waits, which it does until its word is set.
        let waiter = unsafe { self.first.as_ref()? };
        self.first = waiter.next.get();
        if self.first.is_null() {
            self.last = null();
        }
        Some(waiter)
    }

    fn enter(&mut self, waiter: &Waiter) {
        // SAFETY: as above.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.first = waiter,
        }
        self.last = waiter;
    }

    /// Takes out a waiter that gives up; false: it is not there any more.
    fn leave(&mut self, waiter: &Waiter) -> bool {
        let (mut at, mut before) = (self.first, null::<Waiter>());
        // SAFETY: as above.
        while let Some(other) = unsafe { at.as_ref() } {
            let next = other.next.get();
            if core::ptr::eq(other, waiter) {
                // SAFETY: as above.
                match unsafe { before.as_ref() } {
                    Some(before) => before.next.set(next),
                    None => self.first = next,
                }
                if next.is_null() {
                    self.last = before;
                }
                return true;
            }
            (before, at) = (at, next);
        }
        false
    }

    /// An object can be lent: to the thread that waits longest, else it lies ready.
    fn offer(&mut self, object: usize) {
        let waiter = self.take_waiter();
        let next = self.free;
        if let Some(known) = self.objects.get_mut(object) {
            known.stand = if waiter.is_some() { Stand::Lent } else { Stand::Free };
            known.next = next;
            if waiter.is_none() {
                self.free = object;
            }
        }
        if let Some(waiter) = waiter {
            waiter.go_on(object, SERVED);
        }
    }

    /// One object less: the thread that waits longest may make another.
    fn one_less(&mut self) {
        match self.take_waiter() {
            Some(waiter) => waiter.go_on(0, MAY_CREATE),
            None => self.total -= 1,
        }
    }
}

impl Waiter {
    /// Lets it go on. Under the lock, which it takes once more before it leaves.
    fn go_on(&self, object: usize, word: u32) {
        self.object.set(object);
        self.word.store(word, Ordering::Release);
        futex_wake(&self.word, 1);
    }
}

impl ObjectPool {
    /// The lock, with room charged for one more object.
    fn lock_with_room(&self) -> Result<(Guard<'_, State>, usize), Error> {
        loop {
            let state = self.state.lock();
            let growth = state.objects.growth();
            if growth == 0 || account::try_charge(Holder::Tables, growth) {
                let charged = state.objects.bytes() + growth;
                return Ok((state, charged));
            }
            drop(state);
            account::charge(Holder::Tables, growth)?; // makes room, without the lock
            account::uncharge(Holder::Tables, growth);
        }
    }

    /// Makes an object, which is counted already; it is lent, or in the pool.
    fn make(&self, stand: Stand) -> Result<usize, Error> {
        // SAFETY: the program gave the function for this call; no lock is held.
        let object = unsafe { (self.config.create)(self.config.user) } as usize;
        let entered = if object == 0 {
            Err(fail!(OutOfMemory, "the create function of the object pool returned NULL"))
        } else {
            self.enter(object, stand)
        };
        if entered.is_err() {
            self.state.lock().one_less();
        }
        entered.map(|()| object)
    }

    fn enter(&self, object: usize, stand: Stand) -> Result<(), Error> {
        let mut known = false;
        let entered = self.lock_with_room().and_then(|(mut state, charged)| {
            if state.objects.get(object).is_some() {
                account::uncharge(Holder::Tables, charged.saturating_sub(state.objects.bytes()));
                known = true;
                return Err(fail!(
                    InvalidArgument,
                    "the create function returned {object:#x}, which is in the object pool already"
                ));
            }
            let next = if stand == Stand::Free { state.free } else { 0 };
            let inserted = state.objects.insert(object, Object { stand, next });
            account::uncharge(Holder::Tables, charged.saturating_sub(state.objects.bytes()));
            if inserted.is_ok() && stand == Stand::Free {
                state.free = object;
            }
            inserted
        });
        if entered.is_err() && !known {
            self.give_up(object);
        }
        entered
    }

    fn give_up(&self, object: usize) {
        if let Some(destroy) = self.config.destroy {
            // SAFETY: the program gave the function for its objects; nobody has this one any more, and no lock is held.
            unsafe { destroy(object as *mut c_void, self.config.user) };
        }
    }

    fn acquire(&self, timeout_ms: u32) -> Result<usize, Error> {
        let waiter = Waiter { word: AtomicU32::new(WAITING), object: Cell::new(0), next: Cell::new(null()) };
        {
            let mut state = self.state.lock();
            if let Some(object) = state.lend() {
                return Ok(object);
            }
            if state.total < self.max {
                state.total += 1;
                drop(state);
                return self.make(Stand::Lent);
            }
            if timeout_ms == 0 {
                return Err(self.all_lent(0));
            }
            state.enter(&waiter);
        }
        let end = clock::monotonic().saturating_add(u64::from(timeout_ms) * 1_000_000);
        while waiter.word.load(Ordering::Acquire) == WAITING {
            let left = end.saturating_sub(clock::monotonic()).div_ceil(1_000_000);
            if left == 0 && timeout_ms != u32::MAX {
                let mut state = self.state.lock();
                if state.leave(&waiter) {
                    return Err(self.all_lent(timeout_ms));
                }
                continue; // it was served just now
            }
            futex_wait_for(&waiter.word, WAITING, if timeout_ms == u32::MAX { u32::MAX } else { left as u32 });
        }
        drop(self.state.lock()); // who served it may still be at it
        match waiter.word.load(Ordering::Acquire) {
            SERVED => Ok(waiter.object.get()),
            _ => self.make(Stand::Lent),
        }
    }

    #[cold]
    fn all_lent(&self, waited: u32) -> Error {
        let max = self.max;
        fail!(Timeout, "all {max} objects that max_size allows are in use, and none came back within {waited} ms")
    }

    fn release(&self, object: usize) -> Result<(), Error> {
        match self.state.lock().objects.get_mut(object) {
            Some(known) if known.stand == Stand::Lent => known.stand = Stand::Returning,
            Some(_) => return Err(fail!(InvalidArgument, "the object at {object:#x} was released already")),
            None => return Err(fail!(NotFound, "{object:#x} is no object of this object pool")),
        }
        if let Some(reset) = self.config.reset {
            // SAFETY: the program gave the function for its objects; nobody has this one now, and no lock is held.
            unsafe { reset(object as *mut c_void, self.config.user) };
        }
        self.state.lock().offer(object);
        Ok(())
    }
}

/// A new object pool with its first objects; its handle.
pub fn create(config: &Config) -> Result<usize, Error> {
    let (default, most) = config::POOL_OBJECTS;
    let max = if config.max == 0 { default } else { config.max };
    if max > most || config.initial > max {
        let initial = config.initial;
        return Err(fail!(
            InvalidArgument,
            "initial_size = {initial} and max_size = {max} (0 = {default}): the first is at most the second, and that at most {most}"
        ));
    }
    let state = State { objects: AddressMap::new(), free: 0, total: 0, first: null(), last: null() };
    let handle = POOLS.open(|_| ObjectPool { config: *config, max, state: Mutex::new(state) })?;
    let pool = POOLS.get(handle)?;
    for _ in 0..config.initial {
        pool.state.lock().total += 1;
        if let Err(error) = pool.make(Stand::Free) {
            // SAFETY: nobody else knows the handle yet.
            unsafe { destroy(handle, &mut |_| ())? };
            return Err(error);
        }
    }
    Ok(handle)
}

/// An object that nobody else has until it is released: one that lies ready, a new one, or one that another thread releases within the
/// time (u32::MAX: without limit).
pub fn acquire(handle: usize, timeout_ms: u32) -> Result<usize, Error> {
    POOLS.get(handle)?.acquire(timeout_ms)
}

/// Takes an object back, once it is reset.
pub fn release(handle: usize, object: usize) -> Result<(), Error> {
    POOLS.get(handle)?.release(object)
}

/// Ends an object pool and gives up the objects in it; `lent` is called for each that was not released, and stays as it is. Refused
/// while threads wait for one.
///
/// # Safety
/// Nobody calls anything for this pool any more.
pub unsafe fn destroy(handle: usize, lent: &mut dyn FnMut(usize)) -> Result<(), Error> {
    if !POOLS.get(handle)?.state.lock().first.is_null() {
        return Err(fail!(Busy, "threads are waiting for an object of the pool that is to be destroyed"));
    }
    // SAFETY: the caller's promise.
    let pool = unsafe { POOLS.close(handle)? };
    let bytes = pool.state.lock().objects.bytes();
    loop {
        let Some(object) = pool.state.lock().lend() else { break };
        pool.state.lock().objects.remove(object);
        pool.give_up(object);
    }
    pool.state.lock().objects.for_each(&mut |object, _| lent(object));
    account::uncharge(Holder::Tables, bytes);
    Ok(())
}

/// See the face.
pub fn before_fork() {
    POOLS.before_fork();
    POOLS.all().for_each(|pool| pool.state.lock_for_fork());
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(in_child: bool) {
    for pool in POOLS.all() {
        // SAFETY: the caller's promise.
        unsafe { pool.state.unlock_after_fork() };
        if in_child {
            let mut state = pool.state.lock();
            (state.first, state.last) = (null(), null()); // who waited is not here
        }
    }
    // SAFETY: the caller's promise.
    unsafe { POOLS.after_fork() };
}
