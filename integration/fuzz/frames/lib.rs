//! The kernel programs in user space: maps to fill, frames to run. Frames may have any length from none on, which a test run
//! of the kernel refuses; what the programs read behind the end of what they were shown is a fault of the process.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int};
use std::marker::PhantomData;
use std::ptr;

/// The longest frame that can be run; octets.
pub const LONGEST: usize = 156 * 1024;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    rows: u32,
}

#[repr(C)]
struct Input {
    octets: *const u8,
    length: u32,
    linear: u32,
    ifindex: u32,
    mark: u32,
    vlan_present: u32,
    gso_size: u32,
    inbound: u32,
    unfinished: u32,
    now: u64,
}

#[repr(C)]
struct Output {
    octets: *const u8,
    event: *const u8,
    length: u32,
    event_octets: u32,
    events: u32,
    redirects: u32,
    redirected_to: u32,
    pkt_type: u32,
    action: i32,
}

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

impl Input {
    fn of(skb: &Skb<'_>, now: u64) -> Input {
        let number = |length: usize| u32::try_from(length).expect("a length of a frame");
        Input {
            octets: skb.octets.as_ptr(),
            length: number(skb.octets.len()),
            linear: number(skb.linear),
            ifindex: skb.ifindex,
            mark: skb.mark,
            vlan_present: skb.tagged.into(),
            gso_size: skb.gso_size,
            inbound: skb.inbound.into(),
            unfinished: number(skb.unfinished),
            now,
        }
    }
}

impl Output {
    const EMPTY: Output = Output {
        octets: ptr::null(),
        event: ptr::null(),
        length: 0,
        event_octets: 0,
        events: 0,
        redirects: 0,
        redirected_to: 0,
        pkt_type: 0,
        action: 0,
    };
}

unsafe extern "C" {
    fn machine_map(name: *const c_char, shape: *mut Shape) -> *const c_char;
    fn machine_lookup(map: *const c_char, shape: Shape, key: *const u8) -> *mut u8;
    fn machine_update(map: *const c_char, shape: Shape, key: *const u8, value: *const u8, flags: u64) -> i64;
    fn machine_delete(map: *const c_char, shape: Shape, key: *const u8) -> i64;
    fn machine_resize(map: *const c_char, shape: Shape, rows: u32);
    fn machine_rows(map: *const c_char, shape: Shape) -> u32;
    fn machine_reset();
    fn machine_settings(mark: u32, events: u32, rejects: u32);
    fn machine_run(input: *const Input, output: *mut Output) -> c_int;
    fn machine_run_early(input: *const Input, output: *mut Output) -> c_int;
}

/// What the programs are told before they are loaded. The same for every machine of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Frames with this mark leave no trace; 0: none does.
    pub probe_mark: u32,
    /// Events an endpoint may have in a second.
    pub events_per_second: u32,
    /// Refusals that are answered, an endpoint and second.
    pub rejects_per_second: u32,
}

/// A frame as the kernel hands it to a program.
#[derive(Clone, Copy, Debug)]
pub struct Skb<'a> {
    /// The whole frame, from its Ethernet header on.
    pub octets: &'a [u8],
    /// How many octets can be read in place at first.
    pub linear: usize,
    /// The interface.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// The kernel has taken a tag out of the octets.
    pub tagged: bool,
    /// `skb->gso_size`; 0: not to be cut up.
    pub gso_size: u32,
    /// To the pod.
    pub inbound: bool,
    /// The sender has left the sum of TCP or UDP to a card: in its place is that of the pseudo header alone, and ends at this
    /// octet of the frame. 0: the sum is made.
    pub unfinished: usize,
}

/// What a program did with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What it returned.
    pub action: i32,
    /// The frame afterwards.
    pub octets: Vec<u8>,
    /// The interface to whose peer it was redirected.
    pub redirected: Option<u32>,
    /// The frame is now said to be for the host itself.
    pub to_host: bool,
    /// `struct flow_event`, if one was sent.
    pub event: Option<Vec<u8>>,
}

/// The calling thread's machine. Its maps are empty at first.
pub struct Machine {
    thread: PhantomData<*const ()>,
}

