//! All maps and the programs: pinned, or adopted from an earlier run.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use libbpf_rs::{AsRawLibbpf, MapCore, MapHandle, Object, ObjectBuilder, OpenObject, ProgramMut};

use super::KernelError;
use super::abi::{self, rodata};
use super::attach::{Hook, pin_at};
use super::inside::{Judge, kept_mark};
use super::proxy::PROXY_PORTS;
use super::table::Table;
use crate::host::owner::{Shared, check_directory};

/// How large the maps are and how the programs behave; fixed at load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadSettings {
    /// Rows of `endpoints`, `budgets`, `macs`.
    pub max_endpoints: u32,
    /// Rows of `flows`.
    pub max_flows: u32,
    /// Rows of `grants`.
    pub max_grants: u32,
    /// A TCP connection that has not been answered.
    pub syn_timeout: Duration,
    /// A TCP connection without traffic.
    pub established_timeout: Duration,
    /// A TCP connection after FIN both ways or RST.
    pub closed_timeout: Duration,
    /// UDP without a reply.
    pub datagram_timeout: Duration,
    /// UDP after a reply.
    pub datagram_both_timeout: Duration,
    /// Flow events an endpoint and CPU.
    pub events_per_second: u32,
    /// RSTs and ICMP errors an endpoint and CPU.
    pub rejects_per_second: u32,
    /// Where the programs stand.
    pub place: Place,
}

/// Whose interfaces the programs are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// The host's sides of the pods' interfaces.
    #[default]
    Host,
    /// The pod's own interface, in one network namespace with the proxy.
    Beside {
        /// By which our own refusals are known as they come in; hard to guess and not zero.
        reject_mark: u32,
    },
    /// The host's sides, and for what pods receive their own sides too.
    Both {
        /// By which the pods' sides know what is our own word; hard to guess and not zero. That of an earlier run stays.
        inbound_mark: u32,
    },
    /// The pods' own sides: the second half of `Both`.
    Inside {
        /// As there.
        inbound_mark: u32,
    },
}

impl Place {
    /// On the pod's own interface, beside the workload.
    pub(super) fn is_beside(self) -> bool {
        matches!(self, Place::Beside { .. })
    }
}

/// The maps and programs.
pub struct Kernel {
    /// Empty until they are needed: see [`Kernel::open`].
    programs: OnceLock<Programs>,
    beat: Object,
    pub(super) early: OnceLock<Object>,
    pub(super) inside: OnceLock<Judge>,
    settings: LoadSettings,
    /// Where pins of this ABI version are: `maps/` and `links/`.
    pub(super) pins: PathBuf,
    /// There is a BPF file system for them.
    is_pinned: bool,
    /// Packets with this mark in a test run leave no trace.
    pub(super) probe_mark: u32,
    /// Whether the maps were there before.
    pub adopted: bool,
    /// See bpf/include/maps.h, where each map has its comment.
    pub tables: Tables,
}

