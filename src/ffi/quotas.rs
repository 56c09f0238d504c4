//! Chapter "resources" of <qmem.h>: a registry of resources with quotas, and requests for parts of them. Called by C only.

use super::guard::{answer, enumerator, operation, reference, status, within};
use super::memory::non_null;
use super::types::*;
use crate::error::{Class, Error, Status};
use crate::fail;
use crate::system::resources::{self, BalancerFn, Candidate, Handle, Sample};
use core::cell::Cell;
use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;

/// Kinds of resources; requests name one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum qmem_resource_kind_t {
    /// Bytes of memory.
    QMEM_RESOURCE_MEMORY = 0,
    /// Bytes of a cache.
    QMEM_RESOURCE_CACHE,
    /// Bytes of a GPU.
    QMEM_RESOURCE_GPU,
    /// Requests to a remote endpoint; the name's part between "://" and the next "/" is the endpoint.
    QMEM_RESOURCE_NETWORK,
    /// Whatever the program says.
    QMEM_RESOURCE_CUSTOM,
}

/// A registered resource: a handle that can be compared, but not looked into. qmem knows when one is out of date.
pub enum qmem_resource {}
/// As above.
pub type qmem_resource_t = qmem_resource;

/// What a balancer chooses from: the resources that have the amount free.
#[repr(C)]
pub struct qmem_candidate_t {
    /// The resource.
    pub resource: *mut qmem_resource_t,
    /// In use, and what there is.
    pub used: u64,
    /// What there is.
    pub capacity: u64,
    /// Requests that hold parts of it.
    pub holds: u64,
    /// As registered.
    pub numa_node: i32,
}

/// One look at a resource.
#[repr(C)]
pub struct qmem_usage_sample_t {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// In use.
    pub used: u64,
    /// What there was.
    pub capacity: u64,
}

const _: () = assert!(size_of::<qmem_candidate_t>() == size_of::<Candidate>());
const _: () = assert!(size_of::<qmem_usage_sample_t>() == size_of::<Sample>());

fn handle(resource: *const qmem_resource_t) -> Result<Handle, Error> {
    non_null(resource.cast(), "resource")?;
    Ok(Handle(resource as usize))
}

/// Requests that are refused or time out are failures of their class; a wrong call is not.
fn class(status: Status) -> Option<Class> {
    matches!(status, Status::Limit | Status::Timeout).then_some(Class::Resources)
}

/// Registers a resource of `capacity` (not 0; bytes, requests, whatever its kind is counted in) on a NUMA node of this machine (-1: any).
/// `name` is copied: at most 63 bytes of UTF-8, NULL = none. Returns its handle, valid until it is unregistered or resource management is
/// cleaned up; NULL on failure: MEMORY_STATUS_LIMIT in the last error beyond max_resources, which is dispatched as
/// MEMORY_ERROR_RESOURCES; MEMORY_STATUS_NOT_INITIALIZED while resource management does not run.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_resource_register(
    kind: MaybeUninit<qmem_resource_kind_t>,
    name: *const c_char,
    capacity: u64,
    numa_node: i32,
) -> *mut qmem_resource_t {
    let made = Cell::new(core::ptr::null_mut());
    operation("qmem_resource_register", class, || {
        let kind = enumerator(kind, "kind")?;
        // SAFETY: the caller's promise.
        let name = if name.is_null() { c"" } else { unsafe { CStr::from_ptr(name) } };
        let name = name.to_str().map_err(|_| fail!(InvalidArgument, "name is not UTF-8"))?;
        within(name.len(), name.len() <= 63, "the length of name", "0 to 63")?;
        let handle = resources::register(kind as usize, name, capacity, numa_node)?;
        made.set(handle.0 as *mut qmem_resource_t);
        Ok(())
    });
    made.get()
}

