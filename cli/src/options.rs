//! The command line, read and checked. Called by `main`.

use crate::report::Report;
use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt;
use qmem::config::{self, Unit};
use std::ffi::OsString;
use std::path::PathBuf;

/// What is asked for.
pub enum Command {
    /// The usage.
    Help,
    /// The version.
    Version,
    /// `qmem doctor`.
    Doctor,
    /// `qmem run`.
    Run(Run),
    /// `qmem top`: of which process.
    Top(u32),
    /// `qmem report`.
    Report(Report),
}

/// `qmem run`.
#[derive(Default)]
pub struct Run {
    /// Bytes; 0 = what the machine allows.
    pub budget: usize,
    /// Bytes; 0 = the default.
    pub threshold: usize,
    /// Bytes of a chunk; 0 = the default.
    pub chunk: usize,
    /// Where the swap file lies, if it was said.
    pub swap_dir: Option<PathBuf>,
    /// No swap file.
    pub no_swap: bool,
    /// No compression.
    pub no_compression: bool,
    /// Page mappings too.
    pub mmap: bool,
    /// Infidelity that compression may lose, and the number of the element type that the large blocks have.
    pub loss: Option<(f64, usize)>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// Where samples over time go.
    pub record: Option<PathBuf>,
    /// Say nothing.
    pub quiet: bool,
    /// The program and its arguments.
    pub program: Vec<OsString>,
}

/// Reads the process's own arguments.
pub fn parse() -> Result<Command, lexopt::Error> {
    parse_from(lexopt::Parser::from_env())
}

fn parse_from(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let Some(first) = parser.next()? else { return Err("a command is missing".into()) };
    let command = match first {
        Short('h') | Long("help") => Command::Help,
        Short('V') | Long("version") => Command::Version,
        Value(name) if name == "run" => return parse_run(parser),
        Value(name) if name == "top" => return parse_top(parser),
        Value(name) if name == "report" => return parse_report(parser),
        Value(name) if name == "doctor" => Command::Doctor,
        Value(name) => return Err(format!("there is no command {}", name.to_string_lossy()).into()),
        other => return Err(other.unexpected()),
    };
    match parser.next()? {
        None => Ok(command),
        Some(Short('h') | Long("help")) => Ok(Command::Help),
        Some(other) => Err(other.unexpected()),
    }
}

fn parse_run(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut run = Run::default();
    let (mut error_budget, mut element) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("budget") => run.budget = size(&mut parser, "budget", config::MIN_PAGED_BUDGET, config::BUDGET.max)?,
            Long("threshold") => {
                let setting = &config::PRELOAD_THRESHOLD;
                run.threshold = size(&mut parser, "threshold", setting.min, setting.max)?;
            }
            Long("chunk") => {
                let setting = &config::PAGED_CHUNK;
                run.chunk = size(&mut parser, "chunk", setting.min, setting.max)?;
                if !run.chunk.is_power_of_two() {
                    return Err(format!("--chunk {} is no power of two", run.chunk).into());
                }
            }
            Long("swap-dir") => run.swap_dir = Some(parser.value()?.into()),
            Long("no-swap") => run.no_swap = true,
            Long("no-compression") => run.no_compression = true,
            Long("mmap") => run.mmap = true,
            Long("error-budget") => {
                let text = parser.value()?.string()?;
                let why = format!("--error-budget {text} is no infidelity above 0 and below 1, such as 1e-4");
                error_budget = Some(config::parse_fraction(&text).ok_or(why)?);
            }
            Long("element") => {
                let text = parser.value()?.string()?;
                let why = format!("--element {text} is none of {}", config::Elements);
                element = Some(config::ELEMENTS.iter().position(|name| *name == text).ok_or(why)?);
            }
            Long("record") => run.record = Some(parser.value()?.into()),
            Long("report") => run.report = Some(parser.value()?.into()),
            Short('q') | Long("quiet") => run.quiet = true,
            Value(program) => {
                run.program.push(program);
                run.program.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected()),
        }
    }
    if run.program.is_empty() {
        return Err("qmem run: the program is missing".into());
    }
    run.loss = match (error_budget, element) {
        (None, None) => None,
        (Some(infidelity), Some(element)) => Some((infidelity, element)),
        (Some(_), None) => return Err("qmem run: --error-budget needs --element: what the large blocks are arrays of".into()),
        (None, Some(_)) => return Err("qmem run: --element needs --error-budget: how much may be lost".into()),
    };
    if run.loss.is_some() && run.no_compression {
        return Err("qmem run: --error-budget and --no-compression exclude each other".into());
    }
    if run.no_swap && run.swap_dir.is_some() {
        return Err("qmem run: --swap-dir and --no-swap exclude each other".into());
    }
    Ok(Command::Run(run))
}

