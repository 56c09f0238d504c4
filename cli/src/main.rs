//! The command `qmem`: what is asked for on the command line. Called by people and scripts. `run.rs` runs a program in a memory
//! budget, `top.rs` and `report.rs` show what it does there, `doctor.rs` says what this machine offers. Exit status: that of the program, or 2 for a bad command line, 125 where
//! the program could not be run at all.

mod doctor;
mod options;
mod preload;
mod record;
mod report;
mod run;
mod size;
mod summary;
mod top;
mod watch;

use std::process::ExitCode;

const USAGE: &str = "\
usage: qmem run [OPTIONS] [--] PROGRAM [ARGUMENT…]   run a program whose large blocks may be larger than memory
       qmem top PID                                  a live view of a process under qmem run, or of the run itself
       qmem report RECORDING|PID [-o FILE.html]      a page with plots over time, of a recording or of a process until it ends
       qmem doctor                                   what this machine offers, and what would improve it
       qmem --help | --version

options of run:
  --budget SIZE         most bytes resident through qmem, such as 256M or 4G (default: what the machine or cgroup allows)
  --threshold SIZE      blocks of this size and more are paged (default: 16M)
  --chunk SIZE          what comes and goes at a time, 64K to 2M (default: 2M, for sweeps; less for random access)
  --swap-dir DIRECTORY  where cold chunks go, on a disk (default: the first usable of $TMPDIR, /var/tmp, /tmp, .)
  --no-swap             do not swap: what is granted fits into the budget
  --no-compression      do not compress cold chunks in memory
  --mmap                page large private anonymous mappings too, not only blocks from malloc
  --error-budget X      compression may lose an infidelity of X (such as 1e-4) in all; only together with
  --element TYPE        what blocks of a power of two bytes are arrays of: complex64, complex128, float32 or float64; whatever else
                        they hold can be damaged
  --record FILE         write samples over time to FILE, for qmem report
  --report FILE         write the summary as JSON to FILE
  --quiet               no progress line and no summary
";

fn main() -> ExitCode {
    let command = match options::parse() {
        Ok(command) => command,
        Err(why) => {
            eprintln!("qmem: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match command {
        options::Command::Help => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        options::Command::Version => {
            println!("qmem {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        options::Command::Doctor => doctor::report(),
        options::Command::Run(run) => run::run(&run),
        options::Command::Top(pid) => top::top(pid),
        options::Command::Report(wanted) => report::report(&wanted),
    }
}
