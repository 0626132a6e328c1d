//! What reading costs, so that no octet of input costs much: memory held at a time, and allocations in place of time, for
//! a count is the same on a busy machine.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What something may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Octets held at a time: for each octet of input, and beside that.
    pub held: (usize, usize),
    /// Allocations, those that grew included: for each octet of input, and beside that.
    pub allocations: (usize, usize),
}

/// Runs `read`, which must cost no more than `limit` for so many octets of input.
#[track_caller]
pub fn within<T>(octets: usize, limit: Limit, read: impl FnOnce() -> T) -> T {
    let (before, made) = (held(), ALLOCATIONS.get());
    HIGHEST.set(before);
    let result = read();
    let highest = usize::try_from(HIGHEST.get() - before).unwrap_or(0);
    let made = ALLOCATIONS.get() - made;
    let (each, beside) = limit.held;
    assert!(highest <= each * octets + beside, "{highest} octets held for {octets}; {limit:?} is allowed");
    let (each, beside) = limit.allocations;
    assert!(made <= each * octets + beside, "{made} allocations for {octets} octets; {limit:?} is allowed");
    result
}

/// Octets that this thread allocated and has not given back; what another thread gave back for it stays counted.
pub fn held() -> isize {
    HELD.get()
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static HIGHEST: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn took(octets: usize) {
    let held = HELD.get().wrapping_add_unsigned(octets);
    HELD.set(held);
    HIGHEST.set(HIGHEST.get().max(held));
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

fn gave(octets: usize) {
    HELD.set(HELD.get().wrapping_sub_unsigned(octets));
}

// SAFETY: every call goes to the system's allocator as it came; what is counted are numbers of a thread, which are
// constant at first, have no destructor and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        took(size);
        gave(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}
