//! What somebody took off an interface, or put before our programs, is found and set right.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::query::{LinkInfo, LinkInfoIter, LinkTypeInfo};
use libbpf_rs::{ErrorKind, Program, TcHook};

use super::KernelError;
use super::abi::flow;
use super::attach::{Hook, Method, beside, create_link, filter, live_link, pin_at, tcx_chain};
use super::load::{Kernel, program};
use crate::engine::endpoint::EndpointId;
use crate::engine::grant::MonoNs;

/// What can be wrong with a program on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Ours is not there: nothing is dropped.
    Detached,
    /// Another one runs before ours: what that lets through for good, ours never sees.
    Displaced,
    /// Ours runs, but nothing holds it there when this process ends.
    Unpinned,
    /// XDP does not drop before it any more.
    NotEarly,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Which program.
    pub hook: Hook,
    /// What is wrong with it.
    pub fault: Fault,
    /// Other programs' number, as far as one is in the way.
    pub other: Option<u32>,
    /// On the pod's own side of the interface.
    pub inside: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.inside { "the pod's side" } else { self.hook.name() };
        match (self.fault, self.other) {
            (Fault::Detached, None) => write!(f, "{name}: no program is attached"),
            (Fault::Detached, Some(other)) => write!(f, "{name}: program {other} is attached, not ours"),
            (Fault::Displaced, Some(other)) => write!(f, "{name}: program {other} is first in the chain, not ours"),
            (Fault::Displaced, None) => write!(f, "{name}: ours is not first in the chain"),
            (Fault::Unpinned, _) => write!(f, "{name}: its pin is gone"),
            (Fault::NotEarly, _) => write!(f, "{name}: the XDP program before it is gone"),
        }
    }
}

/// The program that the filter's place has; none: nothing is there. What can't be told is no absence.
fn attached_filter(mut place: TcHook) -> std::io::Result<Option<u32>> {
    match place.query() {
        Ok(id) => Ok(Some(id)),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::Unsupported) =>
        {
            Ok(None)
        }
        Err(error) => Err(std::io::Error::other(error)),
    }
}

