//! One namegate for one `run_dir`, `state_dir` and `pin_dir`: whoever comes second leaves before it touches anything.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::host::owner::{Shared, check_directory};

/// How long a process that is just ending is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 20;

/// The directories themselves are locked (flock(2)): nothing has to be written, nothing is left, and a process that
/// dies lets go.
#[derive(Debug)]
pub(super) struct Locks {
    held: Vec<File>,
    /// Directories that were not there before, the deepest last.
    made: Vec<PathBuf>,
}

impl Locks {
    /// Takes the directories that every file system can hold.
    pub fn take(config: &Config) -> anyhow::Result<Locks> {
        let mut locks = Locks { held: Vec::new(), made: Vec::new() };
        let (run, state) = (&config.run_dir, &config.state_dir);
        anyhow::ensure!(run != state, "run_dir and state_dir are both {}: they must not be the same", run.display());
        for (key, directory) in [("run_dir", run), ("state_dir", state)] {
            if let Err(error) = locks.make(directory).and_then(|()| locks.lock(key, directory)) {
                locks.undo();
                return Err(error);
            }
        }
        Ok(locks)
    }

    /// Takes `pin_dir`, if it is there: once it is on its own file system.
    pub fn take_pins(&mut self, config: &Config) -> anyhow::Result<()> {
        if !config.pin_dir.is_dir() {
            return Ok(());
        }
        self.lock("pin_dir", &config.pin_dir)
    }

    /// Removes what [`Locks::take`] made, where nothing is in it.
    pub fn undo(self) {
        for directory in self.made.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }

    fn make(&mut self, directory: &Path) -> anyhow::Result<()> {
        let missing: Vec<&Path> =
            directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        self.made.extend(missing.into_iter().rev().map(Path::to_owned));
        check_directory(directory, Shared::No).with_context(|| format!("using {}", directory.display()))
    }

    fn lock(&mut self, key: &str, directory: &Path) -> anyhow::Result<()> {
        let shown = directory.display();
        let file = File::open(directory).with_context(|| format!("opening {shown}"))?;
        let mut tried = file.try_lock();
        for _ in 0..TRIES {
            if !matches!(tried, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(PATIENCE / TRIES);
            tried = file.try_lock();
        }
        match tried {
            Ok(()) => self.held.push(file),
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!("another namegate runs with {key} {shown}; one is allowed, and this one ends")
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {shown}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path, run: &str, state: &str) -> Config {
        Config { run_dir: root.join(run), state_dir: root.join(state), ..Config::default() }
    }

    #[test]
    fn a_second_one_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let first = Locks::take(&config(root.path(), "run", "state")).unwrap();
        for (run, state, key) in [("run", "other/deep", "run_dir"), ("other/deep", "state", "state_dir")] {
            let error = Locks::take(&config(root.path(), run, state)).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("another namegate"), "{error}");
            assert!(!root.path().join("other").exists());
        }
        drop(first);
        Locks::take(&config(root.path(), "run", "state")).unwrap();
    }

    #[test]
    fn what_was_there_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        Locks::take(&config(root.path(), "run", "state/deep")).unwrap().undo();
        assert!(root.path().join("run").exists() && !root.path().join("state").exists());
    }
}