/// Where an object's maps come from.
#[derive(Clone, Copy)]
pub(super) enum Maps<'a> {
    /// Those of this directory; made there if they are missing.
    Pinned(&'a Path),
    /// Those of another object; of its own if there is none.
    Shared(Option<&'a Object>),
}

/// The programs that judge packets.
struct Programs {
    from_pod: Object,
    to_pod: Object,
}

/// Every map of bpf/include/maps.h as a typed table.
#[expect(missing_docs, reason = "named and documented in bpf/include/maps.h and abi.h")]
pub struct Tables {
    pub endpoints: Table<u32, abi::endpoint>,
    pub budgets: Table<u32, abi::budget>,
    pub slots: Table<u32, u32>,
    pub limits: Table<u32, abi::limits>,
    pub macs: Table<u32, abi::learned_mac>,
    pub bridges: Table<u32, abi::bridge>,
    pub flows: Table<abi::flow_key, abi::flow>,
    pub fragments: Table<abi::fragment_key, abi::first_fragment>,
    pub proxy_sockets: Table<abi::proxy_socket_key, abi::proxy_socket>,
    pub grants: Table<abi::grant_key, abi::grant>,
    pub peers: Table<abi::address, u32>,
    pub peer_bits: Table<abi::peer_bits_key, abi::group_bits>,
    pub services: Table<abi::service_key, abi::service>,
    pub cidr4: Table<abi::cidr4_key, abi::group_bits>,
    pub cidr6: Table<abi::cidr6_key, abi::group_bits>,
    pub ports: Table<abi::port_key, abi::port_row>,
    pub port_blocks: Table<abi::port_block_key, abi::port_row>,
    pub dns_to: Table<abi::steer_key, abi::steer>,
    pub dns_from: Table<abi::steer_key, abi::steer>,
    pub counters: MapHandle,
    pub events: MapHandle,
}

impl Kernel {
    /// [`Kernel::open`] and [`Kernel::load_programs`].
    ///
    /// # Errors
    /// Theirs.
    pub fn load(pin_dir: &Path, settings: &LoadSettings, probe_mark: u32) -> Result<Kernel, KernelError> {
        let kernel = Kernel::open(pin_dir, settings, probe_mark)?;
        kernel.load_programs()?;
        Ok(kernel)
    }

    /// Opens the maps pinned under `pin_dir`, which the programs of an earlier run go on reading. The verifier takes half a
    /// second for ours on a busy machine, and DNS need not wait for it: they are loaded by [`Kernel::load_programs`], or
    /// when they are first needed. Where there are no maps yet, both are made here.
    ///
    /// `probe_mark` must be hard to guess and not zero.
    ///
    /// # Errors
    /// No bpffs can be mounted, the kernel refuses a program, or pinned maps have another shape or size.
    pub fn open(pin_dir: &Path, settings: &LoadSettings, probe_mark: u32) -> Result<Kernel, KernelError> {
        let pins = pins_of(pin_dir);
        let maps = pins.join("maps");
        match make_directories(pin_dir) {
            // Beside a workload nobody may mount, nor make a directory to mount at: what is not there is done without.
            Err(KernelError::Call { source, .. })
                if settings.place.is_beside()
                    && matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS)) =>
            {
                return Kernel::unpinned(pins, settings, probe_mark);
            }
            made => made?,
        }
        let mut settings = settings.clone();
        if let Place::Both { inbound_mark } = &mut settings.place {
            *inbound_mark = kept_mark(&maps, *inbound_mark)?;
        }
        let settings = &settings;
        let adopted = maps.join("endpoints").exists();
        let pinned = if adopted { Tables::pinned(&maps, settings) } else { None };
        let programs = OnceLock::new();
        let tables = match pinned {
            Some(tables) => tables,
            None => {
                let loaded = Programs::load(Some(&maps), settings, probe_mark)?;
                let tables = Tables::of(&loaded.from_pod)?;
                drop(programs.set(loaded));
                tables
            }
        };
        let beat = load_object((abi::BEAT, "beat"), Maps::Pinned(&maps), settings, probe_mark)?;
        let (early, inside, settings) = (OnceLock::new(), OnceLock::new(), settings.clone());
        Ok(Kernel { programs, beat, early, inside, settings, pins, is_pinned: true, probe_mark, adopted, tables })
    }

    /// Maps and programs without a name: filters of clsact hold the programs, and these their maps, when this process ends;
    /// the next one finds neither.
    fn unpinned(pins: PathBuf, settings: &LoadSettings, probe_mark: u32) -> Result<Kernel, KernelError> {
        let loaded = Programs::load(None, settings, probe_mark)?;
        let tables = Tables::of(&loaded.from_pod)?;
        let beat = load_object((abi::BEAT, "beat"), Maps::Shared(Some(&loaded.from_pod)), settings, probe_mark)?;
        let (early, inside, settings) = (OnceLock::new(), OnceLock::new(), settings.clone());
        let programs = OnceLock::from(loaded);
        Ok(Kernel {
            programs,
            beat,
            early,
            inside,
            settings,
            pins,
            is_pinned: false,
            probe_mark,
            adopted: false,
            tables,
        })
    }

    /// Whether the next process will find maps and programs.
    pub fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Loads the programs, if that has not been done.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn load_programs(&self) -> Result<(), KernelError> {
        self.programs()?;
        if self.judges_inside() {
            self.judge()?;
        }
        Ok(())
    }

    fn programs(&self) -> Result<&Programs, KernelError> {
        if let Some(programs) = self.programs.get() {
            return Ok(programs);
        }
        let loaded = Programs::load(Some(&self.pins.join("maps")), &self.settings, self.probe_mark)?;
        Ok(self.programs.get_or_init(|| loaded))
    }

    /// Another copy of a program, with the same maps: where one stands already, the same one can't be put a second time.
    pub(super) fn copy_of(&self, hook: Hook) -> Result<Object, KernelError> {
        let octets = match hook {
            Hook::FromPod => abi::FROM_POD,
            Hook::ToPod => abi::TO_POD,
        };
        self.another(octets, hook.name())
    }

    /// Another program, with the same maps.
    pub(super) fn another(&self, octets: &[u8], name: &str) -> Result<Object, KernelError> {
        let pins = self.pins.join("maps");
        let maps = if self.is_pinned { Maps::Pinned(&pins) } else { Maps::Shared(Some(&self.programs()?.from_pod)) };
        load_object((octets, name), maps, &self.settings, self.probe_mark)
    }

    /// Pins maps again whose pins are gone; the names of those. The next start would find no maps to adopt.
    ///
    /// # Errors
    /// Something could not be pinned.
    pub fn pin_again(&self) -> Result<Vec<String>, KernelError> {
        if !self.is_pinned {
            return Ok(Vec::new());
        }
        let maps = self.pins.join("maps");
        let named = |map: &libbpf_rs::Map<'_>| map.name().to_str().map(str::to_owned);
        let gone: Vec<_> = self
            .programs()?
            .from_pod
            .maps()
            .filter_map(|map| Some((named(&map)?, map)))
            .filter(|(name, _)| !name.contains('.') && !maps.join(name).exists()) // constants have a dot, and no pin
            .collect();
        if !gone.is_empty() || !self.pins.join("links").exists() {
            make_directories(self.pins.parent().unwrap_or(Path::new("/")))?;
        }
        gone.iter().try_for_each(|(name, map)| pin_at(map.as_fd(), &maps.join(name)))?;
        let judge = self.pin_judge_again()?;
        Ok(gone.into_iter().map(|(name, _)| name).chain(judge).collect())
    }

    /// Where the programs stand.
    pub(super) fn place(&self) -> Place {
        self.settings.place
    }

    /// What programs elsewhere are loaded with.
    pub(super) fn settings_at(&self, place: Place) -> LoadSettings {
        LoadSettings { place, ..self.settings.clone() }
    }

    /// The program of a hook.
    pub(super) fn program(&self, hook: Hook) -> Result<ProgramMut<'_>, KernelError> {
        let programs = self.programs()?;
        let object = match hook {
            Hook::FromPod => &programs.from_pod,
            Hook::ToPod => &programs.to_pod,
        };
        Ok(program(object, hook.name()))
    }

    /// The program of the heartbeat.
    pub(super) fn on_beat(&self) -> ProgramMut<'_> {
        program(&self.beat, "beat")
    }
}

