//! What a run's processes looked like over time: samples of their status pages, kept as JSON lines in a file that `qmem report` reads.
//! Written by `run` (--record) and by `report` for a process that runs; a line is one process at one time.

use crate::watch::Process;
use qmem::monitor::status::Numbers;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Write};

/// One process at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Nanoseconds since the recording began.
    pub at: u64,
    /// What was run.
    pub command: String,
    /// Its numbers.
    pub numbers: Numbers,
}

/// Samples of one process, in order.
#[derive(Clone, Debug)]
pub struct Series {
    /// What was run.
    pub command: String,
    /// Its process number.
    pub pid: u64,
    /// At least one.
    pub samples: Vec<Sample>,
}

/// A sample as a line.
pub fn line(at: u64, process: &Process) -> String {
    let mut out = format!("{{\"at_ns\":{at},\"command\":{}", quoted(&process.command));
    for (name, value) in process.numbers.named() {
        let _ = write!(out, ",\"{name}\":{value}"); // a String takes everything
    }
    out.push_str("}\n");
    out
}

/// Appends the processes' samples; those that have not changed since their last line are left out.
pub struct Recorder<W: Write> {
    out: W,
    from: std::time::Instant,
    last: BTreeMap<u64, u64>,
}

impl<W: Write> Recorder<W> {
    /// Begins now.
    pub fn new(out: W) -> Self {
        Self { out, from: std::time::Instant::now(), last: BTreeMap::new() }
    }

    /// One look.
    pub fn look(&mut self, processes: &[Process]) -> std::io::Result<()> {
        let at = self.from.elapsed().as_nanos() as u64;
        for process in processes {
            let updated = process.numbers.updated;
            if self.last.insert(process.numbers.pid, updated) != Some(updated) {
                self.out.write_all(line(at, process).as_bytes())?;
            }
        }
        self.out.flush()
    }
}

/// Reads a recording. A line that is none is an error with its number.
pub fn read(input: impl BufRead) -> Result<Vec<Series>, String> {
    let mut all: Vec<Series> = Vec::new();
    for (n, text) in input.lines().enumerate() {
        let text = text.map_err(|error| format!("line {}: {error}", n + 1))?;
        if text.trim().is_empty() {
            continue;
        }
        let sample =
            parse(&text).ok_or_else(|| format!("line {} is no sample of a recording made by qmem run --record", n + 1))?;
        let pid = sample.numbers.pid;
        match all.iter_mut().find(|series| series.pid == pid) {
            Some(series) => series.samples.push(sample),
            None => all.push(Series { command: sample.command.clone(), pid, samples: vec![sample] }),
        }
    }
    if all.is_empty() {
        return Err("the recording has no samples: no process had paged memory".into());
    }
    Ok(all)
}

/// One line: a flat object of numbers and one string, as [`line`] writes it.
fn parse(text: &str) -> Option<Sample> {
    let mut rest = text.trim().strip_prefix('{')?;
    let (mut at, mut command) = (None, None);
    let mut values: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let (name, after) = string(rest)?;
        rest = after.strip_prefix(':')?;
        if name == "command" {
            let (value, after) = string(rest)?;
            command = Some(value);
            rest = after;
        } else {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let value = rest[..digits].parse().ok()?;
            if name == "at_ns" {
                at = Some(value);
            }
            values.insert(name, value);
            rest = &rest[digits..];
        }
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest == "}" => break,
            None => return None,
        }
    }
    let numbers = Numbers::from_named(|name| values.get(name).copied().unwrap_or(0));
    Some(Sample { at: at?, command: command?, numbers })
}

/// A JSON string at the start of `text`, and what follows it.
fn string(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &body[at + 1..])),
            '\\' => match chars.next()?.1 {
                'u' => {
                    let code = body.get(at + 2..at + 6)?;
                    out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
                    for _ in 0..4 {
                        chars.next();
                    }
                }
                'n' => out.push('\n'),
                c @ ('"' | '\\') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    None
}

/// A JSON string.
pub fn quoted(text: &str) -> String {
    qmem::ds::json::Quoted(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u64, updated: u64) -> Process {
        let numbers = Numbers { pid, updated, faults: 7 * updated, resident: u64::MAX, ..Numbers::default() };
        Process { command: "say \"hi\"\\\u{1}é".into(), numbers, buffers: Vec::new() }
    }

    #[test]
    fn a_recording_is_read_back() {
        let mut text = Vec::new();
        let mut recorder = Recorder::new(&mut text);
        recorder.look(&[process(1, 1)]).unwrap();
        recorder.look(&[process(1, 2), process(2, 1)]).unwrap();
        recorder.look(&[process(1, 2), process(2, 3)]).unwrap(); // the first has not changed
        let series = read(&text[..]).unwrap();
        assert_eq!(series.iter().map(|s| (s.pid, s.samples.len())).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
        assert_eq!(series[0].command, process(1, 1).command);
        assert_eq!(series[1].samples[1].numbers, process(2, 3).numbers);
        assert!(series[1].samples[0].at <= series[1].samples[1].at);
    }

    #[test]
    fn what_is_no_recording_is_told() {
        for bad in [
            "x",
            "{}",
            "{\"at_ns\":1}",
            "{\"at_ns\":-1,\"command\":\"a\"}",
            "{\"at_ns\":1,\"command\":\"a\"",
            "{\"command\":\"\\q\",\"at_ns\":1}",
        ] {
            assert!(read(format!("{bad}\n").as_bytes()).unwrap_err().contains("line 1"), "{bad}");
        }
        assert!(read(&b""[..]).unwrap_err().contains("no samples"));
        assert_eq!(read(&b"{\"at_ns\":5,\"command\":\"a\",\"pid\":3,\"new_field\":9}\n"[..]).unwrap()[0].pid, 3);
    }
}
