//! What a run has cost: the line that is shown while it goes on, the table at its end, the report in JSON. Called by `run`.

use crate::size::{bytes, seconds};
use crate::watch::Process;
use qmem::config;
use qmem::monitor::status::Numbers;
use std::fmt::Write;

/// How the program ended.
pub struct End {
    /// Nanoseconds from its start to its end.
    pub elapsed: u64,
    /// "with status 0" or "by signal 9".
    pub how: String,
    /// The command's own exit status.
    pub status: u8,
}

/// The line for a terminal: all processes that run, together. Empty where none has paged memory.
pub fn line(processes: &[Process]) -> String {
    let alive: Vec<&Numbers> = processes.iter().filter(|p| p.is_alive()).map(|p| &p.numbers).collect();
    if alive.is_empty() {
        return String::new();
    }
    let sum = |field: fn(&Numbers) -> u64| alive.iter().map(|n| field(n)).sum::<u64>();
    format!(
        "qmem: {} of {} logical resident, {} compressed, {} swapped, {} faults ({})",
        bytes(sum(|n| n.resident)),
        bytes(sum(|n| n.logical)),
        bytes(sum(|n| n.compressed)),
        bytes(sum(|n| n.swapped)),
        sum(|n| n.faults),
        seconds(sum(|n| n.fault_nanos)),
    )
}

/// The table at the end.
pub fn table(processes: &[Process], end: &End) -> String {
    let mut out = format!("qmem: the program ended {} after {}\n", end.how, seconds(end.elapsed));
    if processes.is_empty() {
        out.push_str(
            "  no block was large enough to be paged (--threshold), or the program cannot be preloaded: it is linked \
             statically, or set-user-ID\n",
        );
    }
    for process in processes {
        rows(&mut out, process);
    }
    out
}

fn rows(out: &mut String, process: &Process) {
    let n = &process.numbers;
    let mut row = |name: &str, text: String| {
        let _ = writeln!(out, "    {name:<22} {text}"); // a String takes everything
    };
    let ended = if n.ended == 1 { "" } else { ", last seen" };
    row("process", format!("{} ({}{ended})", n.pid, process.command));
    row("budget", bytes(n.budget));
    row(
        "peak resident",
        format!("{}; beside it blocks below the threshold, {} at most", bytes(n.peak_resident), bytes(n.peak_heap)),
    );
    row("logical, at most", bytes(n.peak_logical));
    row("compressed, at most", bytes(n.peak_compressed));
    row("swapped, at most", bytes(n.peak_swapped));
    if n.peak_deduplicated > 0 {
        row("shared, at most", bytes(n.peak_deduplicated));
    }
    if n.error_spent > 0 || n.error_budget > 0 {
        let (spent, bound) = (n.error_spent as f64 * 1e-15, n.error_budget as f64 * 1e-15);
        row("lost by compression", format!("an infidelity of {spent:.2e} of {bound:.2e}, at most"));
    }
    row("faults", format!("{}, {} of them on chunks that had been evicted", n.faults, n.refaults));
    row("time in faults", format!("{}, all threads together", seconds(n.fault_nanos)));
    row("a larger budget", advice(n));
    if n.refused > 0 {
        row("refused", format!("{} blocks: neither budget nor swap space had room", n.refused));
    }
}

/// What a larger budget would have saved.
fn advice(n: &Numbers) -> String {
    if n.refaults == 0 {
        return String::from("would have saved nothing: no chunk came back");
    }
    let (often, one) = (n.refaults > 100 * n.peak_logical / config::PAGED_CHUNK.default as u64, n.refault_nanos / n.refaults);
    if often && one > 100_000 {
        return format!(
            "of {} would hold everything and have saved about {}; if its access is random, --chunk 64K saves most of that too",
            bytes(enough(n)),
            seconds(n.refault_nanos)
        );
    }
    format!("of {} would hold everything and have saved about {}", bytes(enough(n)), seconds(n.refault_nanos))
}

/// The budget that would have held everything at once.
fn enough(n: &Numbers) -> u64 {
    n.peak_logical.max(n.peak_resident)
}

/// The report for programs.
pub fn json(processes: &[Process], end: &End) -> String {
    let mut out = format!(
        "{{\n  \"qmem\": {},\n  \"ended\": {},\n  \"status\": {},\n  \"elapsed_nanos\": {},\n  \"processes\": [",
        quoted(env!("CARGO_PKG_VERSION")),
        quoted(&end.how),
        end.status,
        end.elapsed
    );
    for (i, process) in processes.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}\n    {{\n      \"command\": {}", quoted(&process.command));
        for (name, value) in process.numbers.named() {
            let _ = write!(out, ",\n      \"{name}\": {value}");
        }
        let _ = write!(out, ",\n      \"enough_budget\": {}\n    }}", enough(&process.numbers));
    }
    out.push_str(if processes.is_empty() { "]\n}\n" } else { "\n  ]\n}\n" });
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        let numbers = Numbers {
            pid: u64::MAX,
            budget: 256 << 20,
            peak_resident: 256 << 20,
            peak_heap: 16 << 20,
            peak_logical: 1 << 30,
            faults: 700,
            refaults: 500,
            fault_nanos: 3_000_000_000,
            refault_nanos: 2_500_000_000,
            ended: 1,
            error_spent: 25_000_000_000,
            error_budget: 100_000_000_000,
            ..Numbers::default()
        };
        Process { command: "say \"hi\"\u{1}".into(), numbers, buffers: Vec::new() }
    }

    fn end() -> End {
        End { elapsed: 9_000_000_000, how: "with status 3".into(), status: 3 }
    }

    #[test]
    fn the_table_says_what_a_budget_would_save() {
        let text = table(&[process()], &end());
        assert!(text.contains("ended with status 3 after 9.00 s"), "{text}");
        assert!(text.contains("of 1.0 GiB would hold everything and have saved about 2.50 s"), "{text}");
        assert!(text.contains("an infidelity of 2.50e-5 of 1.00e-4"), "{text}");
        assert!(!text.contains("refused"));
        assert!(table(&[], &end()).contains("set-user-ID"));
        let mut fits = process();
        fits.numbers.refaults = 0;
        assert!(table(&[fits], &end()).contains("saved nothing"));
    }

    #[test]
    fn the_report_is_json() {
        let text = json(&[process(), process()], &end());
        assert!(text.contains("\"command\": \"say \\\"hi\\\"\\u0001\""), "{text}");
        assert!(text.contains("\"refault_nanos\": 2500000000,"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(json(&[], &end()).ends_with("\"processes\": []\n}\n"));
    }

    #[test]
    fn only_what_runs_is_on_the_line() {
        assert_eq!(line(&[process()]), "");
    }
}