impl Programs {
    fn load(pins: Option<&Path>, settings: &LoadSettings, probe_mark: u32) -> Result<Programs, KernelError> {
        let first = pins.map_or(Maps::Shared(None), Maps::Pinned);
        let from_pod = load_object((abi::FROM_POD, "from_pod"), first, settings, probe_mark)?;
        let second = pins.map_or(Maps::Shared(Some(&from_pod)), Maps::Pinned);
        let to_pod = load_object((abi::TO_POD, "to_pod"), second, settings, probe_mark)?;
        Ok(Programs { from_pod, to_pod })
    }
}

impl Tables {
    fn of(object: &Object) -> Result<Tables, KernelError> {
        Tables::by_name(&|name| {
            let map = object.maps().find(|map| map.name() == name);
            let map = map.ok_or_else(|| KernelError::call(format!("find map {name}"), ErrorKind::NotFound.into()))?;
            MapHandle::try_from(&map)
                .map_err(|error| KernelError::call(format!("open map {name}"), std::io::Error::other(error)))
        })
    }

    /// Those of an earlier run; none if one is missing or of another size: then the load says what is wrong.
    fn pinned(maps: &Path, settings: &LoadSettings) -> Option<Tables> {
        let tables = Tables::by_name(&|name| {
            let map = MapHandle::from_pinned_path(maps.join(name))
                .map_err(|error| KernelError::call(format!("open map {name}"), std::io::Error::other(error)))?;
            if rows_of(name, settings).is_some_and(|rows| map.max_entries() != rows) {
                return Err(KernelError::call(format!("adopt map {name}"), ErrorKind::InvalidData.into()));
            }
            Ok(map)
        });
        tables
            .inspect_err(|error| tracing::debug!(error = error as &dyn std::error::Error, "maps are not adopted"))
            .ok()
    }

