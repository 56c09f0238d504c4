//! `qmem run`: starts the program with the preload, passes signals on to it, shows progress on a terminal, waits, reports. Called
//! by `main`.

use crate::options::Run;
use crate::record::Recorder;
use crate::summary::{self, End};
use crate::watch::Pages;
use crate::{preload, size};
use qmem::paged::{self, Options, Strategy};
use qmem::system::allocation;
use std::fs::File;
use std::io::{IsTerminal, Write, stderr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Exit status where the program was not run, as of env(1) and timeout(1).
const NOT_RUN: u8 = 125;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Between two progress lines.
const REDRAW: Duration = Duration::from_millis(250);
/// Between two samples of a recording: as often as a status page is written.
const SAMPLE: Duration = Duration::from_millis(100);
/// Passed on to the program. Those of the keyboard reach it by themselves, unless somebody sent them to us alone.
const SIGNALS: [i32; 6] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// The program; 0 = not started yet.
static CHILD: AtomicI32 = AtomicI32::new(0);
/// A signal that came before the program was there.
static EARLY: AtomicI32 = AtomicI32::new(0);

/// Runs it; the exit status is the program's, 128 + n if signal n ended it.
pub fn run(run: &Run) -> ExitCode {
    let recording =
        match run.record.as_ref().map(|path| File::create(path).map_err(|e| format!("{}: {e}", path.display()))).transpose() {
            Ok(recording) => recording.map(Recorder::new),
            Err(why) => {
                eprintln!("qmem: the samples cannot be written to {why}");
                return ExitCode::from(NOT_RUN);
            }
        };
    let (child, pages) = match start(run) {
        Ok(started) => started,
        Err((status, why)) => {
            eprintln!("qmem: {why}");
            return ExitCode::from(status);
        }
    };
    let from = Instant::now();
    let end = wait(child, &pages, !run.quiet && stderr().is_terminal(), recording, from);
    let processes = pages.processes();
    if !run.quiet {
        eprint!("{}", summary::table(&processes, &end));
    }
    if let Some(path) = &run.report
        && let Err(error) = std::fs::write(path, summary::json(&processes, &end))
    {
        eprintln!("qmem: the report cannot be written to {}: {error}", path.display());
    }
    ExitCode::from(end.status)
}

type Refusal = (u8, String);

fn start(run: &Run) -> Result<(Child, Pages), Refusal> {
    let refused = |why: String| (NOT_RUN, why);
    let library = preload::library().map_err(refused)?;
    let budget = if run.budget > 0 { run.budget } else { allocation::budget_for(0) };
    check(run, budget).map_err(refused)?;
    let pages = Pages::make().map_err(refused)?;
    catch_signals();
    let (program, arguments) = run.program.split_first().ok_or_else(|| refused("the program is missing".into()))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(preload::environment(run, &library, budget, pages.path()));
    let child = command.spawn().map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        (if missing { NOT_FOUND } else { CANNOT_EXECUTE }, format!("{}: {error}", program.to_string_lossy()))
    })?;
    CHILD.store(child.id() as i32, SeqCst);
    let early = EARLY.swap(0, SeqCst);
    if early != 0 {
        pass_on(early);
    }
    Ok((child, pages))
}

/// Would the pager work in this budget, here, with this swap directory? Said now, not by the program's first large block.
fn check(run: &Run, budget: usize) -> Result<(), String> {
    let most = allocation::machine_budget();
    if budget > most {
        let (asked, most) = (size::bytes(budget as u64), size::bytes(most as u64));
        return Err(format!("a budget of {asked} is more than this machine or cgroup allows, {most}"));
    }
    if let Some(dir) = &run.swap_dir {
        let name = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
        qmem::os::file::File::unnamed(&name).map_err(|error| error.to_string())?;
    }
    let options = Options { strategy: Strategy::Adaptive, compression: true, deduplication: false, swapping: false };
    paged::configure(&options).map_err(|error| error.to_string())
}

fn wait(mut child: Child, pages: &Pages, shown: bool, recording: Option<Recorder<File>>, from: Instant) -> End {
    let done = Arc::new((Mutex::new(false), Condvar::new()));
    let status = std::thread::scope(|scope| {
        if shown {
            let done = Arc::clone(&done);
            scope.spawn(move || show(pages, &done));
        }
        if let Some(recording) = recording {
            let done = Arc::clone(&done);
            scope.spawn(move || record(pages, recording, &done));
        }
        wait_for_end(&child);
        CHILD.store(0, SeqCst); // before its number can be another process's
        let status = child.wait();
        *done.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        done.1.notify_all();
        status
    });
    let elapsed = from.elapsed().as_nanos() as u64;
    match status {
        Ok(status) => describe(status, elapsed),
        Err(error) => End { elapsed, how: format!("unseen: {error}"), status: NOT_RUN },
    }
}

/// Waits until the program has ended, and leaves it to be waited for.
fn wait_for_end(child: &Child) {
    loop {
        // SAFETY: waitid writes to a valid siginfo.
        let waited = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, child.id(), &raw mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if waited == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

fn describe(status: ExitStatus, elapsed: u64) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End { elapsed, how: format!("with status {code}"), status: code as u8 },
        (None, Some(signal)) => {
            let dumped = if status.core_dumped() { " (core dumped)" } else { "" };
            End { elapsed, how: format!("by signal {signal}{dumped}"), status: 128 + signal as u8 }
        }
        (None, None) => End { elapsed, how: "unseen".into(), status: NOT_RUN },
    }
}

/// Draws the line until the program has ended.
fn show(pages: &Pages, done: &(Mutex<bool>, Condvar)) {
    let mut width = 0;
    let mut ended = done.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    while !*ended {
        let line = summary::line(&pages.processes());
        let _ = write!(stderr(), "\r{line:<width$}"); // nobody to tell if the terminal is gone
        width = line.chars().count();
        ended = done.1.wait_timeout(ended, REDRAW).map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
    }
    let _ = write!(stderr(), "\r{:<width$}\r", "");
}

/// Takes samples until the program has ended, and the last ones then.
fn record(pages: &Pages, mut recording: Recorder<File>, done: &(Mutex<bool>, Condvar)) {
    let mut ended = done.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        let last = *ended;
        if let Err(error) = recording.look(&pages.processes()) {
            eprintln!("qmem: the samples cannot be written: {error}");
            return;
        }
        if last {
            return;
        }
        ended = done.1.wait_timeout(ended, SAMPLE).map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
    }
}

fn catch_signals() {
    for signal in SIGNALS {
        // SAFETY: the action is plain data; the handler only touches atomics and calls kill(2).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut before);
            if before.sa_sigaction != libc::SIG_IGN {
                libc::sigaction(signal, &raw const action, std::ptr::null_mut()); // what nohup ignores stays ignored
            }
        }
    }
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let sent = unsafe { (*info).si_code } <= 0;
    if !sent {
        return; // the terminal has sent it to the program as well
    }
    if CHILD.load(SeqCst) == 0 {
        EARLY.store(signal, SeqCst);
    } else {
        pass_on(signal);
    }
}

fn pass_on(signal: i32) {
    let child = CHILD.load(SeqCst);
    if child > 0 {
        // SAFETY: our own child: CHILD is 0 before its number can be another process's.
        unsafe { libc::kill(child, signal) };
    }
}
