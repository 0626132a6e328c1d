//! The proxy's heartbeat. While it is stale, the kernel sweeps dead flows by itself: see bpf/beat.bpf.c.

use libbpf_rs::ProgramInput;

use super::KernelError;
use super::load::Kernel;
use crate::engine::endpoint::EndpointId;

/// The program does not look at it, but the kernel runs none without.
const FRAME: [u8; 60] = [0; 60];

impl Kernel {
    /// A sign of life, due every second: after 5 s without one the kernel sweeps, and from then on every 10 s. Arms the
    /// timer with this process' program.
    ///
    /// Returns how many flows the kernel has swept since the last beat of any process.
    ///
    /// # Errors
    /// The timer can't be armed.
    pub fn beat(&self) -> Result<u32, KernelError> {
        let failed = |error| KernelError::call("arm the timer of the heartbeat".into(), error);
        let input = ProgramInput { data_in: Some(&FRAME), ..ProgramInput::default() };
        let output = self.on_beat().test_run(input).map_err(|error| failed(std::io::Error::other(error)))?;
        let said = output.return_value as i32;
        u32::try_from(said).map_err(|_| failed(std::io::Error::from_raw_os_error(-said)))
    }

    /// Lets the kernel know in which row of `budgets` the flows of an endpoint count, of these and of no others.
    ///
    /// # Errors
    /// The map is full or can't be read.
    pub fn set_slots(&self, slots: &[(EndpointId, u32)]) -> Result<(), KernelError> {
        self.tables.slots.delete_where(|id, _| !slots.iter().any(|(known, _)| known.0 == *id))?;
        self.tables.slots.put_all(slots.iter().map(|(id, slot)| (id.0, *slot)))?;
        Ok(())
    }
}