    fn by_name(handle: &dyn Fn(&'static str) -> Result<MapHandle, KernelError>) -> Result<Tables, KernelError> {
        macro_rules! table {
            ($name:literal) => {
                Table::new(handle($name)?, $name)?
            };
        }
        Ok(Tables {
            endpoints: table!("endpoints"),
            budgets: table!("budgets"),
            slots: table!("slots"),
            limits: table!("limits"),
            macs: table!("macs"),
            bridges: table!("bridges"),
            flows: table!("flows"),
            fragments: table!("fragments"),
            proxy_sockets: table!("proxy_sockets"),
            grants: table!("grants"),
            peers: table!("peers"),
            peer_bits: table!("peer_bits"),
            services: table!("services"),
            cidr4: table!("cidr4"),
            cidr6: table!("cidr6"),
            ports: table!("ports"),
            port_blocks: table!("port_blocks"),
            dns_to: table!("dns_to"),
            dns_from: table!("dns_from"),
            counters: handle("counters")?,
            events: handle("events")?,
        })
    }
}

/// What libbpf would print goes to the log instead: our own errors tell what matters, the rest is for who debugs.
pub fn redirect_messages() {
    fn say(_: libbpf_rs::PrintLevel, text: String) {
        tracing::debug!(target: "libbpf", "{}", text.trim_end());
    }
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, say)));
}

fn make_directories(pin_dir: &Path) -> Result<(), KernelError> {
    mount_bpffs(pin_dir)?;
    let pins = pins_of(pin_dir);
    for (directory, shared) in [
        (pin_dir.to_owned(), Shared::Sticky),
        (pins.clone(), Shared::No),
        (pins.join("maps"), Shared::No),
        (pins.join("links"), Shared::No),
    ] {
        let failed = |what: &str| {
            let what = format!("{what} {}", directory.display());
            move |source| KernelError::Call { what, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed("make"))?;
        // Whoever can remove a pin ends enforcement with it.
        check_directory(&directory, shared).map_err(failed("use"))?;
    }
    Ok(())
}

/// Where the pins of this ABI version stand under `pin_dir`.
pub fn pins_of(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{}", abi::VERSION))
}

pub(super) fn program<'obj>(object: &'obj Object, name: &str) -> ProgramMut<'obj> {
    object.progs_mut().find(|program| program.name() == name).expect("the object was built with this program")
}

pub(super) fn load_object(
    (octets, name): (&[u8], &str),
    maps: Maps<'_>,
    settings: &LoadSettings,
    probe_mark: u32,
) -> Result<Object, KernelError> {
    let failed = |what: &str| {
        let what = format!("{name}: {what}");
        move |error: libbpf_rs::Error| KernelError::call(what, std::io::Error::other(error))
    };
    let mut builder = ObjectBuilder::default();
    if let Maps::Pinned(maps) = maps {
        builder.pin_root_path(maps).map_err(failed("set the pin directory"))?;
    }
    let mut object = builder.open_memory(octets).map_err(failed("read the object file"))?;
    size_maps(&mut object, settings).map_err(failed("set the size of a map"))?;
    if let Maps::Shared(other) = maps {
        share_maps(&mut object, other).map_err(failed("share maps"))?;
    }
    configure(&mut object, settings, probe_mark);
    object.load().map_err(failed(
        "load (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; a pinned map of another size is removed by `namegate detach`)",
    ))
}

/// Takes the maps of another object where it has them, and gives no map a name.
fn share_maps(object: &mut OpenObject, other: Option<&Object>) -> libbpf_rs::Result<()> {
    for mut map in object.maps_mut() {
        if map.name().as_bytes().contains(&b'.') {
            continue; // constants have a dot: each object has its own
        }
        // SAFETY: the map of an open object that lives during the call; no path takes the one that was set away.
        unsafe { libbpf_sys::bpf_map__set_pin_path(map.as_libbpf_object().as_ptr(), std::ptr::null()) };
        if let Some(theirs) = other.and_then(|other| other.maps().find(|theirs| theirs.name() == map.name())) {
            map.reuse_fd(theirs.as_fd())?;
        }
    }
    Ok(())
}

fn size_maps(object: &mut OpenObject, settings: &LoadSettings) -> libbpf_rs::Result<()> {
    for mut map in object.maps_mut() {
        if let Some(rows) = map.name().to_str().and_then(|name| rows_of(name, settings)) {
            map.set_max_entries(rows)?;
        }
    }
    Ok(())
}

/// How many rows a map has, if that is not for bpf/include/maps.h to say.
fn rows_of(map: &str, settings: &LoadSettings) -> Option<u32> {
    match map {
        "endpoints" | "slots" | "macs" | "bridges" => Some(settings.max_endpoints),
        "budgets" | "buckets" => Some(settings.max_endpoints + 1),
        "flows" => Some(settings.max_flows),
        "grants" => Some(settings.max_grants),
        _ => None,
    }
}

