//! A bounded queue to a thread that writes. Whoever puts a record in never waits; what has no room is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How many records wait at most. A record is about 500 octets, so this is some MiB.
const QUEUE: usize = 8_192;

/// How many octets are written at once at most, but for a longer record.
const BATCH_OCTETS: usize = 64 * 1024;

/// Where lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; made if it is not there, mode 0640, and opened anew when its path leads elsewhere.
    File(PathBuf),
}

/// Takes records of type `T` and writes them.
pub struct Sink<T> {
    queue: SyncSender<Message<T>>,
    lost: Arc<AtomicU64>,
    /// Disconnects when the writer has ended.
    ended: Mutex<Receiver<()>>,
}

enum Message<T> {
    Record(T),
    End,
}

impl<T: Send + 'static> Sink<T> {
    /// Starts a writer. `format` appends the record's lines, each with its end.
    ///
    /// # Errors
    /// The file can't be opened, or no thread can be made.
    pub fn start(target: Target, format: impl FnMut(&T, &mut Vec<u8>) + Send + 'static) -> io::Result<Sink<T>> {
        let mut writer = Writer { out: Out::open(&target)?, target, torn: false };
        let (queue, records) = sync_channel(QUEUE);
        let (end, ended) = sync_channel(0);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("records".to_owned()).spawn(move || {
            write_all(&records, format, &mut writer, &counter);
            drop(end);
        })?;
        Ok(Sink { queue, lost, ended: Mutex::new(ended) })
    }

    /// Hands a record over, or loses it.
    pub fn put(&self, record: T) {
        if self.queue.try_send(Message::Record(record)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many records were lost: no room, or not written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until what was handed over is written, `patience` at most. Records put in later are lost.
    pub fn stop(&self, patience: Duration) {
        const STEP: Duration = Duration::from_millis(5);
        let mut left = patience;
        let mut end = Message::End;
        while let Err(TrySendError::Full(message)) = self.queue.try_send(end) {
            end = message;
            if left.is_zero() {
                return;
            }
            thread::sleep(STEP.min(left));
            left = left.saturating_sub(STEP);
        }
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = ended.recv_timeout(left.max(STEP));
    }
}

fn write_all<T>(
    records: &Receiver<Message<T>>,
    mut format: impl FnMut(&T, &mut Vec<u8>),
    writer: &mut Writer,
    lost: &AtomicU64,
) {
    let mut lines = Vec::new();
    let mut open = true;
    while open && let Ok(first) = records.recv() {
        lines.clear();
        let mut count = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            let Message::Record(record) = message else {
                open = false;
                break;
            };
            format(&record, &mut lines);
            count += 1;
            next = if lines.len() < BATCH_OCTETS { records.try_recv().ok() } else { None };
        }
        if let Err(error) = writer.write(&lines)
            && lost.fetch_add(count, Ordering::Relaxed) == 0
        {
            tracing::warn!(%error, "records are being lost"); // once; the counter tells the rest
        }
    }
}

struct Writer {
    target: Target,
    out: Out,
    /// The last write ended inside a line.
    torn: bool,
}

enum Out {
    Stdout(io::Stdout),
    Stderr(io::Stderr),
    File(File, Identity),
    /// The file could not be opened again.
    None,
}

/// What tells one file from another: device and inode.
type Identity = (u64, u64);

impl Writer {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.follow_rename()?;
        if self.torn {
            self.out.write_all(b"\n")?; // so that only the torn line is unreadable, not the next one too
        }
        self.torn = true;
        self.out.write_all(lines)?;
        self.torn = false;
        self.out.flush()
    }

    /// Opens the file anew if its path leads to another one or to none, as after logrotate's rename.
    fn follow_rename(&mut self) -> io::Result<()> {
        let Target::File(path) = &self.target else { return Ok(()) };
        let there = std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        if let Out::File(_, ours) = &self.out
            && there == Some(*ours)
        {
            return Ok(());
        }
        self.out = Out::None;
        self.out = Out::open(&self.target)?;
        self.torn = false;
        Ok(())
    }
}

