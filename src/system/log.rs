//! The error log: one record per failure and per end of a recovery, as JSON lines in the file that QMEM_LOG names, else as lines
//! for a person on stderr. Async-signal-safe: fixed buffers, plain system calls, no lock. Called by `dispatch` and `recovery`.
#![forbid(unsafe_code)]

use crate::config;
use crate::ds::Text;
use crate::ds::json::Quoted;
use crate::error::{Class, Status, status_name};
use crate::os::{clock, journal, output};
use core::fmt::Write;

/// Longest record: every byte of a message may need an escape of six.
const RECORD: usize = 3072;

/// What is written.
pub struct Record<'a> {
    /// The failure's kind.
    pub class: Class,
    /// Its status; Ok where none is known.
    pub status: Status,
    /// The function that failed; empty where none did.
    pub operation: &'a str,
    /// "failure", or how it ended.
    pub event: &'a str,
    /// Retries so far.
    pub tries: u32,
    /// In words.
    pub message: &'a str,
}

impl Record<'_> {
    /// Writes the record. `quiet`: a person has been told already, so only the file gets it.
    pub fn write(&self, quiet: bool) {
        if let Some(path) = config::environment(config::LOG_ENV) {
            let line = self.json();
            match journal::append(path, line.as_str().as_bytes(), config::LOG_BYTES.get() as u64) {
                Ok(()) => return,
                Err(error) if !quiet => {
                    output::line(format_args!(
                        "qmem: the error log that QMEM_LOG names cannot be written (errno {error}); the record follows"
                    ));
                }
                Err(_) => {}
            }
        }
        if quiet {
        } else if self.event == "failure" {
            output::line(format_args!("qmem: {}: {}", self.class.name(), self.message));
        } else {
            output::line(format_args!(
                "qmem: {}: {} after {} retries: {}",
                self.class.name(),
                self.event,
                self.tries,
                self.message
            ));
        }
    }

    fn json(&self) -> Text<RECORD> {
        let (year, month, day, hour, minute, second, nano) = clock::civil(clock::wall());
        let mut line = Text::new();
        // A Text takes what fits and never fails, and there is room for the longest message.
        let _ = writeln!(
            line,
            "{{\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}Z\",\"process\":{},\"thread\":{},\"error\":\"{}\",\"status\":\"{}\",\"operation\":{},\"event\":\"{}\",\"retries\":{},\"message\":{}}}",
            clock::process(),
            clock::thread(),
            self.class.name(),
            status_name(self.status as i32).to_str().unwrap_or(""),
            Quoted(self.operation),
            self.event,
            self.tries,
            Quoted(self.message)
        );
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_message_still_makes_a_whole_record() {
        let message = "\u{1}\"".repeat(crate::error::MESSAGE_BYTES / 2);
        let operation = "a_function_of_some_length_that_failed";
        let record = Record {
            class: Class::Corruption,
            status: Status::AlreadyInitialized,
            operation,
            event: "given up",
            tries: 100,
            message: &message,
        };
        let line = record.json();
        assert!(line.as_str().ends_with("\"}\n"), "{}", line.as_str().len());
        assert_eq!(line.as_str().matches('\n').count(), 1);
    }
}
