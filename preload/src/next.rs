//! The next allocator in the process, for pointers that are not ours: libc's own, used before we were there or called by its
//! private names, or one that a library brought along. Called by `blocks.rs`, on cold paths only.

use core::ffi::{CStr, c_char, c_int, c_void};

type Free = unsafe extern "C" fn(*mut c_void);
type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type Usable = unsafe extern "C" fn(*mut c_void) -> usize;

/// The definition of a function that comes after ours in the search order.
pub fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a NUL-terminated name; dlsym may call our calloc, which never comes here.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Hands a foreign block to the allocator that may know it. Without one it is leaked, which harms nobody.
///
/// # Safety
/// `pointer` is a block of another allocator that nobody uses any more.
pub unsafe fn free(pointer: *mut c_void) {
    if let Some(found) = symbol(c"free") {
        // SAFETY: the C standard's free has this type.
        let free: Free = unsafe { core::mem::transmute(found) };
        // SAFETY: the caller's promise.
        unsafe { free(pointer) };
    }
}

/// Lets the allocator that may know a foreign block resize it.
///
/// # Safety
/// `pointer` is a block of another allocator that nobody uses during the call.
pub unsafe fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void {
    let Some(found) = symbol(c"realloc") else { return core::ptr::null_mut() };
    // SAFETY: the C standard's realloc has this type.
    let realloc: Realloc = unsafe { core::mem::transmute(found) };
    // SAFETY: the caller's promise.
    unsafe { realloc(pointer, size) }
}

/// What the allocator that may know a foreign block says of its size.
///
/// # Safety
/// `pointer` is a block of another allocator.
pub unsafe fn usable(pointer: *mut c_void) -> usize {
    let Some(found) = symbol(c"malloc_usable_size") else { return 0 };
    // SAFETY: glibc's malloc_usable_size has this type.
    let usable: Usable = unsafe { core::mem::transmute(found) };
    // SAFETY: the caller's promise.
    unsafe { usable(pointer) }
}

/// Why `pointer` cannot be any allocator's block: it lies on the calling thread's stack, in a program's or library's own data,
/// or in no memory at all. None if an allocator may have given it.
pub fn no_block(pointer: *const u8) -> Option<&'static str> {
    let mark = 0u8;
    let Some((start, end)) = mapping(pointer as usize) else { return Some("in no memory at all") };
    if (start..end).contains(&(&raw const mark as usize)) {
        return Some("on the stack");
    }
    is_static(pointer).then_some("inside a program's or library's own data")
}

/// Is there a loaded object whose segments contain it?
fn is_static(pointer: *const u8) -> bool {
    struct Search {
        address: u64,
        found: bool,
    }
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr passes a valid description and our own Search.
        let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
        for i in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: dlpi_phdr has dlpi_phnum entries.
            let header = unsafe { &*info.dlpi_phdr.add(i) };
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            if header.p_type == libc::PT_LOAD && search.address.wrapping_sub(start) < header.p_memsz {
                search.found = true;
                return 1;
            }
        }
        0
    }
    let mut search = Search { address: pointer as u64, found: false };
    // SAFETY: `visit` matches and `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.found
}

/// The mapping that contains an address, by /proc/self/maps, read through a small buffer. Where it cannot be read, the address
/// gets the benefit of the doubt: a mapping of its own.
fn mapping(address: usize) -> Option<(usize, usize)> {
    let path: *const c_char = c"/proc/self/maps".as_ptr();
    // SAFETY: raw system calls on our own descriptor and buffer.
    let file = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    if file < 0 {
        return Some((address, address + 1));
    }
    let mut lines = Lines { file, buffer: [0; 4096], filled: 0, at: 0 };
    let mut found = None;
    while let Some((start, end)) = lines.next_range() {
        if (start..end).contains(&address) {
            found = Some((start, end));
            break;
        }
    }
    // SAFETY: opened above.
    unsafe { libc::syscall(libc::SYS_close, file) };
    found
}

struct Lines {
    file: libc::c_long,
    buffer: [u8; 4096],
    filled: usize,
    at: usize,
}

impl Lines {
    fn byte(&mut self) -> Option<u8> {
        if self.at == self.filled {
            // SAFETY: the buffer is ours and as long as we say.
            let n = unsafe { libc::syscall(libc::SYS_read, self.file, self.buffer.as_mut_ptr(), self.buffer.len()) };
            self.filled = usize::try_from(n).ok().filter(|n| *n > 0)?;
            self.at = 0;
        }
        self.at += 1;
        self.buffer.get(self.at - 1).copied()
    }

    /// The range at the start of the next line: "start-end …".
    fn next_range(&mut self) -> Option<(usize, usize)> {
        let (mut start, mut value) = (0usize, 0usize);
        loop {
            let byte = self.byte()?;
            match (byte as char).to_digit(16) {
                Some(digit) => value = value << 4 | digit as usize,
                None if byte == b'-' => {
                    start = value;
                    value = 0;
                }
                None => break,
            }
        }
        while self.byte()? != b'\n' {}
        Some((start, value))
    }
}