fn is_absence(error: &KernelError) -> bool {
    matches!(error, KernelError::Call { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
}

impl Kernel {
    /// Looks whether both programs are on the interface, first in the chain and pinned; what is wrong.
    ///
    /// # Errors
    /// The interface can't be looked at: it is gone, for one.
    pub fn examine(&self, ifindex: u32, method: Method) -> Result<Vec<Damage>, KernelError> {
        let mut found = Vec::new();
        for hook in Hook::BOTH {
            let failed = |source| KernelError::call(format!("look at {} on interface {ifindex}", hook.name()), source);
            let ours = self.id_of(hook)?;
            let chain = match tcx_chain(ifindex, hook.tcx(self.place())) {
                // A kernel without TCX has nobody in that chain.
                Err(_) if method == Method::Clsact => Vec::new(),
                chain => chain.map_err(failed)?,
            };
            let is_pinned = method != Method::Tcx || live_link(&self.link_pin(ifindex, hook), ifindex)?.is_some();
            let (fault, other) = match method {
                Method::Tcx if !chain.contains(&ours) => (Fault::Detached, chain.first().copied()),
                Method::Tcx if chain[0] != ours => (Fault::Displaced, Some(chain[0])),
                Method::Tcx if !is_pinned => (Fault::Unpinned, None),
                Method::Tcx => continue,
                Method::Clsact => {
                    match attached_filter(filter(ifindex, (hook, self.place()), self.on_beat().as_fd()))
                        .map_err(failed)?
                    {
                        Some(id) if id == ours && chain.is_empty() => continue,
                        Some(id) if id == ours => (Fault::Displaced, Some(chain[0])),
                        other => (Fault::Detached, other),
                    }
                }
            };
            found.push(Damage { hook, fault, other, inside: false });
        }
        if self.drops_early() && !self.is_early(ifindex)? {
            found.push(Damage { hook: Hook::FromPod, fault: Fault::NotEarly, other: None, inside: false });
        }
        Ok(found)
    }

    /// Sets right what [`Kernel::examine`] found. Where our program is still there, it never leaves.
    ///
    /// # Errors
    /// It could not be done. A TCX program before our filter can't be helped: `enforcement.attach` asked for clsact.
    pub fn repair(&self, ifindex: u32, method: Method, found: &[Damage]) -> Result<(), KernelError> {
        for damage in found {
            match (method, damage.fault) {
                (_, Fault::NotEarly) => self.attach_early(ifindex)?,
                (Method::Tcx, Fault::Detached) => self.attach_link(ifindex, damage.hook)?,
                (Method::Tcx, Fault::Displaced) => self.put_first(ifindex, damage.hook)?,
                (Method::Tcx, Fault::Unpinned) => self.pin_link_again(ifindex, damage.hook)?,
                (Method::Clsact, _) => self.attach_clsact(ifindex, damage.hook)?,
            }
        }
        Ok(())
    }

    /// Puts a second link with a copy of the program at the head of the chain, then takes the first one off, and lets
    /// the second one run the program itself. Between the two every packet is judged twice, never less than once.
    fn put_first(&self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        let what = || format!("put {} first on interface {ifindex}", hook.name());
        let failed = |source| KernelError::call(what(), source);
        let other = |error| KernelError::call(what(), std::io::Error::other(error));
        let copy = self.copy_of(hook)?;
        let pin = self.link_pin(ifindex, hook);
        let beside = beside(&pin);
        drop(std::fs::remove_file(&beside));
        let link = create_link(
            program(&copy, hook.name()).as_fd().as_raw_fd(),
            ifindex,
            hook.tcx(self.place()),
            libbpf_sys::BPF_F_BEFORE,
        )
        .map_err(failed)?;
        pin_at(link.as_fd(), &beside)?;
        for old in self.links(ifindex, hook)? {
            // SAFETY: a descriptor of our own.
            if unsafe { libbpf_sys::bpf_link_detach(old.as_raw_fd()) } < 0 {
                return Err(KernelError::last(what()));
            }
        }
        drop(std::fs::remove_file(&pin));
        std::fs::rename(&beside, &pin).map_err(failed)?;
        let mut link = live_link(&pin, ifindex)?.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        link.update_prog(&*self.program(hook)?).map_err(other)
    }

    /// Somebody holds our link, else the program would be gone: it gets its name back.
    fn pin_link_again(&self, ifindex: u32, hook: Hook) -> Result<(), KernelError> {
        let pin = self.link_pin(ifindex, hook);
        match self.links(ifindex, hook)?.first() {
            Some(link) => {
                drop(std::fs::remove_file(&pin)); // a severed link may have it
                pin_at(link.as_fd(), &pin)
            }
            None => self.attach_link(ifindex, hook), // it was on its way out when we looked
        }
    }

    /// The links that run our program on a hook.
    fn links(&self, ifindex: u32, hook: Hook) -> Result<Vec<OwnedFd>, KernelError> {
        let ours = self.id_of(hook)?;
        let is_it = |link: &LinkInfo| {
            matches!(&link.info, LinkTypeInfo::Tcx(tcx) if tcx.ifindex == ifindex) && link.prog_id == ours
        };
        let open = |link: LinkInfo| {
            // SAFETY: a number; the kernel knows whether there is such a link.
            let fd = unsafe { libbpf_sys::bpf_link_get_fd_by_id(link.id) };
            if fd < 0 {
                let error = KernelError::last(format!("open link {}", link.id));
                // It may have gone since it was listed.
                return if is_absence(&error) { None } else { Some(Err(error)) };
            }
            // SAFETY: the call has just handed this descriptor to us.
            Some(Ok(unsafe { OwnedFd::from_raw_fd(fd) }))
        };
        LinkInfoIter::default().filter(is_it).filter_map(open).collect()
    }

    fn id_of(&self, hook: Hook) -> Result<u32, KernelError> {
        Program::id_from_fd(self.program(hook)?.as_fd())
            .map_err(|error| KernelError::call(format!("look at {}", hook.name()), std::io::Error::other(error)))
    }

    /// Lets conversations be judged anew that may have been opened while one program was missing and the other was not.
    ///
    /// While nobody saw what the pod sent, the answers to it looked as if the other side had begun, and the other way
    /// round. What was recorded so `since` then, and did not begin with a SYN, is turned round: with the next generation
    /// the rules of the direction in which it was really opened are asked. How many.
    ///
    /// # Errors
    /// The map can't be read or written.
    pub fn turn_round(&self, endpoint: EndpointId, missing: &[Hook], since: MonoNs) -> Result<usize, KernelError> {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const SCTP: u8 = 132;
        // What the answers to a hidden packet would have been recorded as (enum flow_direction).
        let wrong: Vec<u8> = missing.iter().map(|hook| u8::from(*hook == Hook::FromPod)).collect();
        let mut turned = 0;
        for (key, flow) in self.tables.flows.rows()? {
            let protocol = key.endpoint_and_protocol as u8;
            let doubtful = key.endpoint_and_protocol >> 8 == endpoint.0
                && matches!(protocol, TCP | UDP | SCTP)
                && flow.created_ns >= since.0
                && (protocol != TCP || flow.isn == 0)
                && wrong.contains(&flow.direction);
            if doubtful {
                let turned_flow = flow { direction: 1 - flow.direction, ..flow };
                turned += usize::from(self.tables.flows.replace(&key, &turned_flow)?);
            }
        }
        Ok(turned)
    }
}
