//! Programs on interfaces: TCX links (kernel 6.6 and later), clsact filters before; XDP in front of them if asked for.
//!
//! **Invariant:** enforcement outlives the process (I12). Links are pinned and updated in place, a clsact filter is
//! replaced at its fixed priority and handle; nothing is ever detached in order to be attached again.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libbpf_rs::query::LinkTypeInfo;
use libbpf_rs::{
    ErrorKind, Link, MapCore, MapHandle, Program, TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook, TcHookBuilder,
};

use super::KernelError;
use super::load::{Kernel, Place, unmount_bpffs};
use super::versions::{linked, remove_pins, versions};

/// How to attach: `enforcement.attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX or nothing.
    Tcx,
    /// clsact, also where the kernel has TCX.
    Clsact,
    /// As `Auto`, and XDP in front of what the pod sends; or nothing.
    Xdp,
}

/// How an interface is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Two pinned links, at the head of the chain.
    Tcx,
    /// Two direct-action filters of priority 1.
    Clsact,
}

/// Where a clsact filter of ours stands: before every other.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 1;

/// The two hooks of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// What the pod sends.
    FromPod,
    /// What the pod receives.
    ToPod,
}

impl Hook {
    pub(super) const BOTH: [Hook; 2] = [Hook::FromPod, Hook::ToPod];

    /// The name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Hook::FromPod => "from_pod",
            Hook::ToPod => "to_pod",
        }
    }

    /// What comes out of the pod comes in on the host's side of its interface, and goes out on its own.
    fn is_ingress(self, place: Place) -> bool {
        (self == Hook::FromPod) != place.is_beside()
    }

    pub(super) fn tcx(self, place: Place) -> u32 {
        if self.is_ingress(place) { libbpf_sys::BPF_TCX_INGRESS } else { libbpf_sys::BPF_TCX_EGRESS }
    }

    fn tc(self, place: Place) -> TcAttachPoint {
        if self.is_ingress(place) { TC_INGRESS } else { TC_EGRESS }
    }
}

impl Kernel {
    /// Attaches the programs to the interface, or replaces those of an earlier run in place.
    ///
    /// # Errors
    /// The interface is gone, or the kernel can't do what `attach` asks for.
    pub fn attach(&self, ifindex: u32, attach: Attach) -> Result<Method, KernelError> {
        let method = self.attach_both(ifindex, attach)?;
        if attach == Attach::Xdp {
            self.attach_early(ifindex)?;
        } else {
            self.detach_early(ifindex); // of an earlier run
        }
        if !self.judges_inside() {
            self.detach_inside(ifindex); // the same
        }
        Ok(method)
    }

    fn attach_both(&self, ifindex: u32, attach: Attach) -> Result<Method, KernelError> {
        let tcx = attach != Attach::Clsact && self.is_pinned();
        if attach == Attach::Tcx && !tcx {
            // The link would end with this process.
            let what = "attach with TCX: pin_dir is on no BPF file system; allowed there is auto or clsact".to_owned();
            return Err(KernelError::call(what, std::io::ErrorKind::Unsupported.into()));
        }
        if tcx {
            match self.attach_tcx(ifindex) {
                Ok(()) => {
                    detach_clsact(ifindex, self.place(), self.on_beat().as_fd());
                    self.retire_others(ifindex);
                    return Ok(Method::Tcx);
                }
                Err(error) if attach == Attach::Tcx || !is_unsupported(&error) => return Err(error),
                Err(_) => (),
            }
        }
        for hook in Hook::BOTH {
            self.attach_clsact(ifindex, hook)?;
        }
        self.detach_tcx(ifindex);
        self.retire_others(ifindex);
        Ok(Method::Clsact)
    }

    fn attach_tcx(&self, ifindex: u32) -> Result<(), KernelError> {
        Hook::BOTH.into_iter().try_for_each(|hook| self.attach_link(ifindex, hook))
    }

    /// Puts our filter in its place, or replaces what stands there.
    pub(super) fn attach_clsact(&self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        let program = self.program(hook)?;
        let mut builder = TcHookBuilder::new(program.as_fd());
        builder.ifindex(ifindex as i32).replace(true).handle(HANDLE).priority(PRIORITY);
        let mut filter = builder.hook(hook.tc(self.place()));
        let failed = |error| {
            let what = format!("attach {} to interface {ifindex} with clsact", hook.name());
            KernelError::call(what, std::io::Error::other(error))
        };
        filter.create().map_err(failed)?;
        filter.attach().map_err(failed)?;
        // One of kind ingress, as the CNI's bandwidth plugin has it, is taken for ours: it has one chain, and the program for
        // the other direction would take the place of this one.
        let ours = Program::id_from_fd(program.as_fd()).map_err(failed)?;
        let other = if hook == Hook::FromPod { Hook::ToPod } else { Hook::FromPod };
        let there = self::filter(ifindex, (other, self.place()), program.as_fd()).query();
        if there.is_ok_and(|id| id == ours) {
            if !hook.is_ingress(self.place()) {
                drop(filter.detach()); // it stands where what comes in passes
            }
            let what = format!(
                "attach {} to interface {ifindex} with clsact: it has a qdisc of kind ingress, which has no egress side; \
                 allowed is kind clsact, or enforcement.attach = \"tcx\"",
                other.name()
            );
            return Err(KernelError::call(what, std::io::ErrorKind::Unsupported.into()));
        }
        Ok(())
    }

