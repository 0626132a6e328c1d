//! The last good version of each object, on disk: a journal, so that one changed object is one line and not all of them.
//!
//! A line is a checksum and a batch of changes as JSON; a line is a whole reload or nothing. A last line that is cut was
//! never finished: it is cut off. Anything else that is wrong is damage, and then nothing in the file is believed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::files;
use crate::cluster::snapshot::{Change, LastGood};

/// The first line.
pub const HEADER: &str = "namegate-last-good 1\n";
/// How many changes may stand in the file for every object that is there, before it is written anew.
const GROWTH: usize = 2;
/// Below so many it is never written anew.
const FEW: usize = 10_000;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
    /// What it says.
    said: LastGood,
    /// How many changes stand in it.
    changes: usize,
}

/// How reading went.
#[derive(Debug)]
pub enum Read {
    /// The file was good.
    Good(Journal),
    /// There is none.
    Missing(Journal),
    /// It was damaged, and has been renamed to this path.
    Damaged(Journal, PathBuf, String),
}

impl Journal {
    /// Reads the journal of a state directory.
    ///
    /// # Errors
    /// The file is there and can't be read, or is damaged and can't be set aside.
    pub fn open(directory: &Path) -> io::Result<Read> {
        let path = directory.join("last-good.journal");
        let empty = Journal { path: path.clone(), file: None, said: LastGood::default(), changes: 0 };
        let Some(text) = files::read(&path)? else { return Ok(Read::Missing(empty)) };
        match text.and_then(|text| parse(&text)) {
            Ok((said, changes, length)) => {
                // What can't be written now is still good to read; the next change writes all of it.
                let cut = |file: File| {
                    file.set_permissions(Permissions::from_mode(0o600))?;
                    file.set_len(length).map(|()| file)
                };
                let file = OpenOptions::new().append(true).open(&path).and_then(cut).ok();
                Ok(Read::Good(Journal { file, said, changes, ..empty }))
            }
            Err(why) => {
                let aside = path.with_extension("journal.damaged");
                files::set_aside(&path, &aside)?;
                Ok(Read::Damaged(empty, aside, why))
            }
        }
    }

    /// What it says.
    pub fn said(&self) -> &LastGood {
        &self.said
    }

    /// Lets it say this. It is on disk afterwards.
    ///
    /// # Errors
    /// It may not be on disk; the next try writes all of it.
    pub fn say(&mut self, last_good: &LastGood) -> io::Result<()> {
        let changes = last_good.changes(&self.said);
        if changes.is_empty() && self.file.is_some() {
            return Ok(());
        }
        let Some(mut file) = self.file.take() else { return self.write_anew(last_good) };
        file.write_all(line(&changes)?.as_bytes())?;
        file.sync_data()?;
        self.file = Some(file);
        self.said = last_good.clone();
        self.changes += changes.len();
        Ok(())
    }

    /// Writes it anew when most of it is over; how long that takes nobody waits for.
    ///
    /// # Errors
    /// As [`Journal::say`].
    pub fn tidy(&mut self) -> io::Result<()> {
        if self.changes > FEW + GROWTH * self.said.len() { self.write_anew(&self.said.clone()) } else { Ok(()) }
    }

