//! Object pools: what is called when, who waits how long, and what is refused.

use super::*;
use core::ffi::c_void;
use qmem::error::Status;
use qmem::pool::objects::{self, Config};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Calls {
    made: AtomicUsize,
    reset: AtomicUsize,
    ended: AtomicUsize,
    /// Objects made from now on; then NULL.
    left: AtomicUsize,
}

/// An object counts who has it.
struct Object {
    holders: AtomicUsize,
}

unsafe extern "C" fn make(user: *mut c_void) -> *mut c_void {
    let calls = unsafe { &*user.cast::<Calls>() };
    if calls.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
        return std::ptr::null_mut();
    }
    calls.made.fetch_add(1, SeqCst);
    Box::into_raw(Box::new(Object { holders: AtomicUsize::new(0) })).cast()
}

unsafe extern "C" fn reset(object: *mut c_void, user: *mut c_void) {
    assert_eq!(unsafe { &*object.cast::<Object>() }.holders.load(SeqCst), 0);
    unsafe { &*user.cast::<Calls>() }.reset.fetch_add(1, SeqCst);
}

unsafe extern "C" fn end_one(object: *mut c_void, user: *mut c_void) {
    drop(unsafe { Box::from_raw(object.cast::<Object>()) });
    unsafe { &*user.cast::<Calls>() }.ended.fetch_add(1, SeqCst);
}

fn config(calls: &Calls, initial: usize, max: usize) -> Config {
    calls.left.store(1 << 30, SeqCst);
    let user = (&raw const *calls).cast_mut().cast();
    Config { create: make, reset: Some(reset), destroy: Some(end_one), user, initial, max }
}

#[test]
fn objects_are_lent_to_one_holder_at_a_time() {
    let calls = Calls::default();
    let handle = objects::create(&config(&calls, 2, 6)).unwrap();
    assert_eq!(calls.made.load(SeqCst), 2);
    let (most, now) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for own in 0..12u64 {
            let (most, now) = (&most, &now);
            s.spawn(move || {
                let mut random = Random(own);
                for _ in 0..2000 {
                    let object = objects::acquire(handle, u32::MAX).unwrap();
                    let held = unsafe { &*(object as *const Object) };
                    assert_eq!(held.holders.fetch_add(1, SeqCst), 0, "two threads have one object");
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    if random.below(20) == 0 {
                        std::thread::yield_now();
                    }
                    now.fetch_sub(1, SeqCst);
                    assert_eq!(held.holders.fetch_sub(1, SeqCst), 1);
                    objects::release(handle, object).unwrap();
                }
            });
        }
    });
    let made = calls.made.load(SeqCst);
    assert!(most.load(SeqCst) <= 6 && (2..=6).contains(&made));
    assert_eq!((calls.reset.load(SeqCst), calls.ended.load(SeqCst)), (24_000, 0));
    unsafe { objects::destroy(handle, &mut |object| panic!("{object:#x} is lent")).unwrap() };
    assert_eq!(calls.ended.load(SeqCst), made);
}

#[test]
fn who_waits_longest_is_served_first_and_nobody_waits_too_long() {
    let calls = Calls::default();
    let handle = objects::create(&config(&calls, 0, 1)).unwrap();
    let only = objects::acquire(handle, 0).unwrap();
    let begin = Instant::now();
    let refused = objects::acquire(handle, 40).unwrap_err();
    assert!(refused.status == Status::Timeout && refused.to_string().contains("all 1 objects"), "{refused}");
    assert!(begin.elapsed() >= Duration::from_millis(40));
    assert_eq!(objects::acquire(handle, 0).unwrap_err().status, Status::Timeout);
    let order = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for n in 0..5 {
            let (order, (tell, told)) = (&order, mpsc::channel());
            let waiter = s.spawn(move || {
                // SAFETY: takes nothing.
                tell.send(unsafe { libc::gettid() }).unwrap();
                // The third gives up before anyone is served; the others do not lose their place.
                match objects::acquire(handle, if n == 2 { 1 } else { u32::MAX }) {
                    Ok(object) => {
                        order.lock().unwrap().push(n);
                        objects::release(handle, object).unwrap();
                    }
                    Err(error) => assert!(n == 2 && error.status == Status::Timeout),
                }
            });
            let state = format!("/proc/self/task/{}/stat", told.recv().unwrap());
            while if n == 2 { !waiter.is_finished() } else { !std::fs::read_to_string(&state).unwrap().contains(") S ") } {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(unsafe { objects::destroy(handle, &mut |_| ()) }.unwrap_err().status, Status::Busy);
        objects::release(handle, only).unwrap();
    });
    assert_eq!(order.into_inner().unwrap(), [0, 1, 3, 4]);
    unsafe { objects::destroy(handle, &mut |_| panic!()).unwrap() };
}

