//! The directory in which the processes of one run keep their status pages (`monitor/status.rs` of the library): made, read,
//! removed. Called by `run`, and by `top` and `report`, who look for a process's page.

use qmem::monitor::status::{self, Buffer, COMMAND, Numbers};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "qmem-run-";

/// A directory of status pages.
pub struct Pages {
    path: PathBuf,
}

/// One process as its page shows it.
#[derive(Clone)]
pub struct Process {
    /// Its command line, cut.
    pub command: String,
    /// Its numbers.
    pub numbers: Numbers,
    /// Its largest buffers.
    pub buffers: Vec<Buffer>,
}

impl Process {
    /// Does it run still?
    pub fn is_alive(&self) -> bool {
        self.numbers.ended == 0 && Path::new(&format!("/proc/{}", self.numbers.pid)).exists()
    }
}

impl Pages {
    /// Makes one in memory where there is /dev/shm, else with the temporary files.
    pub fn make() -> Result<Self, String> {
        let mut parents = vec![PathBuf::from("/dev/shm"), std::env::temp_dir()];
        parents.retain(|parent| parent.is_dir());
        let mut why = String::from("no directory for temporary files");
        for parent in parents {
            remove_stale(&parent);
            let path = parent.join(format!("{PREFIX}{}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) => why = format!("{}: {error}", path.display()),
            }
        }
        Err(format!("the status pages have no place: {why}"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes that have a page, in the order in which they began.
    pub fn processes(&self) -> Vec<Process> {
        read_all(&self.path)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // a process may just be making a page: the next run removes it
    }
}

/// The process with this number, or the latest one that runs under the `qmem run` with this number.
pub fn find(pid: u32) -> Result<Process, String> {
    let all = pages_of(pid);
    let own = all.iter().rev().find(|process| process.numbers.pid == u64::from(pid));
    let found = own.or_else(|| all.iter().rev().find(|process| process.is_alive())).cloned();
    found.ok_or_else(|| {
        if Path::new(&format!("/proc/{pid}")).exists() {
            format!(
                "process {pid} has no status page: it must be started by qmem run, or with QMEM_STATUS_DIR naming a directory, \
                 and have a paged buffer"
            )
        } else {
            format!("there is no process {pid}")
        }
    })
}

/// The same process's page once more; None if it is gone.
pub fn again(process: &Process) -> Option<Process> {
    let pid = process.numbers.pid;
    let same = |now: &Process| now.numbers.pid == pid && now.numbers.started == process.numbers.started;
    pages_of(pid as u32).into_iter().find(same)
}

/// Every page where this process's may lie: the directory that its environment names, and those of runs.
fn pages_of(pid: u32) -> Vec<Process> {
    let mut directories = Vec::new();
    if let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) {
        let named = environment.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(b"QMEM_STATUS_DIR="));
        directories.extend(named.map(|dir| PathBuf::from(std::ffi::OsStr::from_bytes(dir))));
    }
    for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
        directories.push(parent.join(format!("{PREFIX}{pid}")));
        // A process that has ended is found in the run's directory as long as the run is there.
        let runs = fs::read_dir(&parent).into_iter().flatten().flatten();
        directories.extend(runs.map(|e| e.path()).filter(|path| path.join(format!("{pid}-0")).exists()));
    }
    directories.sort();
    directories.dedup();
    directories.into_iter().flat_map(|path| read_all(&path)).collect()
}

fn read_all(directory: &Path) -> Vec<Process> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<Process> = files.filter_map(|file| read(&file.path())).collect();
    all.sort_by_key(|process| process.numbers.started);
    all
}

/// A page is written while we read now and then; a torn one is read again.
fn read(path: &Path) -> Option<Process> {
    (0..100).find_map(|_| {
        let bytes = fs::read(path).ok()?;
        let (command, numbers) = status::read(&bytes)?;
        let again = fs::read(path).ok()?;
        let buffers = status::read_buffers(&again).into_iter().take_while(|buffer| buffer.start != 0).collect();
        (status::read(&again)?.1 == numbers).then(|| Process { command: text(&command), numbers, buffers })
    })
}

fn text(command: &[u8; COMMAND]) -> String {
    let line = String::from_utf8_lossy(command);
    line.trim_end_matches(['\0', ' ']).split(['\0', '\n']).next().unwrap_or_default().to_owned()
}

/// Removes what runs left behind that were killed: ours, of processes that are gone.
fn remove_stale(parent: &Path) {
    // SAFETY: geteuid always succeeds.
    let us = unsafe { libc::geteuid() };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        let ours = fs::symlink_metadata(entry.path()).is_ok_and(|meta| meta.is_dir() && meta.uid() == us);
        if ours && pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path()); // another run may be removing it too
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_line() {
        let mut bytes = [0; COMMAND];
        bytes[..14].copy_from_slice(b"python -c a\nb ");
        assert_eq!(text(&bytes), "python -c a");
    }

    #[test]
    fn what_is_no_page_is_passed_over() {
        let pages = Pages { path: std::env::temp_dir().join(format!("{PREFIX}test-{}", std::process::id())) };
        fs::create_dir(&pages.path).unwrap();
        fs::write(pages.path.join("1-0"), [0; 4096]).unwrap();
        assert!(pages.processes().is_empty());
        let path = pages.path.clone();
        drop(pages);
        assert!(!path.exists());
    }
}
