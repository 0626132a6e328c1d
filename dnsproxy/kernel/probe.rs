//! Is it really in force? One frame that must pass and one that must not, run through the attached programs.

use std::time::Duration;

use libbpf_rs::{ProgramInput, ProgramMut};

use super::KernelError;
use super::attach::Hook;
use super::load::Kernel;
use crate::engine::ruleset::Direction;

/// What a program made of a frame.
#[derive(Debug)]
pub struct Run {
    /// `TCX_NEXT` (-1): passed on; `TC_ACT_SHOT` (2): dropped; `TC_ACT_REDIRECT` (7): refused with an answer.
    pub action: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Nanoseconds of one run, of the average when repeated.
    pub duration: Duration,
}

/// What a program returns for a frame that goes on.
pub const NEXT: i32 = -1;
/// What a program returns for a frame that ends.
pub const DROP: i32 = 2;

impl Kernel {
    /// Runs a frame through the program of `direction`, as if it had come on interface `ifindex`, `repeat` times.
    ///
    /// With `dry` it makes no flow, event or count.
    ///
    /// # Errors
    /// The interface is not there, or the frame is too short to be one.
    pub fn run(
        &self,
        direction: Direction,
        frame: &[u8],
        ifindex: u32,
        repeat: u32,
        dry: bool,
    ) -> Result<Run, KernelError> {
        let program = self.program(match direction {
            Direction::Egress => Hook::FromPod,
            Direction::Ingress => Hook::ToPod,
        })?;
        self.run_through(&program, frame, ifindex, repeat, dry)
    }

    /// The same through the program that judges on the pod's own side of `ifindex`.
    ///
    /// # Errors
    /// As above, or there is none.
    pub fn run_inside(&self, frame: &[u8], ifindex: u32, dry: bool) -> Result<Run, KernelError> {
        self.run_through(&self.judge()?, frame, ifindex, 1, dry)
    }

    fn run_through(
        &self,
        program: &ProgramMut<'_>,
        frame: &[u8],
        ifindex: u32,
        repeat: u32,
        dry: bool,
    ) -> Result<Run, KernelError> {
        // struct __sk_buff of linux/bpf.h: u32 mark at 8, ingress_ifindex at 36, ifindex at 40, cb at 48.
        let mut context = [0u8; 192];
        context[8..12].copy_from_slice(&if dry { self.probe_mark } else { 0 }.to_ne_bytes());
        context[36..40].copy_from_slice(&ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[48..52].copy_from_slice(&ifindex.to_ne_bytes());
        let mut out = vec![0u8; frame.len() + 256];
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat,
            ..ProgramInput::default()
        };
        let output = program
            .test_run(input)
            .map_err(|error| KernelError::call("run a frame".into(), std::io::Error::other(error)))?;
        let (action, duration) = (output.return_value as i32, output.duration);
        let frame = output.data.map(|data| data.to_vec()).unwrap_or_default();
        Ok(Run { action, frame, duration })
    }

    /// Runs the two frames through both programs. `closed`: nothing may pass; `enforced`: a policy selects it.
    ///
    /// # Errors
    /// What went wrong, in words for status and log.
    pub fn probe(&self, ifindex: u32, closed: bool, enforced: bool) -> Result<(), String> {
        self.probe_where(ifindex, closed, enforced, false)
    }

    /// The same of an interface of which what comes in is judged on the pod's own side.
    ///
    /// # Errors
    /// As there.
    pub fn probe_inside(&self, ifindex: u32, closed: bool, enforced: bool) -> Result<(), String> {
        self.probe_where(ifindex, closed, enforced, true)
    }

    fn probe_where(&self, ifindex: u32, closed: bool, enforced: bool, inside: bool) -> Result<(), String> {
        let arp = arp_probe();
        let stranger = from_stranger();
        let expected = |direction, frame: &[u8], wanted: i32, what: &str| -> Result<(), String> {
            let run = match direction {
                Direction::Ingress if inside => self.run_inside(frame, ifindex, true),
                _ => self.run(direction, frame, ifindex, 1, true),
            };
            let run = run.map_err(|error| error.to_string())?;
            if run.action == wanted { Ok(()) } else { Err(format!("{what}: action {}, not {wanted}", run.action)) }
        };
        let arp_action = if closed { DROP } else { NEXT };
        expected(Direction::Egress, &arp, arp_action, "an ARP probe from the pod")?;
        expected(Direction::Ingress, &arp, arp_action, "an ARP probe to the pod")?;
        expected(Direction::Egress, &stranger, DROP, "a packet with a foreign source from the pod")?;
        if closed || enforced {
            expected(Direction::Ingress, &stranger, DROP, "a packet with a foreign destination to the pod")?;
        }
        Ok(())
    }
}

/// Who has 198.51.100.255? Asked without a sender address (RFC 5227): any pod may.
fn arp_probe() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    frame.extend([0, 0, 0, 0, 0, 0, 198, 51, 100, 255]);
    frame.resize(60, 0);
    frame
}

/// UDP from 127.0.0.1 to 127.0.0.2 on a wire: addresses that no endpoint can have (RFC 1122, 3.2.1.3).
fn from_stranger() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2]);
    frame.extend([0x80, 0, 0, 9, 0, 8, 0, 0]);
    frame.resize(60, 0);
    frame
}