    /// Lets the pinned link run our program, or puts one at the head of the chain and pins it.
    pub(super) fn attach_link(&self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        let program = self.program(hook)?;
        let pin = self.link_pin(ifindex, hook);
        let what = || format!("attach {} to interface {ifindex} with TCX", hook.name());
        if let Some(mut link) = live_link(&pin, ifindex)? {
            link.update_prog(&program).map_err(|error| KernelError::call(what(), std::io::Error::other(error)))?;
        } else {
            drop(std::fs::remove_file(&pin)); // severed for ever when its device was deleted
            let link =
                create_link(program.as_fd().as_raw_fd(), ifindex, hook.tcx(self.place()), libbpf_sys::BPF_F_BEFORE)
                    .map_err(|source| KernelError::call(what(), source))?;
            pin_at(link.as_fd(), &pin)?;
        }
        let beside = beside(&pin);
        if beside.exists() {
            sever(&beside); // whoever was putting a link to the front has died
            drop(std::fs::remove_file(beside));
        }
        Ok(())
    }

    pub(super) fn link_pin(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.pins.join("links").join(format!("{ifindex}_{}", hook.name()))
    }

    fn detach_tcx(&self, ifindex: u32) {
        for hook in Hook::BOTH {
            let pin = self.link_pin(ifindex, hook);
            for pin in [beside(&pin), pin] {
                sever(&pin);
                drop(std::fs::remove_file(pin));
            }
        }
    }

    /// Takes all programs off the interface, if it is still there, and removes the pins.
    pub fn detach(&self, ifindex: u32) {
        self.detach_early(ifindex);
        self.detach_inside(ifindex);
        self.detach_tcx(ifindex);
        detach_clsact(ifindex, self.place(), self.on_beat().as_fd());
        self.retire_others(ifindex);
    }

