//! The memory allocator of every process that links the router.
//!
//! The only unsafe code of the router is here.
#![expect(unsafe_code, reason = "the allocator's bindings have no safe call that returns memory")]

use libmimalloc_sys::mi_collect;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Returns what is free to the system, where the allocator would keep it for the calling thread: 1 to 2 ms.
pub(crate) fn return_free_memory() {
    // SAFETY: it takes no pointers, touches only memory that nobody holds, and any thread may call it at any time.
    unsafe { mi_collect(true) };
}
