//! Calling a program's function that may not come back: by a C++ exception, which ends here; by longjmp or the end of the thread, of
//! which the caller is told on the way. Called by the error dispatch only. No Rust frame is unwound: the exception is caught in a
//! frame of assembly with a personality routine of its own, because Rust aborts on foreign exceptions, in catch_unwind too.

use core::arch::global_asm;
use core::ffi::c_void;
use core::ptr;

/// A function and its arguments; fewer than four may be used.
#[derive(Clone, Copy)]
pub struct Call {
    /// A C function that takes up to four words.
    pub function: *const (),
    /// What it gets.
    pub arguments: [usize; 4],
}

/// How a call ended, when it came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It returned.
    Returned,
    /// It threw; the exception is gone.
    Threw,
}

/// glibc's own record of what to do when a frame is jumped over (`_pthread_cleanup_push`; longjmp and the end of the thread run
/// it). Where a libc does not know the jump, the caller sees by the stack's depth that a frame is gone.
#[repr(C)]
struct Watch {
    routine: Option<extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
    cancel_type: i32,
    before: *mut Watch,
}

unsafe extern "C" {
    fn _pthread_cleanup_push(watch: *mut Watch, routine: extern "C" fn(*mut c_void), argument: *mut c_void);
    fn _pthread_cleanup_pop(watch: *mut Watch, run: i32);
    fn qmem_call_guarded(function: *const (), a: usize, b: usize, c: usize, d: usize) -> i32;
}

/// Calls the function. If it leaves by a jump, `left` runs on the way, and this never returns.
///
/// # Safety
/// The function takes the arguments given, as C does.
pub unsafe fn call(call: &Call, left: fn()) -> Ended {
    let mut watch = Watch { routine: None, argument: ptr::null_mut(), cancel_type: 0, before: ptr::null_mut() };
    let [a, b, c, d] = call.arguments;
    // SAFETY: the watch lies in this frame, is popped before it ends, and `jumped` takes what is passed; the call is the caller's
    // promise.
    unsafe {
        _pthread_cleanup_push(&raw mut watch, jumped, left as *mut c_void);
        let threw = qmem_call_guarded(call.function, a, b, c, d);
        _pthread_cleanup_pop(&raw mut watch, 0);
        if threw == 0 { Ended::Returned } else { Ended::Threw }
    }
}

extern "C" fn jumped(left: *mut c_void) {
    // SAFETY: `call` passes a `fn()`; fn pointers and data pointers have one size here.
    let left: fn() = unsafe { core::mem::transmute(left) };
    left();
}

// The frame that catches. Its personality says so for every exception; the landing pad ends the exception and answers 1. Libraries
// of C++ are not needed: where __cxa_begin_catch is not there, the unwinder's own deletion does.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.qmem_call_guarded,\"ax\",@progbits",
    ".globl qmem_call_guarded",
    ".hidden qmem_call_guarded",
    ".type qmem_call_guarded,@function",
    ".weak __cxa_begin_catch",
    ".weak __cxa_end_catch",
    "qmem_call_guarded:",
    ".cfi_startproc",
    ".cfi_personality 0x1b, {personality}",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 16",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov rcx, r8",
    "call rax",
    "xor eax, eax",
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".globl qmem_call_landing",
    ".hidden qmem_call_landing",
    "qmem_call_landing:",
    ".cfi_def_cfa_offset 16",
    "mov rdi, rax",
    "mov rsi, qword ptr [rip + __cxa_begin_catch@GOTPCREL]",
    "mov rdx, qword ptr [rip + __cxa_end_catch@GOTPCREL]",
    "call {end}",
    "mov eax, 1",
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size qmem_call_guarded, . - qmem_call_guarded",
    ".popsection",
    personality = sym personality,
    end = sym end,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.qmem_call_guarded,\"ax\",@progbits",
    ".globl qmem_call_guarded",
    ".hidden qmem_call_guarded",
    ".type qmem_call_guarded,@function",
    ".weak __cxa_begin_catch",
    ".weak __cxa_end_catch",
    "qmem_call_guarded:",
    ".cfi_startproc",
    ".cfi_personality 0x1b, {personality}",
    "stp x29, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset 29, -16",
    ".cfi_offset 30, -8",
    "mov x29, sp",
    "mov x9, x0",
    "mov x0, x1",
    "mov x1, x2",
    "mov x2, x3",
    "mov x3, x4",
    "blr x9",
    "mov w0, #0",
    "ldp x29, x30, [sp], #16",
    "ret",
    ".globl qmem_call_landing",
    ".hidden qmem_call_landing",
    "qmem_call_landing:",
    "adrp x1, :got:__cxa_begin_catch",
    "ldr x1, [x1, :got_lo12:__cxa_begin_catch]",
    "adrp x2, :got:__cxa_end_catch",
    "ldr x2, [x2, :got_lo12:__cxa_end_catch]",
    "bl {end}",
    "mov w0, #1",
    "ldp x29, x30, [sp], #16",
    "ret",
    ".cfi_endproc",
    ".size qmem_call_guarded, . - qmem_call_guarded",
    ".popsection",
    personality = sym personality,
    end = sym end,
);

