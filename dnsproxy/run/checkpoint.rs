//! The checkpoint: which names and deadlines are behind the kernel's grants, so that the next process knows what it adopts.
//!
//! A file an endpoint (`names/NUMBER` in the state directory), written aside, renamed and synced, by a thread of its own: no query
//! waits for it but for the tables' locks, and those it holds for a thousand rows at a time. Only what changed is written,
//! at most once a second, and seldom enough that this thread is at rest nineteen twentieths of the time.
//!
//! The file may be behind the kernel's rows, or gone: they are the truth ([`crate::engine::fqdn::FqdnTable::adopt`]). It
//! means nothing after a boot, for then the rows are gone and their clock began anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::files;
use crate::clock;
use crate::engine::endpoint::EndpointId;
use crate::engine::fqdn::{FqdnTable, Remembered};
use crate::engine::grant::MonoNs;
use crate::engine::name::Name;

/// The format of the files. Another one is set aside like a damaged file.
const VERSION: u32 = 1;
/// How many rows are read under one lock: some 100 µs.
const ROWS: usize = 1_000;
/// The least time between two rounds.
const PAUSE: Duration = Duration::from_secs(1);
/// How much longer than a round the pause after it is.
const REST: u32 = 19;

/// The names of one endpoint as a checkpoint has them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// How long the machine had slept since boot when deadlines were last reckoned.
    pub slept: Duration,
    /// By address.
    pub rows: HashMap<IpAddr, Remembered>,
}

/// How reading went.
#[derive(Debug)]
pub enum Read {
    /// The file was good.
    Good(Names),
    /// There is none, or it is of another boot.
    Missing,
    /// It was damaged, or of another version; it has been renamed to this path.
    Damaged(PathBuf, String),
}

/// Endpoints and their tables.
type Tables = Vec<(EndpointId, Arc<Mutex<FqdnTable>>)>;