/// Takes `amount` (0 counts as a request too) of one resource of that kind, chosen by the management type and the strategy of
/// `initialize_resource_management`, and stores its handle in `chosen`; `qmem_resource_release` gives it back. Waits up to `timeout_ms` (0: not
/// at all, UINT32_MAX: without limit); requests of a kind are served in the order in which they came. MEMORY_STATUS_TIMEOUT if it was not
/// to be had in time, MEMORY_STATUS_LIMIT if no resource's quota is as large, both dispatched as MEMORY_ERROR_RESOURCES, where
/// `reallocate_resources` may help; MEMORY_STATUS_NOT_FOUND if none of the kind is registered.
///
/// # Safety
/// `chosen` is NULL or points to room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_resource_acquire(
    kind: MaybeUninit<qmem_resource_kind_t>,
    amount: u64,
    timeout_ms: u32,
    chosen: *mut *mut qmem_resource_t,
) -> memory_status_t {
    let first = Cell::new(true);
    operation("qmem_resource_acquire", class, || {
        let kind = enumerator(kind, "kind")?;
        // SAFETY: the caller's promise.
        unsafe { reference(chosen, "chosen")? };
        // The caller's time is over when a handler tries again.
        let handle = resources::acquire(kind as usize, amount, if first.replace(false) { timeout_ms } else { 0 })?;
        // SAFETY: the caller's promise.
        unsafe { answer(chosen, "chosen", handle.0 as *mut qmem_resource_t) }
    })
}

/// Gives back `amount` that one `qmem_resource_acquire` took; those who wait go on. MEMORY_STATUS_INVALID_ARGUMENT if more than is in
/// use, MEMORY_STATUS_NOT_FOUND for a handle that is out of date.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_resource_release(resource: *mut qmem_resource_t, amount: u64) -> memory_status_t {
    status(|| resources::release(handle(resource)?, amount))
}

/// Takes a resource out of the registry. MEMORY_STATUS_BUSY while parts of it are held.
#[unsafe(no_mangle)]
pub extern "C" fn qmem_resource_unregister(resource: *mut qmem_resource_t) -> memory_status_t {
    status(|| resources::unregister(handle(resource)?))
}

/// What is in use of a resource and what its quota is now; either pointer may be NULL.
///
/// # Safety
/// `used` and `capacity` are NULL or point to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_resource_usage(
    resource: *const qmem_resource_t,
    used: *mut u64,
    capacity: *mut u64,
) -> memory_status_t {
    status(|| {
        let usage = resources::usage(handle(resource)?)?;
        for (pointer, name, value) in [(used, "used", usage.used), (capacity, "capacity", usage.capacity)] {
            if !pointer.is_null() {
                // SAFETY: the caller's promise.
                unsafe { answer(pointer, name, value)? };
            }
        }
        Ok(())
    })
}

/// The latest changes of a resource's use and quota, at most 256, while resource management runs with enable_monitoring: the oldest
/// that are kept first, up to `max` into `samples` (NULL with 0), and in `count` how many are kept.
///
/// # Safety
/// `samples` has room for `max`, `count` for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_resource_history(
    resource: *const qmem_resource_t,
    samples: *mut qmem_usage_sample_t,
    max: usize,
    count: *mut usize,
) -> memory_status_t {
    status(|| {
        let resource = handle(resource)?;
        let mut room = [Sample::default(); 256];
        let kept = resources::history(resource, &mut room)?;
        if max > 0 {
            // SAFETY: the caller's promise; nothing is read.
            unsafe { reference(samples.cast::<MaybeUninit<qmem_usage_sample_t>>(), "samples")? };
        }
        for (n, sample) in room.iter().take(kept.min(max)).enumerate() {
            let sample = qmem_usage_sample_t { time_ns: sample.time, used: sample.used, capacity: sample.capacity };
            // SAFETY: n < max, and the caller's promise.
            unsafe { samples.add(n).write(sample) };
        }
        // SAFETY: the caller's promise.
        unsafe { answer(count, "count", kept) }
    })
}

/// Chooses who gets a request of `amount`: the index of one of the candidates, any other number for none of them (the request waits).
pub type qmem_balancer_t =
    Option<unsafe extern "C" fn(candidates: *const qmem_candidate_t, count: usize, amount: u64, user: *mut c_void) -> usize>;

/// Registers what MANAGE_CUSTOM decides by, before `initialize_resource_management`. It is called from any thread with no lock of qmem held;
/// its answer is checked. NULL takes it away: MEMORY_STATUS_BUSY while MANAGE_CUSTOM runs.
///
/// # Safety
/// `balancer` takes what it is called with; `user` stays valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qmem_resource_set_balancer(balancer: qmem_balancer_t, user: *mut c_void) -> memory_status_t {
    status(|| {
        // SAFETY: the two kinds of candidates have the same fields.
        let function = balancer.map(|function| unsafe {
            core::mem::transmute::<unsafe extern "C" fn(*const qmem_candidate_t, usize, u64, *mut c_void) -> usize, BalancerFn>(
                function,
            )
        });
        resources::set_balancer(function, user)
    })
}