#[test]
fn an_object_that_cannot_be_made_leaves_its_turn_to_others() {
    let calls = Calls::default();
    let handle = objects::create(&config(&calls, 0, 2)).unwrap();
    let one = objects::acquire(handle, 0).unwrap();
    calls.left.store(0, SeqCst);
    for _ in 0..3 {
        let error = objects::acquire(handle, 1000).unwrap_err();
        assert!(error.status == Status::OutOfMemory && error.to_string().contains("NULL"), "{error}");
    }
    calls.left.store(1, SeqCst);
    let two = objects::acquire(handle, 0).unwrap();
    assert!(one != two && calls.made.load(SeqCst) == 2);
    let mut lent = HashSet::new();
    objects::release(handle, one).unwrap();
    unsafe { objects::destroy(handle, &mut |object| assert!(lent.insert(object))).unwrap() };
    assert_eq!((lent.into_iter().collect::<Vec<_>>(), calls.ended.load(SeqCst)), (vec![two], 1));
    unsafe { end_one(two as *mut c_void, (&raw const calls).cast_mut().cast()) };
    calls.left.store(2, SeqCst);
    let asked = Config { initial: 3, ..config(&calls, 3, 3) };
    calls.left.store(2, SeqCst);
    assert_eq!(objects::create(&asked).unwrap_err().status, Status::OutOfMemory);
    assert_eq!(calls.ended.load(SeqCst), 4, "what was made before goes again");
}

#[test]
fn bad_requests_are_refused() {
    let calls = Calls::default();
    let more = objects::create(&config(&calls, 3, 2)).unwrap_err();
    assert!(more.status == Status::InvalidArgument && more.to_string().contains("initial_size = 3 and max_size = 2"), "{more}");
    let handle = objects::create(&config(&calls, 1, 0)).unwrap();
    let object = objects::acquire(handle, 0).unwrap();
    objects::release(handle, object).unwrap();
    assert!(objects::release(handle, object).unwrap_err().to_string().contains("released already"));
    assert_eq!(objects::release(handle, object + 1).unwrap_err().status, Status::NotFound);
    for wrong in [0, handle ^ 1 << 40, 77] {
        assert!(objects::acquire(wrong, 0).is_err() && objects::release(wrong, object).is_err());
    }
    unsafe { objects::destroy(handle, &mut |_| panic!()).unwrap() };
    assert!(unsafe { objects::destroy(handle, &mut |_| panic!()) }.is_err());
}

/// A create function that gives one object twice is found out.
#[test]
fn each_object_is_another_one() {
    static ONLY: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn same(_: *mut c_void) -> *mut c_void {
        (&raw const ONLY).cast_mut().cast()
    }
    let config = Config { create: same, reset: None, destroy: None, user: std::ptr::null_mut(), initial: 0, max: 5 };
    let handle = objects::create(&config).unwrap();
    let only = objects::acquire(handle, 0).unwrap();
    assert!(objects::acquire(handle, 0).unwrap_err().to_string().contains("in the object pool already"));
    objects::release(handle, only).unwrap();
    unsafe { objects::destroy(handle, &mut |_| panic!()).unwrap() };
}