thread_local! {
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

impl Machine {
    /// The machine of this thread.
    ///
    /// # Panics
    /// The thread has one already.
    pub fn new(settings: Settings) -> Machine {
        assert!(!TAKEN.replace(true), "one machine a thread");
        // SAFETY: numbers; every machine of the process is told the same.
        unsafe { machine_settings(settings.probe_mark, settings.events_per_second, settings.rejects_per_second) };
        Machine { thread: PhantomData }
    }

    /// Empties every map.
    pub fn reset(&mut self) {
        // SAFETY: no pointer into a map outlives a call.
        unsafe { machine_reset() };
    }

    /// Writes a row; false if the map is full.
    ///
    /// # Panics
    /// The program has no such map, or its rows have other lengths.
    pub fn put(&mut self, map: &str, key: &[u8], value: &[u8]) -> bool {
        let (map, shape) = named(map, key);
        assert_eq!(value.len(), shape.value as usize, "octets of a value");
        // SAFETY: the map's own shape; key and value have the lengths it says.
        unsafe { machine_update(map, shape, key.as_ptr(), value.as_ptr(), 0) == 0 }
    }

    /// Removes a row, if it is there.
    ///
    /// # Panics
    /// As [`Machine::put`].
    pub fn delete(&mut self, map: &str, key: &[u8]) {
        let (map, shape) = named(map, key);
        // SAFETY: as in `put`.
        unsafe { machine_delete(map, shape, key.as_ptr()) };
    }

    /// The row of `key`.
    ///
    /// # Panics
    /// As [`Machine::put`].
    pub fn get(&self, map: &str, key: &[u8]) -> Option<Vec<u8>> {
        let (map, shape) = named(map, key);
        // SAFETY: as in `put`; a row that is found has as many octets as a value, and nobody writes to it meanwhile.
        unsafe {
            let row = machine_lookup(map, shape, key.as_ptr());
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, shape.value as usize).to_vec())
        }
    }

    /// How many rows the map has.
    ///
    /// # Panics
    /// The program has no such map.
    pub fn rows(&self, map: &str) -> u32 {
        let (map, shape) = find(map);
        // SAFETY: the map's own shape.
        unsafe { machine_rows(map, shape) }
    }

    /// Makes the map, which must be a hash, hold so many rows at most.
    ///
    /// # Panics
    /// The program has no such map.
    pub fn resize(&mut self, map: &str, rows: u32) {
        let (map, shape) = find(map);
        // SAFETY: the map's own shape; only arrays have their rows laid out by number.
        unsafe { machine_resize(map, shape, rows) };
    }

    /// Runs a program on a frame. `now`: nanoseconds of the monotonic clock.
    ///
    /// # Panics
    /// The frame is longer than [`LONGEST`].
    pub fn run(&mut self, skb: Skb<'_>, now: u64) -> Outcome {
        let (input, mut output) = (Input::of(&skb, now), Output::EMPTY);
        // SAFETY: the frame lives through the call, which copies it.
        assert_eq!(unsafe { machine_run(&input, &mut output) }, 0, "{} octets are too many", skb.octets.len());
        assert!(output.events <= 1 && output.redirects <= 1, "one event and one redirect at most");
        // SAFETY: they point to this thread's machine, and are good until its next run; this copies.
        let copy = |at: *const u8, length: u32| unsafe { std::slice::from_raw_parts(at, length as usize).to_vec() };
        Outcome {
            action: output.action,
            octets: copy(output.octets, output.length),
            redirected: (output.redirects == 1).then_some(output.redirected_to),
            to_host: output.pkt_type == 0,
            event: (output.events == 1).then(|| copy(output.event, output.event_octets)),
        }
    }

    /// Runs the program of XDP on what a pod sends. True: it drops the frame; and `struct flow_event`, if one was sent.
    ///
    /// # Panics
    /// As [`Machine::run`], or the program returned what it never should.
    pub fn run_early(&mut self, skb: Skb<'_>, now: u64) -> (bool, Option<Vec<u8>>) {
        let (input, mut output) = (Input::of(&skb, now), Output::EMPTY);
        // SAFETY: the frame lives through the call, which copies it.
        assert_eq!(unsafe { machine_run_early(&input, &mut output) }, 0, "{} octets are too many", skb.octets.len());
        assert!(output.events <= 1, "one event at most");
        assert!([XDP_DROP, XDP_PASS].contains(&output.action), "XDP action {}", output.action);
        // SAFETY: it points to this thread's machine, and is good until its next run; this copies.
        let event = unsafe { std::slice::from_raw_parts(output.event, output.event_octets as usize).to_vec() };
        (output.action == XDP_DROP, (output.events == 1).then_some(event))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.reset();
        TAKEN.set(false);
    }
}

fn find(map: &str) -> (*const c_char, Shape) {
    let name = CString::new(map).expect("no NUL in a name");
    let mut shape = Shape::default();
    // SAFETY: a string that ends in NUL, and a place for the shape.
    let found = unsafe { machine_map(name.as_ptr(), &mut shape) };
    assert!(!found.is_null(), "no map {map}");
    (found, shape)
}

fn named(map: &str, key: &[u8]) -> (*const c_char, Shape) {
    let (found, shape) = find(map);
    assert_eq!(key.len(), shape.key as usize, "octets of a key of {map}");
    (found, shape)
}
