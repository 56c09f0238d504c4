//! Error dispatch: a failed operation becomes its thread's current operation while a handler runs, which may repair and retry it.
//! Precedence: the registered handler, then the program's own `handle_memory_error`, then ours. One dispatch per failure, none
//! inside a handler, retries bounded and spaced out; then what recovery allows. Called by `ffi` when an operation has failed, and
//! through the hook of `error` for failures that no caller waits for. Holds no lock while a handler runs.

use super::log::Record;
use super::{recovery, status};
use crate::config;
use crate::ds::Text;
use crate::error::{self, Class, Error, Failure, MESSAGE_BYTES, Status};
use crate::fail;
use crate::monitor::counters;
use crate::monitor::events::{self, Kind as Event};
use crate::os::escape::{self, Call, Ended};
use crate::os::worker;
use crate::sync::Mutex;
use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};

/// `qmem_error_handler_t`, with the enums as numbers.
pub type HandlerFn = unsafe extern "C" fn(i32, i32, *const core::ffi::c_char, *mut c_void);

/// A registered handler and its data.
#[derive(Clone, Copy)]
pub struct Handler {
    /// Called on the failing thread.
    pub function: HandlerFn,
    /// Passed to it.
    pub user: *mut c_void,
}
// SAFETY: the data is the program's, who registers it for every thread.
unsafe impl Send for Handler {}

/// An operation that failed and can be tried again.
#[derive(Clone, Copy)]
pub struct Operation<'a> {
    /// The function that the program called.
    pub name: &'a str,
    /// It gives a block: `retry_allocation` may run it.
    pub allocates: bool,
    /// Runs it once more; the block's address, or 0. Changes nothing when it fails.
    pub run: &'a dyn Fn() -> Result<usize, Error>,
}

/// Where an operation may get its memory from when what is configured has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detour {
    /// As configured.
    None,
    /// Paged requests from the heap.
    Classical,
    /// Heap requests from the pager, whose chunks can be swapped.
    Swap,
}

/// One failure while it is handled, on the stack of the thread that it happened on.
struct Dispatch<'a> {
    class: Class,
    status: Status,
    message: Message,
    /// It stands on stderr already.
    told: Cell<bool>,
    operation: Option<Operation<'a>>,
    /// What a retry gave.
    answer: Cell<Option<usize>>,
    /// Why the last try failed.
    last: RefCell<Error>,
    tries: Cell<u32>,
    most: u32,
    /// The handler changed something that may help, and swapping is allowed since.
    repaired: Cell<bool>,
    swapping: Cell<bool>,
    aborted: Cell<bool>,
}

type Message = Text<MESSAGE_BYTES>;

thread_local! {
    // No destructors and const initialisers: usable at any point of a thread's life.
    static LAST: Cell<Message> = const { Cell::new(Message::new()) };
    static CURRENT: Cell<*const Dispatch<'static>> = const { Cell::new(core::ptr::null()) };
    static DETOUR: Cell<Detour> = const { Cell::new(Detour::None) };
}

static REGISTERED: Mutex<Option<Handler>> = Mutex::new(None);
/// `handle_memory_error` as the program is linked: its own or ours.
static DOCUMENTED: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Names the documented handler, and has failures without a caller come here. Called before anything can fail.
pub fn install(handler: unsafe extern "C" fn(i32)) {
    if DOCUMENTED.swap(handler as *mut (), Ordering::AcqRel).is_null() {
        error::set_hook(without_caller);
    }
}

/// Another documented handler from now on.
pub fn adopt(handler: unsafe extern "C" fn(i32)) {
    DOCUMENTED.store(handler as *mut (), Ordering::Release);
}

/// Takes a handler in place of the one that is registered, which it gives back. None: back to the documented one.
pub fn register(handler: Option<Handler>) -> Option<Handler> {
    core::mem::replace(&mut *REGISTERED.lock(), handler)
}

/// This thread's last failure in words; empty if there was none.
pub fn last_error() -> Message {
    LAST.get()
}

/// Makes `error` the thread's last failure.
pub fn remember(error: &Error) {
    LAST.set(error.message);
}

/// The detour that this thread's present retry takes.
pub fn detour() -> Detour {
    DETOUR.get()
}

fn without_caller(failure: &Failure<'_>) -> Result<(), Error> {
    let run;
    let operation = match failure.again {
        Some(again) => {
            run = move || again().map(|()| 0);
            Some(Operation { name: "access to a paged buffer", allocates: false, run: &run })
        }
        None => None,
    };
    failed(failure.class, failure.error, failure.told, operation).map(drop)
}