fn parse_top(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut pid = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Value(value) if pid.is_none() => pid = Some(value.parse::<u32>()?),
            other => return Err(other.unexpected()),
        }
    }
    pid.map(Command::Top).ok_or_else(|| "qmem top: the number of a process is missing".into())
}

fn parse_report(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let (mut source, mut output) = (None, PathBuf::from("qmem-report.html"));
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('o') | Long("output") => output = parser.value()?.into(),
            Value(value) if source.is_none() => source = Some(value.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let source = source.ok_or("qmem report: a recording or the number of a process is missing")?;
    Ok(Command::Report(Report { source, output }))
}

/// A number of bytes within bounds.
fn size(parser: &mut lexopt::Parser, option: &str, least: usize, most: usize) -> Result<usize, lexopt::Error> {
    let text = parser.value()?.string()?;
    match config::parse(&text, Unit::Bytes) {
        Some(bytes) if (least..=most).contains(&bytes) => Ok(bytes),
        Some(bytes) => Err(format!("--{option} {text} is {bytes} bytes, outside {least} to {most}").into()),
        None => Err(format!("--{option} {text} is not a number of bytes such as 256M").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Run, String> {
        let parser = lexopt::Parser::from_args(arguments.iter().map(OsString::from));
        match parse_from(parser).map_err(|error| error.to_string())? {
            Command::Run(run) => Ok(run),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn a_run_is_read() {
        let got =
            run(&["run", "--budget", "256M", "--threshold=1M", "--swap-dir", "/var/tmp", "--", "python3", "-c", "--budget"]);
        let got = got.unwrap();
        assert_eq!((got.budget, got.threshold), (256 << 20, 1 << 20));
        assert_eq!(got.swap_dir.unwrap().to_str(), Some("/var/tmp"));
        assert_eq!(got.program, ["python3", "-c", "--budget"]);
        let got = run(&["run", "--error-budget", "1e-4", "--element=complex128", "x"]).unwrap();
        assert_eq!(got.loss, Some((1e-4, 1)));
        // What follows the program is the program's, with and without "--".
        assert_eq!(run(&["run", "ls", "--quiet", "--", "-l"]).unwrap().program, ["ls", "--quiet", "--", "-l"]);
        assert!(!run(&["run", "ls", "--quiet"]).unwrap().quiet);
    }

    #[test]
    fn mistakes_are_told() {
        for (arguments, told) in [
            (&["run"][..], "the program is missing"),
            (&["run", "--budget", "12Q", "ls"], "--budget 12Q is not a number of bytes"),
            (&["run", "--budget", "1M", "ls"], "1048576 bytes, outside 33554432"),
            (&["run", "--threshold", "1", "ls"], "outside 65536"),
            (&["run", "--chunk", "96K", "ls"], "no power of two"),
            (&["run", "--no-swap", "--swap-dir", "/x", "ls"], "exclude each other"),
            (&["run", "--error-budget", "1e-4", "ls"], "needs --element"),
            (&["run", "--element", "complex128", "ls"], "needs --error-budget"),
            (&["run", "--error-budget", "2", "--element", "complex128", "ls"], "below 1"),
            (&["run", "--error-budget", "1e-4", "--element", "int", "ls"], "none of complex64, complex128"),
            (&["run", "--error-budget", "1e-4", "--element", "complex64", "--no-compression", "ls"], "exclude each other"),
            (&["run", "--fast", "ls"], "invalid option '--fast'"),
            (&["walk"], "there is no command walk"),
            (&["doctor", "now"], "unexpected argument"),
            (&["top"], "a process is missing"),
            (&["top", "self"], "self"),
            (&["top", "1", "2"], "unexpected argument"),
            (&["report"], "is missing"),
            (&["report", "a", "-o"], "missing argument"),
            (&[], "a command is missing"),
        ] {
            let error = run(arguments).err().unwrap_or_else(|| panic!("{arguments:?} was taken"));
            assert!(error.contains(told), "{arguments:?}: {error}");
        }
    }
}
