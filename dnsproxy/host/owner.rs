//! Who else could change what namegate goes by: other users of the machine.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether others may make entries of their own in a directory of ours, and only that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shared {
    /// Nobody else may write there.
    No,
    /// Others may, as long as they can't remove what is not theirs (the sticky bit): the top of a bpffs.
    Sticky,
}

/// Refuses a directory in which another user could change what namegate keeps there.
///
/// # Errors
/// Whose it is and what is wanted; or it can't be looked at.
pub fn check_directory(directory: &Path, shared: Shared) -> io::Result<()> {
    let found = std::fs::metadata(directory)?;
    if shared == Shared::Sticky && is_ours(&found) && found.mode() & 0o1000 != 0 {
        return Ok(());
    }
    match written_by_others(&found) {
        None => Ok(()),
        Some(who) => {
            let wanted = "it must be root's (or namegate's own), and no one else's to write (chown root, chmod 700)";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{who}; {wanted}")))
        }
    }
}

/// Who beside root and ourselves may write this, in words; none: nobody.
pub fn written_by_others(found: &Metadata) -> Option<String> {
    let mode = found.mode() & 0o7777;
    if !is_ours(found) {
        return Some(format!("it belongs to user {}, mode {mode:04o}", found.uid()));
    }
    (mode & 0o022 != 0).then(|| format!("others than its owner may write to it, mode {mode:04o}"))
}

fn is_ours(found: &Metadata) -> bool {
    // SAFETY: reads a number.
    found.uid() == 0 || found.uid() == unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_ours_and_nobody_elses_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let of_mode = |mode, shared| {
            set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            check_directory(directory.path(), shared).map_err(|error| error.to_string())
        };
        for mode in [0o700, 0o750, 0o755] {
            of_mode(mode, Shared::No).unwrap();
        }
        for mode in [0o777, 0o775, 0o757, 0o1777] {
            assert!(of_mode(mode, Shared::No).unwrap_err().contains(&format!("mode {mode:04o}")));
        }
        of_mode(0o1777, Shared::Sticky).unwrap();
        of_mode(0o777, Shared::Sticky).unwrap_err();
        check_directory(&directory.path().join("none"), Shared::No).unwrap_err();
    }
}