    fn write_anew(&mut self, last_good: &LastGood) -> io::Result<()> {
        self.file = None;
        let changes = last_good.changes(&LastGood::default());
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let beside = self.path.with_extension("journal.new");
        let mut file = files::create(&beside)?;
        file.write_all(HEADER.as_bytes())?;
        file.write_all(line(&changes)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        File::open(directory)?.sync_all()?;
        self.file = Some(OpenOptions::new().append(true).mode(0o600).open(&self.path)?);
        self.said = last_good.clone();
        self.changes = changes.len();
        Ok(())
    }
}

/// A line: all of these changes or, if it is cut, none.
///
/// # Errors
/// None that a change can cause; JSON has them for other types.
pub fn line(changes: &[Change]) -> io::Result<String> {
    let body = serde_json::to_string(changes)?;
    Ok(format!("{:08x} {body}\n", crc32fast::hash(body.as_bytes())))
}

/// What the text says, in how many changes, and where its last whole line ends.
///
/// # Errors
/// It is not as it was written, and why.
pub fn parse(text: &[u8]) -> Result<(LastGood, usize, u64), String> {
    let body = text.strip_prefix(HEADER.as_bytes()).ok_or("the first line is another")?;
    let (mut said, mut count) = (LastGood::default(), 0);
    let mut length = HEADER.len() as u64;
    for line in body.split_inclusive(|octet| *octet == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let at = || format!("the line at octet {length}");
        let (sum, body) = line.split_at_checked(9).ok_or_else(|| format!("{} is too short", at()))?;
        if sum != format!("{:08x} ", crc32fast::hash(body)).as_bytes() {
            return Err(format!("{} has another checksum", at()));
        }
        let changes: Vec<Change> = serde_json::from_slice(body).map_err(|error| format!("{}: {error}", at()))?;
        count += changes.len();
        changes.into_iter().for_each(|change| said.apply(change));
        length += line.len() as u64 + 1;
    }
    Ok((said, count, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::files::File as Manifest;
    use crate::cluster::snapshot::{OnInvalid, assemble};

    /// The last good of a generation with these pods.
    fn good(pods: &[&str]) -> LastGood {
        let file = |pod: &&str| {
            let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: shop}}\n");
            Manifest { name: format!("{pod}.yaml"), content: Ok(text.into_bytes()) }
        };
        let files: Vec<Manifest> = pods.iter().map(file).collect();
        assemble(&files, &LastGood::default(), OnInvalid::Refuse).last_good
    }

    #[track_caller]
    fn read(directory: &Path) -> Journal {
        match Journal::open(directory).unwrap() {
            Read::Good(journal) => journal,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn fresh(directory: &Path) -> Journal {
        let Read::Missing(journal) = Journal::open(directory).unwrap() else { panic!("there is one already") };
        journal
    }

    #[test]
    fn what_was_said_last_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = fresh(directory.path());
        for pods in [&["a", "b"][..], &["b", "c"], &["b", "c"], &["c"], &[]] {
            journal.say(&good(pods)).unwrap();
            assert_eq!(*read(directory.path()).said(), good(pods));
        }
        // Going on from what was read.
        let mut journal = read(directory.path());
        journal.say(&good(&["d"])).unwrap();
        assert_eq!(*read(directory.path()).said(), good(&["d"]));
    }

    #[test]
    fn a_change_is_a_line_and_what_is_over_is_tidied_away() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = fresh(directory.path());
        let length = || fs::metadata(directory.path().join("last-good.journal")).unwrap().len();
        journal.say(&good(&["a", "b", "c"])).unwrap();
        let before = length();
        journal.say(&good(&["a", "b", "c"])).unwrap();
        assert_eq!(length(), before);
        for _ in 0..FEW / 4 {
            journal.file.as_mut().unwrap().write_all(line(&[]).unwrap().as_bytes()).unwrap();
            journal.changes += 8;
        }
        let grown = length();
        journal.tidy().unwrap();
        assert!(length() < grown);
        assert_eq!(*read(directory.path()).said(), good(&["a", "b", "c"]));
    }

    #[test]
    fn a_line_that_was_cut_is_as_if_it_had_not_been_begun() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = fresh(directory.path());
        journal.say(&good(&["a"])).unwrap();
        let path = directory.path().join("last-good.journal");
        let whole = fs::read(&path).unwrap();
        journal.say(&good(&["b"])).unwrap();
        let longer = fs::read(&path).unwrap();
        for length in whole.len()..longer.len() {
            fs::write(&path, &longer[..length]).unwrap();
            let mut journal = read(directory.path());
            assert_eq!(*journal.said(), good(&["a"]), "{length} octets");
            journal.say(&good(&["c"])).unwrap();
            assert_eq!(*read(directory.path()).said(), good(&["c"]), "{length} octets");
        }
    }

    #[test]
    fn every_damaged_octet_is_noticed_and_the_file_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = fresh(directory.path());
        journal.say(&good(&["a"])).unwrap();
        let path = directory.path().join("last-good.journal");
        let whole = fs::read(&path).unwrap();
        // The last octet ends the line: without it the line was never finished.
        for at in 0..whole.len() - 1 {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            match Journal::open(directory.path()).unwrap() {
                Read::Damaged(journal, aside, _) => {
                    assert_eq!(fs::read(aside).unwrap(), bad);
                    assert!(journal.said().is_empty());
                }
                other => panic!("octet {at}: {other:?}"),
            }
        }
    }
}