unsafe extern "C" {
    fn qmem_call_landing();
    fn _Unwind_SetIP(context: *mut c_void, address: usize);
    fn _Unwind_SetGR(context: *mut c_void, register: i32, value: usize);
    fn _Unwind_DeleteException(exception: *mut c_void);
}

const SEARCH: i32 = 1;
const HANDLER_FRAME: i32 = 4;
const FORCED: i32 = 8;
const HANDLER_FOUND: i32 = 6;
const INSTALL_CONTEXT: i32 = 7;
const CONTINUE_UNWIND: i32 = 8;
/// "GNUCC++" and a byte: whose exception it is (a dependent one ends in 1).
const CPLUSPLUS: u64 = 0x474E_5543_432B_2B00;

/// What the unwinder asks our frame: catch everything, but not the end of the thread.
extern "C" fn personality(version: i32, actions: i32, _: u64, exception: *mut c_void, context: *mut c_void) -> i32 {
    if version != 1 || actions & FORCED != 0 {
        return CONTINUE_UNWIND;
    }
    if actions & SEARCH != 0 {
        return HANDLER_FOUND;
    }
    if actions & HANDLER_FRAME == 0 {
        return CONTINUE_UNWIND;
    }
    // SAFETY: the unwinder's own context of our frame; the first data register carries the exception to the landing pad.
    unsafe {
        _Unwind_SetGR(context, 0, exception as usize);
        _Unwind_SetIP(context, qmem_call_landing as *const () as usize);
    }
    INSTALL_CONTEXT
}

/// Ends an exception as a catch clause would.
unsafe extern "C" fn end(
    exception: *mut c_void,
    begin_catch: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    end_catch: Option<unsafe extern "C" fn()>,
) {
    // SAFETY: an exception begins with its class; it is in flight and ours, and both ways end it exactly once.
    unsafe {
        match (begin_catch, end_catch) {
            (Some(begin), Some(end)) if exception.cast::<u64>().read() & !0xFF == CPLUSPLUS => {
                begin(exception);
                end();
            }
            _ => _Unwind_DeleteException(exception),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn sum(a: usize, b: usize, c: usize, to: *mut usize) {
        // SAFETY: the test passes a number of its own.
        unsafe { *to = a + b + c };
    }

    #[test]
    fn calls_with_four_arguments() {
        let mut got = 0usize;
        let call_it = Call { function: sum as *const (), arguments: [1, 20, 300, &raw mut got as usize] };
        // SAFETY: `sum` takes these.
        assert_eq!(unsafe { call(&call_it, || ()) }, Ended::Returned);
        assert_eq!(got, 321);
    }

    #[repr(C, align(16))]
    struct Exception {
        class: u64,
        cleanup: extern "C" fn(i32, *mut Exception),
        private: [usize; 2],
        ended: bool,
    }

    unsafe extern "C-unwind" {
        fn _Unwind_RaiseException(exception: *mut Exception) -> i32;
    }

    extern "C" fn ended(_: i32, exception: *mut Exception) {
        // SAFETY: the unwinder passes the exception that the test threw.
        unsafe { (*exception).ended = true };
    }

    extern "C-unwind" fn throws(exception: *mut Exception, _: usize, _: usize, _: usize) {
        // SAFETY: the test's exception, which outlives the unwinding.
        unsafe { _Unwind_RaiseException(exception) };
    }

    #[test]
    fn catches_and_ends_an_exception() {
        let mut exception = Exception { class: 7, cleanup: ended, private: [0; 2], ended: false };
        let call_it = Call { function: throws as *const (), arguments: [&raw mut exception as usize, 0, 0, 0] };
        // SAFETY: it takes four words.
        assert_eq!(unsafe { call(&call_it, || ()) }, Ended::Threw);
        // SAFETY: written through the pointer just now, and nobody else has it.
        assert!(unsafe { (&raw const exception.ended).read_volatile() });
    }
}
