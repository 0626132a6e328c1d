//! The program on the pod's own side of its interface, where `enforcement.inbound` is `pod`: what a CNI delivers with
//! bpf_redirect_peer arrives there without having passed the host's side.
//!
//! Each interface has a few instructions of its own (`bpf/inside.bpf.c`), which say whose it is and call the one program that
//! judges for all (`bpf/to_pod.bpf.c`, loaded a second time). Only TCX: its pinned link can be taken off from here, and a
//! filter of clsact would outlive `namegate detach`, which does not know the pods' namespaces.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use libbpf_rs::query::LinkTypeInfo;
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, MapType, Object, ObjectBuilder, ProgramMut};

use super::KernelError;
use super::abi;
use super::attach::{Hook, beside, create_link, pin_at, sever, tcx_chain};
use super::load::{Kernel, Maps, Place, load_object, program};
use super::repair::{Damage, Fault};
use crate::host::namespace::across;

const NAME: &str = "inside";
/// Where the mark of what is our own word is kept: a take-over must not change it.
const MARK: &str = "inbound_mark";

/// The program that judges, and the map by which it is called.
pub(super) struct Judge {
    object: Object,
    map: MapHandle,
}

impl Kernel {
    /// Whether what pods receive is judged on their own side.
    pub fn judges_inside(&self) -> bool {
        matches!(self.place(), Place::Both { .. })
    }

    /// Puts the program on the other end of `ifindex`, in the network namespace of `namespace`, or replaces that of an earlier
    /// run in place. The interface's number there.
    ///
    /// # Errors
    /// The namespace can't be entered or is not that of the other end, or the kernel has no TCX.
    pub fn attach_inside(&self, ifindex: u32, namespace: &Path) -> Result<u32, KernelError> {
        let failed = |source| KernelError::call(format!("attach to the pod's side of interface {ifindex}"), source);
        let entered = |error| failed(std::io::Error::other(error));
        let own = self.one_of(ifindex)?;
        let (program, pin) = (program(&own, NAME), self.inside_pin(ifindex));
        let (index, chain) = across(namespace, ifindex, |index| (index, chain(index))).map_err(entered)?;
        let first = chain.map_err(failed)?.first().copied();
        if let Some(mut link) = live(&pin, Some(index))
            && link.info().is_ok_and(|info| Some(info.prog_id) == first)
        {
            link.update_prog(&program).map_err(|error| failed(std::io::Error::other(error)))?;
            return Ok(index);
        }
        let fd = program.as_fd().as_raw_fd();
        let put = |index| create_link(fd, index, libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_F_BEFORE);
        let link = across(namespace, ifindex, put).map_err(entered)?.map_err(failed)?;
        // What stood there before goes once the new one is in force.
        let beside = beside(&pin);
        drop(std::fs::remove_file(&beside));
        pin_at(link.as_fd(), &beside)?;
        sever(&pin);
        drop(std::fs::remove_file(&pin));
        std::fs::rename(&beside, &pin).map_err(failed)?;
        Ok(index)
    }

    /// The number that the other end has in its namespace, if a program of this run or an earlier one is on it.
    pub fn inside_of(&self, ifindex: u32) -> Option<u32> {
        let link = self.judges_inside().then(|| live(&self.inside_pin(ifindex), None)).flatten()?;
        link.info().ok().and_then(|info| tcx_index(&info.info))
    }

    /// Looks whether the program is there and first; what is wrong.
    ///
    /// # Errors
    /// The namespace can't be looked at.
    pub fn examine_inside(&self, ifindex: u32, namespace: &Path) -> Result<Option<Damage>, KernelError> {
        let failed = |source| KernelError::call(format!("look at the pod's side of interface {ifindex}"), source);
        let (index, chain) = across(namespace, ifindex, |index| (index, chain(index)))
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let chain = chain.map_err(failed)?;
        let ours = live(&self.inside_pin(ifindex), Some(index)).and_then(|link| Some(link.info().ok()?.prog_id));
        let fault = match ours {
            Some(ours) if chain.first() == Some(&ours) => return Ok(None),
            Some(ours) if chain.contains(&ours) => Fault::Displaced,
            _ => Fault::Detached,
        };
        Ok(Some(Damage { hook: Hook::ToPod, fault, other: chain.first().copied(), inside: true }))
    }

    /// Takes it off, if it is there, with its pin.
    pub(super) fn detach_inside(&self, ifindex: u32) {
        let pin = self.inside_pin(ifindex);
        for pin in [beside(&pin), pin].into_iter().filter(|pin| pin.exists()) {
            sever(&pin);
            drop(std::fs::remove_file(pin));
        }
    }