    /// The interfaces that have pinned links of ours, live or severed, and those that other versions of the ABI guarded.
    pub fn pinned_interfaces(&self) -> Vec<u32> {
        let mut found: Vec<u32> = linked(&self.pins).chain(self.retirable()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether programs of this run or an earlier one are on the interface, in both directions.
    ///
    /// # Errors
    /// It can't be told.
    pub fn has_programs(&self, ifindex: u32) -> Result<bool, KernelError> {
        for hook in Hook::BOTH {
            let linked = live_link(&self.link_pin(ifindex, hook), ifindex)?.is_some();
            let is_there = || {
                filter(ifindex, (hook, self.place()), self.on_beat().as_fd())
                    .query()
                    .is_ok_and(|id| is_named(id, hook.name()))
            };
            if !linked && !is_there() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes everything away that any run with this pin directory has left: filters, links, maps. Whether there was any.
///
/// # Errors
/// A pin can't be removed.
pub fn detach_all(pin_dir: &Path) -> Result<bool, KernelError> {
    let found = versions(pin_dir);
    for pins in &found {
        detach_version(pins)?;
    }
    if !found.is_empty() {
        unmount_bpffs(pin_dir);
    }
    Ok(!found.is_empty())
}

fn detach_version(pins: &Path) -> Result<(), KernelError> {
    if let Ok(endpoints) = MapHandle::from_pinned_path(pins.join("maps").join("endpoints")) {
        for key in endpoints.keys() {
            if let Ok(octets) = <[u8; 4]>::try_from(key.as_slice()) {
                // Whose interfaces they were on is not known; the names of the programs tell.
                for place in [Place::Host, Place::Beside { reject_mark: 0 }] {
                    detach_clsact(u32::from_ne_bytes(octets), place, endpoints.as_fd());
                }
            }
        }
    }
    let failed = |path: &Path| {
        let what = format!("remove {}", path.display());
        move |source| KernelError::Call { what, source }
    };
    // Links first: without them nothing looks at the maps.
    for part in ["links", "maps"] {
        let path = pins.join(part);
        if path.exists() {
            remove_pins(&path).map_err(failed(&path))?;
        }
    }
    std::fs::remove_dir(pins).map_err(failed(pins))
}

/// Gives a link or a map of ours a name on the BPF file system.
pub(super) fn pin_at(ours: BorrowedFd<'_>, pin: &Path) -> Result<(), KernelError> {
    let failed = || format!("pin {}", pin.display());
    let path = CString::new(pin.as_os_str().as_bytes())
        .map_err(|error| KernelError::call(failed(), std::io::Error::other(error)))?;
    // SAFETY: a descriptor of our own and a string that ends in NUL.
    if unsafe { libbpf_sys::bpf_obj_pin(ours.as_raw_fd(), path.as_ptr()) } < 0 {
        return Err(KernelError::last(failed()));
    }
    Ok(())
}

/// Where the pin of a link stands for as long as another link has its place. No dot: names on a BPF file system have none.
pub(super) fn beside(pin: &Path) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push("_new");
    name.into()
}

/// Takes a pinned link's program off at once; removing the pin alone takes effect some time later.
pub(super) fn sever(pin: &Path) {
    if let Ok(link) = Link::open(pin) {
        drop(link.detach());
    }
}

/// Our filter's place; `any` is a descriptor, which the builder wants even for a look.
pub(super) fn filter(ifindex: u32, (hook, place): (Hook, Place), any: BorrowedFd<'_>) -> TcHook {
    let mut builder = TcHookBuilder::new(any);
    builder.ifindex(ifindex as i32).handle(HANDLE).priority(PRIORITY);
    builder.hook(hook.tc(place))
}

/// Removes our filters; others' filters and the qdisc stay.
fn detach_clsact(ifindex: u32, place: Place, any: BorrowedFd<'_>) {
    for hook in Hook::BOTH {
        let mut filter = filter(ifindex, (hook, place), any);
        let ours = filter.query().ok().is_some_and(|id| is_named(id, hook.name()));
        if ours {
            drop(filter.detach());
        }
    }
}

fn is_named(program_id: u32, name: &str) -> bool {
    Program::fd_from_id(program_id)
        .ok()
        .and_then(|_| libbpf_rs::query::ProgInfoIter::default().find(|info| info.id == program_id))
        .is_some_and(|info| info.name.as_bytes() == name.as_bytes())
}

/// The pinned link, if it is still on that interface: a link whose device was deleted is severed for ever.
///
/// # Errors
/// It can't be told, because there is no descriptor left, for one: nobody may take that for "gone" and remove the pin.
pub(super) fn live_link(pin: &Path, ifindex: u32) -> Result<Option<Link>, KernelError> {
    let link = match Link::open(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(KernelError::call(format!("open {}", pin.display()), std::io::Error::other(error)));
        }
    };
    let is_there = link.info().is_ok_and(|info| match info.info {
        LinkTypeInfo::Tcx(tcx) => tcx.ifindex == ifindex,
        LinkTypeInfo::Xdp(xdp) => xdp.ifindex == ifindex,
        _ => false,
    });
    Ok(is_there.then_some(link))
}

/// libbpf-rs 0.27 has no TCX attach and no flags for XDP: the low-level call.
pub(super) fn create_link(program: i32, ifindex: u32, attach_type: u32, flags: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: plain data, of which zero is a value.
    let mut options: libbpf_sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of_val(&options) as libbpf_sys::size_t;
    options.flags = flags;
    // SAFETY: `options` is of the size that it says.
    let fd = unsafe { libbpf_sys::bpf_link_create(program, ifindex as i32, attach_type, &options) };
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the call has just handed this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The programs of a TCX hook in the order in which they run; of very many the first.
pub(super) fn tcx_chain(ifindex: u32, attach_type: u32) -> std::io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    // SAFETY: plain data, of which zero is a value.
    let mut options: libbpf_sys::bpf_prog_query_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of_val(&options) as libbpf_sys::size_t;
    options.prog_ids = ids.as_mut_ptr();
    options.__bindgen_anon_1.count = ids.len() as u32;
    // SAFETY: `options` is of the size that it says, and `ids` has room for as many as it says.
    let failed = unsafe { libbpf_sys::bpf_prog_query_opts(ifindex as i32, attach_type, &mut options) };
    if failed < 0 && failed != -libc::ENOSPC {
        return Err(std::io::Error::from_raw_os_error(-failed));
    }
    // SAFETY: both members of the union are the same u32.
    let count = unsafe { options.__bindgen_anon_1.count } as usize;
    Ok(ids.into_iter().take(count).collect())
}

fn is_unsupported(error: &KernelError) -> bool {
    match error {
        KernelError::Call { source, .. } => {
            matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
        }
        _ => false,
    }
}
