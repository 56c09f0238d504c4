//! Where libqmem_preload.so is, and the environment in which a program runs with it. Called by `run`.

use crate::options::Run;
use qmem::config::{self, Setting};
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const LIBRARY: &str = "libqmem_preload.so";
/// Names another library than the one beside this command.
const OVERRIDE: &str = "QMEM_PRELOAD_LIBRARY";

/// The library: beside this command (as built), or in the lib directory of the same prefix (as installed).
pub fn library() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os(OVERRIDE).map(PathBuf::from) {
        return if path.is_file() { absolute(&path) } else { Err(format!("{OVERRIDE}={} is no file", path.display())) };
    }
    let command = env::current_exe().map_err(|error| format!("cannot find this command's own file: {error}"))?;
    let here = command.parent().unwrap_or(Path::new("/"));
    let architecture = format!("../lib/{}-linux-gnu", env::consts::ARCH);
    let places = [".", "../lib", "../lib64", architecture.as_str()];
    let found = places.iter().map(|place| here.join(place).join(LIBRARY)).find(|path| path.is_file());
    found.map_or_else(
        || Err(format!("{LIBRARY} is neither beside {} nor in ../lib; name it in {OVERRIDE}", command.display())),
        |path| absolute(&path),
    )
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    // The dynamic linker splits LD_PRELOAD at spaces and colons and knows no way to quote them.
    if path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b' ' | b':')) {
        return Err(format!("{}: a library to preload cannot have a space or a colon in its path", path.display()));
    }
    Ok(path)
}

/// What a program's environment gets beside the command's own.
pub fn environment(run: &Run, library: &Path, budget: usize, pages: &Path) -> Vec<(OsString, OsString)> {
    let name = |setting: &Setting| OsString::from(setting.env.to_str().unwrap_or_default());
    let number = |n: usize| OsString::from(n.to_string());
    let mut all = vec![
        ("LD_PRELOAD".into(), first(library.as_os_str(), env::var_os("LD_PRELOAD"))),
        (name(&config::BUDGET), number(budget)),
        (config::STATUS_DIR_ENV.to_str().unwrap_or_default().into(), pages.as_os_str().to_owned()),
    ];
    let flags =
        [(&config::NO_SWAP, run.no_swap), (&config::NO_COMPRESSION, run.no_compression), (&config::PRELOAD_MMAP, run.mmap)];
    all.extend(flags.iter().filter(|(_, on)| *on).map(|(setting, _)| (name(setting), number(1))));
    if run.chunk > 0 {
        all.push((name(&config::PAGED_CHUNK), number(run.chunk)));
    }
    if run.threshold > 0 {
        all.push((name(&config::PRELOAD_THRESHOLD), number(run.threshold)));
    }
    if let Some((infidelity, element)) = run.loss {
        all.push((config::ERROR_BUDGET_ENV.to_str().unwrap_or_default().into(), format!("{infidelity:e}").into()));
        let element = config::ELEMENTS.get(element).copied().unwrap_or_default();
        all.push((config::ELEMENT_ENV.to_str().unwrap_or_default().into(), element.into()));
    }
    if let Some(dir) = &run.swap_dir {
        // The program may change its working directory before the swap file is made.
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        all.push((config::SWAP_DIR_ENV.to_str().unwrap_or_default().into(), dir.into()));
    }
    all
}

/// Ours before those that are preloaded already.
fn first(ours: &OsStr, others: Option<OsString>) -> OsString {
    let mut all = ours.to_owned();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        all.push(":");
        all.push(others);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_comes_first() {
        assert_eq!(first(OsStr::new("/a/q.so"), None), "/a/q.so");
        assert_eq!(first(OsStr::new("/a/q.so"), Some("".into())), "/a/q.so");
        assert_eq!(first(OsStr::new("/a/q.so"), Some("b.so c.so".into())), "/a/q.so:b.so c.so");
    }

    #[test]
    fn the_environment_says_what_was_asked_for() {
        let run = Run { threshold: 65536, mmap: true, loss: Some((1e-4, 1)), ..Run::default() };
        let all = environment(&run, Path::new("/a/q.so"), 77, Path::new("/p"));
        let get = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap().to_owned());
        assert_eq!(get("QMEM_BUDGET").as_deref(), Some("77"));
        assert_eq!(get("QMEM_PRELOAD_THRESHOLD").as_deref(), Some("65536"));
        assert_eq!(get("QMEM_PRELOAD_MMAP").as_deref(), Some("1"));
        assert_eq!(get("QMEM_STATUS_DIR").as_deref(), Some("/p"));
        assert_eq!((get("QMEM_ERROR_BUDGET").as_deref(), get("QMEM_ELEMENT").as_deref()), (Some("1e-4"), Some("complex128")));
        assert_eq!(get("QMEM_NO_SWAP"), None);
    }
}