/// The failure being handled on this thread, if there is one. A jump that libc does not know leaves a record behind that lies
/// deeper on the stack than whoever asks now: the stack grows downwards, and a handler's calls lie below its dispatch.
fn current<'a>() -> Option<&'a Dispatch<'a>> {
    let here = 0u8;
    let found = CURRENT.get();
    // SAFETY: `found` was set by `failed` further up this stack, which has not ended: it would have reset it, at a jump too.
    (!found.is_null() && (&raw const here as usize) < found as usize).then(|| unsafe { &*found.cast() })
}

/// Hands a failed operation to the handler, on this thread, with no lock held; then does what recovery allows. Ok: a retry
/// succeeded, with what it gave. A failure inside a handler comes back as it is.
#[cold]
#[inline(never)]
pub fn failed(class: Class, error: &Error, told: bool, operation: Option<Operation<'_>>) -> Result<usize, Error> {
    remember(error);
    if current().is_some() {
        return Err(error.clone());
    }
    counters::ERRORS.count(class as usize);
    events::note(Event::Failure, class as u64, 0);
    let settings = recovery::settings();
    let dispatch = Dispatch {
        class,
        status: error.status,
        message: error.message,
        told: Cell::new(told),
        operation,
        answer: Cell::new(None),
        last: RefCell::new(error.clone()),
        tries: Cell::new(0),
        most: settings.map_or(config::RETRIES, |s| s.max_retries),
        repaired: Cell::new(false),
        swapping: Cell::new(false),
        aborted: Cell::new(false),
    };
    if settings.is_some_and(|s| s.logging) {
        dispatch.record("failure", told);
        dispatch.told.set(true);
    }
    CURRENT.set((&raw const dispatch).cast());
    dispatch.call_handler();
    // Retries by recovery count as the handler's: failures inside them are part of this one.
    let result = dispatch.conclude(settings);
    CURRENT.set(core::ptr::null());
    if result.is_ok() {
        events::note(Event::Repair, class as u64, u64::from(dispatch.tries.get()));
    }
    if settings.is_some_and(|s| s.logging) {
        dispatch.record(
            if result.is_ok() {
                "repaired"
            } else if dispatch.aborted.get() {
                "aborted"
            } else {
                "given up"
            },
            false,
        );
    }
    if let Err(error) = &result {
        if operation.is_some_and(|o| o.allocates) {
            status::refused();
        }
        remember(error); // what the handler's own calls left there is of no interest to the caller
    }
    result
}

fn handler_left() {
    CURRENT.set(core::ptr::null());
}

impl Dispatch<'_> {
    fn call_handler(&self) {
        let registered = *REGISTERED.lock();
        let mut text = [0u8; MESSAGE_BYTES + 1];
        for (to, from) in text.iter_mut().zip(self.message.as_str().bytes().filter(|b| *b != 0)) {
            *to = from;
        }
        let class = self.class as i32 as usize;
        let call = match registered {
            Some(Handler { function, user }) => Call {
                function: function as *const (),
                arguments: [class, self.status as i32 as usize, text.as_ptr() as usize, user as usize],
            },
            None => Call { function: DOCUMENTED.load(Ordering::Acquire), arguments: [class, 0, 0, 0] },
        };
        if call.function.is_null() {
            return;
        }
        // SAFETY: both kinds of handler take what is passed, by their types; a jump over this frame destroys nothing that needs it.
        if unsafe { escape::call(&call, handler_left) } == Ended::Threw {
            self.aborted.set(true);
        }
    }

    /// What the original call answers, after the handler has returned.
    fn conclude(&self, settings: Option<recovery::Settings>) -> Result<usize, Error> {
        if let Some(answer) = self.answer.get() {
            return Ok(answer);
        }
        if self.aborted.get() {
            return Err(fail!(Aborted, "aborted by the error handler: {}", self.message));
        }
        if self.operation.is_none() {
            return Err(self.last.borrow().clone());
        }
        if self.repaired.get()
            && self.tries.get() == 0
            && let Ok(answer) = self.attempt(self.detour())
        {
            return Ok(answer);
        }
        if let Some(settings) = settings {
            while self.tries.get() < self.most {
                if let Ok(answer) = self.attempt(self.detour()) {
                    return Ok(answer);
                }
            }
            if let Some(answer) = self.fall_back(settings.fallback) {
                return Ok(answer);
            }
        }
        Err(self.last.borrow().clone())
    }

    fn fall_back(&self, detour: Detour) -> Option<usize> {
        match detour {
            Detour::None => return None,
            Detour::Swap if super::allocation::enable_swapping().is_err() => return None,
            _ => {}
        }
        let answer = self.run(detour).ok()?;
        counters::FALLBACKS.add(1);
        events::note(Event::Fallback, self.class as u64, 0);
        Some(answer)
    }

    fn detour(&self) -> Detour {
        if self.swapping.get() { Detour::Swap } else { Detour::None }
    }

    /// One retry, after a pause that grows.
    fn attempt(&self, detour: Detour) -> Result<usize, Error> {
        if let Some(answer) = self.answer.get() {
            return Ok(answer);
        }
        let tries = self.tries.get();
        if tries >= self.most {
            let last = self.last.borrow();
            return Err(fail!(Limit, "all {tries} retries of this failure have been made; the last one failed: {last}"));
        }
        self.tries.set(tries + 1);
        counters::RETRIES.add(1);
        if tries > 0 {
            let (first, most) = config::BACK_OFF_MS;
            worker::pause((first << (tries - 1).min(16)).min(most) as i64 * 1000);
        }
        self.run(detour)
    }

    fn run(&self, detour: Detour) -> Result<usize, Error> {
        let Some(operation) = self.operation else { return Err(nothing_to("retry")) };
        let before = DETOUR.replace(detour);
        let result = (operation.run)(); // does not unwind: whoever made it catches panics
        DETOUR.set(before);
        match &result {
            Ok(answer) => self.answer.set(Some(*answer)),
            Err(error) => *self.last.borrow_mut() = error.clone(),
        }
        result
    }

    fn record(&self, event: &str, quiet: bool) {
        let record = Record {
            class: self.class,
            status: self.status,
            operation: self.operation.map_or("", |o| o.name),
            event,
            tries: self.tries.get(),
            message: self.message.as_str(),
        };
        record.write(quiet);
    }
}

