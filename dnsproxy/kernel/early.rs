//! The XDP program in front of what pods send, where `enforcement.attach` asks for it (kernel 5.18). It only drops; the
//! programs of TC are complete without it.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use libbpf_rs::{Program, ProgramMut};

use super::KernelError;
use super::abi;
use super::attach::{create_link, live_link, pin_at, sever};
use super::load::{Kernel, program};

const NAME: &str = "early";

impl Kernel {
    /// Whether this run has such programs on its interfaces.
    pub fn drops_early(&self) -> bool {
        self.early.get().is_some()
    }

    /// Attaches the program, or replaces that of an earlier run in place. Natively: elsewhere it would cost more than
    /// it saves.
    pub(super) fn attach_early(&self, ifindex: u32) -> Result<(), KernelError> {
        let what = || format!("attach {NAME} to interface {ifindex} with XDP");
        let failed = |source| KernelError::call(what(), source);
        let program = self.early()?;
        let pin = self.early_pin(ifindex);
        if let Some(mut link) = live_link(&pin, ifindex)? {
            return link.update_prog(&program).map_err(|error| failed(std::io::Error::other(error)));
        }
        drop(std::fs::remove_file(&pin)); // severed for ever when its device was deleted
        let (hook, native) = (libbpf_sys::BPF_XDP, libbpf_sys::XDP_FLAGS_DRV_MODE);
        let link = create_link(program.as_fd().as_raw_fd(), ifindex, hook, native).map_err(failed)?;
        pin_at(link.as_fd(), &pin)
    }

    /// Takes it off the interface, if it is there, with its pin.
    pub(super) fn detach_early(&self, ifindex: u32) {
        let pin = self.early_pin(ifindex);
        if pin.exists() {
            sever(&pin);
            drop(std::fs::remove_file(pin));
        }
    }

    /// Whether ours is on the interface and pinned.
    pub(super) fn is_early(&self, ifindex: u32) -> Result<bool, KernelError> {
        let failed = |error| KernelError::call(format!("look at {NAME}"), std::io::Error::other(error));
        let ours = Program::id_from_fd(self.early()?.as_fd()).map_err(failed)?;
        let link = live_link(&self.early_pin(ifindex), ifindex)?;
        Ok(link.and_then(|link| link.info().ok()).is_some_and(|info| info.prog_id == ours))
    }

    /// Loaded when it is first asked for: kernels that can't have it are not asked to.
    pub(super) fn early(&self) -> Result<ProgramMut<'_>, KernelError> {
        let object = match self.early.get() {
            Some(object) => object,
            None => {
                let object = self.another(abi::EARLY, NAME)?;
                self.early.get_or_init(|| object)
            }
        };
        Ok(program(object, NAME))
    }

    fn early_pin(&self, ifindex: u32) -> PathBuf {
        self.pins.join("links").join(format!("{ifindex}_{NAME}"))
    }
}