/// Writes the `const volatile` settings, which the verifier then takes for constants.
fn configure(object: &mut OpenObject, settings: &LoadSettings, probe_mark: u32) {
    for mut map in object.maps_mut() {
        if !map.name().as_bytes().ends_with(b".rodata") {
            continue;
        }
        let Some(value) = map.initial_value_mut() else { continue };
        let mut put = |offset: usize, octets: &[u8]| value[offset..offset + octets.len()].copy_from_slice(octets);
        let nanoseconds = |duration: Duration| (duration.as_nanos() as u64).to_ne_bytes();
        put(offset_of!(rodata, probe_mark), &probe_mark.to_ne_bytes());
        put(offset_of!(rodata, syn_timeout_ns), &nanoseconds(settings.syn_timeout));
        put(offset_of!(rodata, established_timeout_ns), &nanoseconds(settings.established_timeout));
        put(offset_of!(rodata, closed_timeout_ns), &nanoseconds(settings.closed_timeout));
        put(offset_of!(rodata, datagram_timeout_ns), &nanoseconds(settings.datagram_timeout));
        put(offset_of!(rodata, datagram_both_timeout_ns), &nanoseconds(settings.datagram_both_timeout));
        put(offset_of!(rodata, events_per_second), &settings.events_per_second.to_ne_bytes());
        put(offset_of!(rodata, rejects_per_second), &settings.rejects_per_second.to_ne_bytes());
        match settings.place {
            Place::Host => (),
            Place::Beside { reject_mark } => {
                put(offset_of!(rodata, proxy_port_first), &u32::from(*PROXY_PORTS.start()).to_ne_bytes());
                put(offset_of!(rodata, proxy_port_last), &u32::from(*PROXY_PORTS.end()).to_ne_bytes());
                put(offset_of!(rodata, reject_mark), &reject_mark.to_ne_bytes());
            }
            Place::Both { inbound_mark } => put(offset_of!(rodata, inbound_mark), &inbound_mark.to_ne_bytes()),
            Place::Inside { inbound_mark } => {
                put(offset_of!(rodata, inbound_mark), &inbound_mark.to_ne_bytes());
                put(offset_of!(rodata, inside), &1u32.to_ne_bytes());
            }
        }
    }
}

/// Makes sure that `pin_dir` is on a BPF file system: mounts one at /sys/fs/bpf for a path below it, else at `pin_dir`.
fn mount_bpffs(pin_dir: &Path) -> Result<(), KernelError> {
    let failed = |what: String| move |source| KernelError::Call { what, source };
    let root = Path::new("/sys/fs/bpf");
    let at = if pin_dir.starts_with(root) { root } else { pin_dir };
    if !at.starts_with("/sys") {
        std::fs::create_dir_all(at).map_err(failed(format!("make {}", at.display())))?;
    }
    if is_bpffs(at)? {
        return Ok(());
    }
    let target = CString::new(at.as_os_str().as_bytes()).map_err(|error| {
        KernelError::call(format!("mount a BPF file system at {}", at.display()), std::io::Error::other(error))
    })?;
    // SAFETY: five strings that end in NUL.
    let status = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if status != 0 {
        return Err(KernelError::last(format!("mount a BPF file system at {}", at.display())));
    }
    Ok(())
}

/// Undoes [`mount_bpffs`] where that mounted a file system for us alone; the system's own stays.
pub(super) fn unmount_bpffs(pin_dir: &Path) {
    let Ok(target) = CString::new(pin_dir.as_os_str().as_bytes()) else { return };
    if !pin_dir.starts_with("/sys") {
        // SAFETY: a string that ends in NUL. Not a mount point, or in use: it stays.
        unsafe { libc::umount2(target.as_ptr(), 0) };
    }
}

fn is_bpffs(path: &Path) -> Result<bool, KernelError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| KernelError::call(format!("look at {}", path.display()), std::io::Error::other(error)))?;
    // SAFETY: statfs is plain data; zero is a value of it.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string that ends in NUL and a struct that the kernel fills.
    if unsafe { libc::statfs(text.as_ptr(), &mut found) } != 0 {
        return Err(KernelError::last(format!("look at {}", path.display())));
    }
    Ok(found.f_type == BPF_FS_MAGIC)
}

impl KernelError {
    pub(super) fn call(what: String, source: std::io::Error) -> KernelError {
        KernelError::Call { what, source }
    }

    pub(super) fn last(what: String) -> KernelError {
        KernelError::Call { what, source: std::io::Error::last_os_error() }
    }
}