fn nothing_to(what: &str) -> Error {
    fail!(NotFound, "there is nothing to {what}: no failed operation is being handled on this thread")
}

/// `retry_allocation`: the block that the current operation now gives.
pub fn retry_allocation() -> Result<*mut u8, Error> {
    let dispatch = current().ok_or_else(|| nothing_to("retry"))?;
    match dispatch.operation {
        Some(Operation { allocates: true, .. }) => dispatch.attempt(dispatch.detour()).map(|block| block as *mut u8),
        Some(Operation { name, .. }) => Err(fail!(NotFound, "{name} is no allocation: use retry_operation")),
        None => Err(nothing_to("retry")),
    }
}

/// `retry_operation`.
pub fn retry_operation() -> Result<(), Error> {
    let dispatch = current().ok_or_else(|| nothing_to("retry"))?;
    if dispatch.operation.is_none() {
        return Err(fail!(NotFound, "this failure has no operation that could be tried again: {}", dispatch.message));
    }
    dispatch.attempt(dispatch.detour()).map(drop)
}

/// `abort_operation`.
pub fn abort() -> Result<(), Error> {
    let dispatch = current().ok_or_else(|| nothing_to("abort"))?;
    dispatch.aborted.set(true);
    Ok(())
}

/// The program or its handler changed something on whose account a failed operation is worth another try.
pub fn repaired() {
    if let Some(dispatch) = current() {
        dispatch.repaired.set(true);
    }
}

/// `enable_swapping`, whose effect on the current operation is that it may be paged.
pub fn enable_swapping() -> Result<(), Error> {
    super::allocation::enable_swapping()?;
    if let Some(dispatch) = current() {
        dispatch.swapping.set(true);
    }
    repaired();
    Ok(())
}

/// `log_memory_error`: a record of the failure being handled, or of the thread's last one.
pub fn log(class: Class) {
    match current() {
        Some(dispatch) if dispatch.class == class => dispatch.record("failure", false),
        _ => {
            let last = last_error();
            let message = if last.as_str().is_empty() { "no failure on this thread so far" } else { last.as_str() };
            Record { class, status: Status::Ok, operation: "", event: "failure", tries: 0, message }.write(false);
        }
    }
}

/// What our own `handle_memory_error` does: a record, which is not repeated on stderr where it stands already.
pub fn handle(class: Class) {
    match current() {
        Some(dispatch) if dispatch.class == class && dispatch.told.get() => dispatch.record("failure", true),
        _ => log(class),
    }
}

/// Before fork(2): nobody is inside until [`after_fork`].
pub fn before_fork() {
    REGISTERED.lock_for_fork();
}

/// # Safety
/// This thread called [`before_fork`].
pub unsafe fn after_fork(_in_child: bool) {
    // SAFETY: the caller's promise.
    unsafe { REGISTERED.unlock_after_fork() };
}