/// The thread that writes checkpoints.
pub struct Checkpoint {
    tables: Arc<ArcSwap<Tables>>,
    slept: Arc<AtomicU64>,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoint {
    /// Begins. Nothing is written before [`Checkpoint::know`].
    ///
    /// # Errors
    /// No thread, or the machine does not say which boot this is.
    pub fn start(state_dir: &Path) -> io::Result<Checkpoint> {
        let tables: Arc<ArcSwap<Tables>> = Arc::default();
        let slept = Arc::new(AtomicU64::new(0));
        let (end, ended) = mpsc::channel();
        let mut writer = Writer {
            directory: directory(state_dir),
            boot: boot_id()?,
            tables: tables.clone(),
            slept: slept.clone(),
            written: HashMap::new(),
            problem: String::new(),
        };
        let run = move || {
            let mut pause = PAUSE;
            loop {
                let last = !matches!(ended.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
                let started = clock::now();
                writer.round();
                pause = PAUSE.max(clock::now().saturating_duration_since(started) * REST);
                if last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(run)?;
        Ok(Checkpoint { tables, slept, end: Some(end), thread: Some(thread) })
    }

    /// Whose names there are. Files of others are removed.
    pub fn know(&self, tables: Tables) {
        self.tables.store(Arc::new(tables));
    }

    /// Deadlines are reckoned with the machine having slept so long since boot.
    pub fn slept(&self, slept: Duration) {
        self.slept.store(u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The endpoint is no more, and neither are its names.
pub(super) fn forget(state_dir: &Path, endpoint: EndpointId) {
    let _ = fs::remove_file(path(&directory(state_dir), endpoint)); // not there as a rule
}

impl Drop for Checkpoint {
    /// Writes once more what changed.
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    directory: PathBuf,
    boot: String,
    tables: Arc<ArcSwap<Tables>>,
    slept: Arc<AtomicU64>,
    /// The version of each table that is on disk.
    written: HashMap<EndpointId, u64>,
    /// What went wrong last: said once.
    problem: String,
}

impl Writer {
    fn round(&mut self) {
        match self.write_all() {
            Ok(()) => self.problem.clear(),
            Err(error) => {
                let problem = error.to_string();
                if problem != self.problem {
                    tracing::warn!(directory = %self.directory.display(), problem, "names are not written down: after a restart grants have none");
                }
                self.problem = problem;
            }
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        let tables = self.tables.load_full();
        let mut wrote = false;
        for (id, table) in &*tables {
            let version = table.lock().unwrap_or_else(PoisonError::into_inner).version();
            if self.written.get(id) == Some(&version) {
                continue;
            }
            if fs::symlink_metadata(&self.directory).is_ok_and(|kind| !kind.is_dir()) {
                files::set_aside(&self.directory, &self.directory.with_extension("damaged"))?;
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            self.write(*id, table)?;
            self.written.insert(*id, version);
            wrote = true;
        }
        if self.written.len() > tables.len() {
            self.written.retain(|id, _| {
                let there = tables.iter().any(|(known, _)| known == id);
                if !there {
                    let _ = fs::remove_file(path(&self.directory, *id));
                }
                there
            });
        }
        if wrote { File::open(&self.directory)?.sync_all() } else { Ok(()) }
    }

    fn write(&self, id: EndpointId, table: &Mutex<FqdnTable>) -> io::Result<()> {
        let mut text = Text::new(&self.boot, Duration::from_nanos(self.slept.load(Ordering::Relaxed)));
        let mut after = None;
        loop {
            let (rows, last) = table.lock().unwrap_or_else(PoisonError::into_inner).remember(after, ROWS);
            rows.iter().for_each(|row| text.row(row));
            if last.is_none() {
                break;
            }
            after = last;
        }
        write_file(&path(&self.directory, id), &text)
    }
}

/// What a file says, made row by row. Read again by [`parse`].
#[derive(Clone, Debug)]
pub struct Text {
    body: String,
}

impl Text {
    /// Begins. `boot`: which boot this is, without blanks; `slept`: how long the machine had slept since then.
    pub fn new(boot: &str, slept: Duration) -> Text {
        Text { body: format!("{boot} {}\n", u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX)) }
    }

    /// Adds `ADDRESS MARK`, then `UNTIL NAME` as often as there are names.
    pub fn row(&mut self, row: &Remembered) {
        let _ = write!(self.body, "{} {:08x}", row.address, row.mark);
        for (name, until) in &row.names {
            let _ = write!(self.body, " {} {name}", until.0);
        }
        self.body.push('\n');
    }

    /// The file's first line, and the rest.
    pub fn parts(&self) -> (String, &str) {
        (header(&self.body), &self.body)
    }
}

fn write_file(path: &Path, text: &Text) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = files::create(&beside)?;
    let (header, body) = text.parts();
    file.write_all(header.as_bytes())?;
    file.write_all(body.as_bytes())?;
    // Renamed before it is synced: what a slow disk has not taken yet must outlive a kill, and means nothing after a boot.
    fs::rename(beside, path)?;
    file.sync_all()
}

/// Reads what is known of an endpoint's names; a file that is not good is set aside.
///
/// # Errors
/// The file is there and can't be read, or can't be set aside.
pub fn read(state_dir: &Path, id: EndpointId) -> io::Result<Read> {
    let path = path(&directory(state_dir), id);
    let Some(text) = files::read(&path)? else { return Ok(Read::Missing) };
    let boot = boot_id()?;
    match text.and_then(|text| parse(&text, &boot)) {
        Ok(Some(names)) => Ok(Read::Good(names)),
        Ok(None) => {
            fs::remove_file(&path)?;
            Ok(Read::Missing)
        }
        Err(why) => {
            let aside = path.with_extension("damaged");
            files::set_aside(&path, &aside)?;
            Ok(Read::Damaged(aside, why))
        }
    }
}

/// Forgets all names: nothing is left in the kernel that they could be for.
pub fn remove(state_dir: &Path) {
    let _ = fs::remove_dir_all(directory(state_dir));
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("names")
}

fn path(directory: &Path, id: EndpointId) -> PathBuf {
    directory.join(id.to_string())
}

fn header(body: &str) -> String {
    format!("namegate-names {VERSION} {:08x}\n", crc32fast::hash(body.as_bytes()))
}

/// Which boot this is: `/proc/sys/kernel/random/boot_id`, random(4).
fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What a file says. `None`: it is of another boot than `boot`.
///
/// # Errors
/// It is not as it was written, and why.
pub fn parse(text: &[u8], boot: &str) -> Result<Option<Names>, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let (found, body) = text.split_once('\n').ok_or("no header line")?;
    let wanted = header(body);
    if found != wanted.trim_end() {
        return Err(format!("the header is {found:?}, the body asks for {wanted:?}"));
    }
    let mut lines = body.lines();
    let (of, slept) = lines.next().and_then(|line| line.split_once(' ')).ok_or("no line about the boot")?;
    if of != boot {
        return Ok(None);
    }
    let slept = slept.parse().map_err(|error| format!("{slept:?}: {error}"))?;
    let mut names = Names { slept: Duration::from_nanos(slept), rows: HashMap::new() };
    for line in lines {
        let row = row(line).ok_or_else(|| format!("not a row: {line:?}"))?;
        names.rows.insert(row.address, row);
    }
    Ok(Some(names))
}

fn row(line: &str) -> Option<Remembered> {
    let mut words = line.split(' ');
    let address = words.next()?.parse().ok()?;
    let mark = u32::from_str_radix(words.next()?, 16).ok()?;
    let mut names = Vec::new();
    while let Some(until) = words.next() {
        names.push((Name::parse(words.next()?).ok()?, MonoNs(until.parse().ok()?)));
    }
    Some(Remembered { address, mark, names })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::answer::Learned;
    use crate::engine::bits::Bits;
    use crate::engine::fqdn::{Caps, Timing};
    use crate::engine::pattern::{Bare, Pattern, PatternTrie};
    use crate::engine::ruleset::RuleSet;

    const ONE: EndpointId = EndpointId(1);

    fn learn(table: &Mutex<FqdnTable>, name: &str, addresses: &[&str]) {
        let mut names = PatternTrie::new(Bare::Valid);
        names.insert(Pattern::pattern("**.test").expect("a pattern"), Bits::of(1), None);
        let rules = RuleSet { selected: true, names: Arc::new(names), ..RuleSet::unselected() };
        let mut addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        addresses.sort_unstable();
        let learned = Learned { name: Name::parse(name).expect("a name"), addresses, ttl: 60 };
        let mut table = table.lock().expect("not poisoned");
        let plan = table.plan(&learned, &rules, MonoNs(7), &Timing::default()).expect("room");
        table.record(plan);
    }

    fn table() -> Arc<Mutex<FqdnTable>> {
        let table = Arc::new(Mutex::new(FqdnTable::new(Caps::default())));
        learn(&table, "a.test", &["203.0.113.1", "2001:db8::1"]);
        learn(&table, "b_2.x.test", &["203.0.113.1"]);
        table
    }

    /// What the thread writes of these tables until it ends.
    fn written(directory: &Path, tables: Tables) {
        let checkpoint = Checkpoint::start(directory).expect("it starts");
        checkpoint.slept(Duration::from_secs(3));
        checkpoint.know(tables);
    }

    #[track_caller]
    fn good(directory: &Path, id: EndpointId) -> Names {
        match read(directory, id).expect("readable") {
            Read::Good(names) => names,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let table = table();
        written(directory.path(), vec![(ONE, table.clone())]);
        let names = good(directory.path(), ONE);
        let rows = table.lock().expect("not poisoned").remember(None, 10).0;
        assert_eq!(names.rows, rows.into_iter().map(|row| (row.address, row)).collect());
        assert_eq!((names.rows.len(), names.slept), (2, Duration::from_secs(3)));
        assert_eq!(names.rows[&"203.0.113.1".parse::<IpAddr>().expect("an address")].names.len(), 2);
    }

    #[test]
    fn more_rows_than_one_lock_is_held_for_are_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let table = table();
        let addresses: Vec<String> = (0..2_500).map(|at| format!("198.18.{}.{}", at / 256, at % 256)).collect();
        for (at, some) in addresses.chunks(500).enumerate() {
            learn(&table, &format!("n{at}.test"), &some.iter().map(String::as_str).collect::<Vec<_>>());
        }
        written(directory.path(), vec![(ONE, table)]);
        assert_eq!(good(directory.path(), ONE).rows.len(), 2_502);
    }

    #[test]
    fn only_what_changed_is_written_and_files_of_no_endpoint_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, two) = (table(), table());
        let mut writer = Writer {
            directory: super::directory(directory.path()),
            boot: boot_id().expect("a boot"),
            tables: Arc::new(ArcSwap::from_pointee(vec![(ONE, one.clone()), (EndpointId(2), two)])),
            slept: Arc::default(),
            written: HashMap::new(),
            problem: String::new(),
        };
        writer.round();
        let file = |id: u32| path(&writer.directory, EndpointId(id));
        let paths = [file(1), file(2)];
        paths.iter().for_each(|path| fs::write(path, "untouched").expect("writable"));
        learn(&one, "c.test", &["203.0.113.9"]);
        writer.round();
        assert_eq!(good(directory.path(), ONE).rows.len(), 3);
        assert_eq!(fs::read_to_string(&paths[1]).expect("there"), "untouched");
        writer.tables.store(Arc::new(vec![(ONE, one)]));
        writer.round();
        assert!(paths[0].exists() && !paths[1].exists());
    }

    #[test]
    fn every_damaged_octet_is_noticed_and_the_file_set_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        written(directory.path(), vec![(ONE, table())]);
        let path = path(&super::directory(directory.path()), ONE);
        let whole = fs::read(&path).expect("there");
        for at in 0..whole.len() {
            for bad in [[&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat(), whole[..at].to_vec()] {
                fs::write(&path, &bad).expect("writable");
                match read(directory.path(), ONE).expect("readable") {
                    Read::Damaged(aside, _) => assert_eq!(fs::read(aside).expect("set aside"), bad),
                    other => panic!("octet {at}: {other:?}"),
                }
                assert!(!path.exists());
            }
        }
    }

    #[test]
    fn names_of_another_boot_mean_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(&super::directory(directory.path()), ONE);
        fs::create_dir_all(super::directory(directory.path())).expect("a directory");
        let mut text = Text::new("another-boot", Duration::ZERO);
        table().lock().expect("not poisoned").remember(None, 10).0.iter().for_each(|row| text.row(row));
        write_file(&path, &text).expect("writable");
        assert!(matches!(read(directory.path(), ONE).expect("readable"), Read::Missing));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_file_or_no_directory_is_set_aside_and_written_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(super::directory(directory.path()), "a file").expect("written");
        assert!(matches!(read(directory.path(), ONE).expect("readable"), Read::Missing));
        written(directory.path(), vec![(ONE, table())]);
        good(directory.path(), ONE);
        let path = path(&super::directory(directory.path()), ONE);
        fs::remove_file(&path).expect("there");
        fs::create_dir(&path).expect("a directory");
        assert!(matches!(read(directory.path(), ONE).expect("readable"), Read::Damaged(..)));
    }
}