    /// The program that judges on the pods' side. Loaded, and put in the place of an earlier run's, when it is first asked for.
    pub(super) fn judge(&self) -> Result<ProgramMut<'_>, KernelError> {
        let judge = match self.inside.get() {
            Some(judge) => judge,
            None => {
                let judge = self.load_judge()?;
                self.inside.get_or_init(|| judge)
            }
        };
        Ok(program(&judge.object, Hook::ToPod.name()))
    }

    /// Without its pin nobody could judge once this process has ended: then nothing passes.
    pub(super) fn pin_judge_again(&self) -> Result<Option<String>, KernelError> {
        let pin = self.pins.join("maps").join("judge");
        match self.inside.get() {
            Some(judge) if !pin.exists() => pin_at(judge.map.as_fd(), &pin).map(|()| Some("judge".to_owned())),
            _ => Ok(None),
        }
    }

    fn load_judge(&self) -> Result<Judge, KernelError> {
        let Place::Both { inbound_mark } = self.place() else {
            let error = std::io::Error::other("enforcement.inbound is host");
            return Err(KernelError::call("load the program of the pods' side".to_owned(), error));
        };
        let failed = |error| KernelError::call("let the pods' sides call their program".to_owned(), error);
        let settings = self.settings_at(Place::Inside { inbound_mark });
        let maps = self.pins.join("maps");
        let octets = (abi::TO_POD, Hook::ToPod.name());
        let object = load_object(octets, Maps::Pinned(&maps), &settings, self.probe_mark)?;
        let own = self.one_of(0)?; // makes the map, and pins it
        let map =
            own.maps().find(|map| map.name() == "judge").ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let map = MapHandle::try_from(&map).map_err(|error| failed(std::io::Error::other(error)))?;
        let called = program(&object, Hook::ToPod.name()).as_fd().as_raw_fd();
        map.update(&0u32.to_ne_bytes(), &called.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Judge { object, map })
    }

    /// The few instructions of one interface.
    fn one_of(&self, ifindex: u32) -> Result<Object, KernelError> {
        let failed = |error: libbpf_rs::Error| {
            KernelError::call(format!("load {NAME} for interface {ifindex}"), std::io::Error::other(error))
        };
        let mut builder = ObjectBuilder::default();
        builder.pin_root_path(self.pins.join("maps")).map_err(failed)?;
        let mut object = builder.open_memory(abi::INSIDE).map_err(failed)?;
        for mut map in object.maps_mut().filter(|map| map.name().as_encoded_bytes().ends_with(b".rodata")) {
            if let Some(whose) = map.initial_value_mut().and_then(|value| value.first_chunk_mut()) {
                *whose = ifindex.to_ne_bytes();
            }
        }
        object.load().map_err(failed)
    }

    fn inside_pin(&self, ifindex: u32) -> PathBuf {
        self.pins.join("links").join(format!("{ifindex}_{NAME}"))
    }
}

/// Whether the kernel has TCX: it can be asked what is on `lo`.
pub fn is_possible() -> bool {
    chain(1).is_ok()
}

/// The mark that an earlier run has used, or this one for it and all that follow.
pub(super) fn kept_mark(maps: &Path, fresh: u32) -> Result<u32, KernelError> {
    let pin = maps.join(MARK);
    let failed = |error| KernelError::call(format!("keep {}", pin.display()), std::io::Error::other(error));
    if let Ok(map) = MapHandle::from_pinned_path(&pin) {
        let kept = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
        let kept = kept.and_then(|octets| Some(u32::from_ne_bytes(octets.try_into().ok()?)));
        if let Some(kept) = kept.filter(|kept| *kept != 0) {
            return Ok(kept);
        }
        drop(std::fs::remove_file(&pin));
    }
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let map = MapHandle::create(MapType::Array, Some(MARK), 4, 4, 1, &options).map_err(failed)?;
    map.update(&0u32.to_ne_bytes(), &fresh.to_ne_bytes(), MapFlags::ANY).map_err(failed)?;
    pin_at(map.as_fd(), &pin)?;
    Ok(fresh)
}

fn chain(index: u32) -> std::io::Result<Vec<u32>> {
    tcx_chain(index, libbpf_sys::BPF_TCX_INGRESS)
}

/// The pinned link, if it is on an interface still: on this one of its namespace, if one is given.
fn live(pin: &Path, index: Option<u32>) -> Option<Link> {
    let link = Link::open(pin).ok()?;
    let at = link.info().ok().and_then(|info| tcx_index(&info.info))?;
    index.is_none_or(|index| index == at).then_some(link)
}

fn tcx_index(info: &LinkTypeInfo) -> Option<u32> {
    match info {
        LinkTypeInfo::Tcx(tcx) if tcx.ifindex != 0 => Some(tcx.ifindex),
        _ => None,
    }
}
