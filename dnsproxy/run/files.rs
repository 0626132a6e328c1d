//! Files of our own: readable by nobody else, and set aside when they are not what they should be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Octets of the longest file that is read: above that it is none that was written here.
const LONGEST: u64 = 256 << 20;

/// A new, empty file that only our user reads: what workloads asked for is nobody else's business.
pub fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The whole of a file; `None`: there is none. `Err` of the inner: why it can't be what was written.
///
/// # Errors
/// It is a file and can't be read.
pub fn read(path: &Path) -> io::Result<Option<Result<Vec<u8>, String>>> {
    let kind = match fs::metadata(path) {
        Ok(kind) => kind,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if !kind.is_file() {
        return Ok(Some(Err("it is no file".to_owned())));
    }
    let mut octets = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > LONGEST {
        return Ok(Some(Err(format!("it is longer than {LONGEST} octets"))));
    }
    Ok(Some(Ok(octets)))
}

/// Renames what is not good out of the way, over what was set aside before.
///
/// # Errors
/// It can't be renamed.
pub fn set_aside(path: &Path, aside: &Path) -> io::Result<()> {
    if fs::symlink_metadata(aside).is_ok_and(|kind| kind.is_dir()) {
        fs::remove_dir_all(aside)?;
    }
    fs::rename(path, aside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_of_ours_is_ours_alone_and_a_link_in_its_place_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, other) = (directory.path().join("names"), directory.path().join("other"));
        fs::write(&other, "untouched").expect("written");
        std::os::unix::fs::symlink(&other, &path).expect("a link");
        create(&path).expect("a file");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&other).expect("there"), "untouched");
    }

    #[test]
    fn what_is_no_file_or_too_long_is_not_read_and_can_be_set_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, aside) = (directory.path().join("names"), directory.path().join("aside"));
        assert!(read(&path).expect("nothing").is_none());
        for _ in 0..2 {
            fs::create_dir(&path).expect("a directory");
            fs::write(path.join("x"), "x").expect("written");
            read(&path).expect("readable").expect("there").expect_err("a directory");
            set_aside(&path, &aside).expect("set aside");
        }
        File::create(&path).expect("a file").set_len(LONGEST + 1).expect("sparse");
        read(&path).expect("readable").expect("there").expect_err("too long");
        assert!(read(&path.join("below")).expect("nothing").is_none());
    }
}