impl Out {
    fn open(target: &Target) -> io::Result<Out> {
        Ok(match target {
            Target::Stdout => Out::Stdout(io::stdout()),
            Target::Stderr => Out::Stderr(io::stderr()),
            Target::File(path) => {
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
                let found = file.metadata()?;
                Out::File(file, (found.dev(), found.ino()))
            }
        })
    }

    fn write_all(&mut self, octets: &[u8]) -> io::Result<()> {
        match self {
            Out::Stdout(out) => out.write_all(octets),
            Out::Stderr(out) => out.write_all(octets),
            Out::File(file, _) => file.write_all(octets),
            Out::None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Stdout(out) => out.flush(),
            Out::Stderr(out) => out.flush(),
            Out::File(..) | Out::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn line(record: &u32, out: &mut Vec<u8>) {
        writeln!(out, "{record}").unwrap();
    }

    #[test]
    fn records_are_written_in_order_and_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        fs::write(&path, "0\n").unwrap();
        let sink = Sink::start(Target::File(path.clone()), line).unwrap();
        (1..=3).for_each(|record| sink.put(record));
        sink.stop(PATIENCE);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n1\n2\n3\n");
        assert_eq!(sink.lost(), 0);
    }

    #[test]
    fn a_renamed_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("flows"), dir.path().join("flows.1"));
        let (tell, written) = mpsc::channel();
        let sink = Sink::start(Target::File(path.clone()), move |record, out| {
            line(record, out);
            tell.send(*record).unwrap();
        })
        .unwrap();
        sink.put(1);
        written.recv_timeout(PATIENCE).unwrap();
        while fs::read_to_string(&path).unwrap().is_empty() {
            thread::yield_now();
        }
        // Once with nothing in its place, once with a new file as logrotate's `create` makes it.
        fs::rename(&path, &old).unwrap();
        sink.put(2);
        while !fs::read_to_string(&path).is_ok_and(|text| text == "2\n") {
            thread::yield_now();
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), "1\n");
        fs::rename(&path, &old).unwrap();
        fs::write(&path, "").unwrap();
        sink.put(3);
        sink.stop(PATIENCE);
        assert_eq!(fs::read_to_string(&old).unwrap(), "2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n");
    }

    #[test]
    fn a_stuck_writer_loses_records_and_never_holds_anyone_up() {
        let dir = tempfile::tempdir().unwrap();
        let (release, stuck) = mpsc::channel::<()>();
        let sink = Sink::start(Target::File(dir.path().join("flows")), move |record, out| {
            let _ = stuck.recv();
            line(record, out);
        })
        .unwrap();
        let total = u32::try_from(QUEUE).unwrap() + 100;
        (0..total).for_each(|record| sink.put(record));
        let lost = sink.lost();
        assert!((99..=100).contains(&lost), "{lost}"); // one may be in the writer's hands
        sink.stop(Duration::from_millis(20)); // gives up
        drop(release);
        sink.stop(PATIENCE);
        let written = fs::read_to_string(dir.path().join("flows")).unwrap().lines().count() as u64;
        assert_eq!(written + lost, u64::from(total));
    }

    #[test]
    fn what_can_not_be_written_is_counted_and_a_torn_line_ends() {
        let full = Sink::start(Target::File(PathBuf::from("/dev/full")), line).unwrap();
        full.put(1);
        full.stop(PATIENCE);
        assert_eq!(full.lost(), 1);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        fs::write(&path, "{\"fl").unwrap();
        let target = Target::File(path.clone());
        let mut writer = Writer { out: Out::open(&target).unwrap(), target, torn: true };
        writer.write(b"{}\n").unwrap();
        writer.write(b"{}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"fl\n{}\n{}\n");
    }
}
