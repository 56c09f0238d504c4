//! `qmem top PID`: a live view of one process: budget, residency, compression, swap, faults, read-ahead, the largest buffers. Called by
//! `main`; reads the process's status page and changes nothing.

use crate::size::bytes;
use crate::watch::{self, Process};
use qmem::monitor::status::Numbers;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Sparkline, Table};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Looks that the curves show at most.
const HISTORY: usize = 240;

/// What is shown.
struct View {
    process: Process,
    /// The look before, and when it was.
    before: Option<(Numbers, u64)>,
    faults: VecDeque<u64>,
    alive: bool,
}

/// Shows it until q is pressed.
pub fn top(pid: u32) -> ExitCode {
    if !std::io::stdout().is_terminal() {
        eprintln!("qmem: top draws on a terminal, and the output is none; qmem report {pid} makes a file");
        return ExitCode::from(2);
    }
    let process = match watch::find(pid) {
        Ok(process) => process,
        Err(why) => {
            eprintln!("qmem: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut terminal = ratatui::init();
    let mut view = View { process, before: None, faults: VecDeque::new(), alive: true };
    let shown = loop {
        if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
            break Err(error);
        }
        match quits(LOOK) {
            Ok(true) => break Ok(()),
            Ok(false) => view.look(),
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qmem: the terminal cannot be used: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits so long for a key that ends the view.
fn quits(time: Duration) -> std::io::Result<bool> {
    let end = Instant::now() + time;
    loop {
        if !event::poll(end.saturating_duration_since(Instant::now()))? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()? {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

impl View {
    fn look(&mut self) {
        let now = watch::again(&self.process);
        self.alive = now.as_ref().is_some_and(Process::is_alive);
        let before = self.process.numbers;
        if let Some(now) = now {
            self.process = now;
        }
        let elapsed = self.process.numbers.updated.saturating_sub(before.updated);
        if elapsed > 0 {
            self.before = Some((before, elapsed));
            self.faults.push_back(self.rate(|n| n.faults) as u64);
            if self.faults.len() > HISTORY {
                self.faults.pop_front();
            }
        }
    }

    /// Growth per second since the look before.
    fn rate(&self, field: fn(&Numbers) -> u64) -> f64 {
        let Some((before, elapsed)) = self.before else { return 0.0 };
        field(&self.process.numbers).saturating_sub(field(&before)) as f64 * 1e9 / elapsed as f64
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows =
            [Constraint::Length(1), Constraint::Length(3), Constraint::Length(7), Constraint::Length(5), Constraint::Min(3)];
        let [head, gauge, numbers, curve, buffers] = Layout::vertical(rows).areas(frame.area());
        let n = &self.process.numbers;
        let state = if self.alive { "" } else { " (ended)" };
        frame.render_widget(Line::from(format!("qmem top: {} {}{state}   q quits", n.pid, self.process.command)).bold(), head);
        let share = if n.budget > 0 { (n.resident as f64 / n.budget as f64).clamp(0.0, 1.0) } else { 0.0 };
        let label = if n.budget > 0 { format!("{} of {}", bytes(n.resident), bytes(n.budget)) } else { bytes(n.resident) };
        let color = if share > 0.95 { Color::Yellow } else { Color::Green };
        frame.render_widget(
            Gauge::default()
                .block(Block::bordered().title(" resident of the budget "))
                .gauge_style(color)
                .ratio(share)
                .label(label),
            gauge,
        );
        frame.render_widget(Paragraph::new(self.lines()).block(Block::bordered().title(" memory ")), numbers);
        let history: Vec<u64> = self.faults.iter().rev().take(curve.width as usize).rev().copied().collect();
        let title = format!(" faults/s: {:.0} ", self.rate(|n| n.faults));
        frame.render_widget(
            Sparkline::default().block(Block::bordered().title(title)).style(Style::from(Color::Cyan)).data(&history),
            curve,
        );
        frame.render_widget(self.buffers(), buffers);
    }

    fn lines(&self) -> Vec<Line<'static>> {
        let n = &self.process.numbers;
        let percent = |part: u64, whole: u64| if whole > 0 { part as f64 / whole as f64 * 100.0 } else { 0.0 };
        let evicted = n.logical.saturating_sub(n.resident).max(1);
        let ratio = if n.compressed > 0 {
            format!("{:.1}", evicted.saturating_sub(n.swapped) as f64 / n.compressed as f64)
        } else {
            "-".into()
        };
        vec![
            Line::from(format!(
                "logical     {:>12}   heap {:>12}   peak resident {:>12}",
                bytes(n.logical),
                bytes(n.heap),
                bytes(n.peak_resident)
            )),
            Line::from(format!(
                "compressed  {:>12}   ratio {ratio:>11}   shared {:>12}",
                bytes(n.compressed),
                bytes(n.deduplicated)
            )),
            Line::from(format!("swapped     {:>12}   of {:>14}", bytes(n.swapped), bytes(n.swap_capacity))),
            Line::from(format!(
                "faults      {:>12}   evicted before {:.1} %   read ahead {:.1} %   evictions/s {:.0}",
                n.faults,
                percent(n.refaults, n.faults),
                percent(n.ahead_hits, n.faults),
                self.rate(|n| n.evictions)
            )),
            Line::from(format!(
                "waiting     {:>9.2} threads on average   refused blocks {}",
                self.rate(|n| n.fault_nanos) / 1e9,
                n.refused
            )),
        ]
    }

    fn buffers(&self) -> Table<'static> {
        let row = |buffer: &qmem::monitor::status::Buffer| {
            Row::new([
                format!("{:#x}", buffer.start),
                bytes(buffer.logical),
                bytes(buffer.resident),
                bytes(buffer.compressed),
                bytes(buffer.swapped),
                buffer.faults.to_string(),
            ])
        };
        let widths = [
            Constraint::Length(18),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Min(8),
        ];
        Table::new(self.process.buffers.iter().map(row), widths)
            .header(Row::new(["buffer", "logical", "resident", "compressed", "swapped", "faults"]).bold())
            .block(Block::bordered().title(" largest buffers "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_view_shows_the_numbers() {
        let numbers = |faults, updated| Numbers {
            pid: 4321,
            budget: 256 << 20,
            resident: 192 << 20,
            logical: 1 << 30,
            compressed: 64 << 20,
            swapped: 320 << 20,
            faults,
            refaults: faults / 2,
            ahead_hits: faults / 4,
            updated,
            ..Numbers::default()
        };
        let buffer = qmem::monitor::status::Buffer {
            start: 0x7f00_0000,
            logical: 1 << 30,
            resident: 190 << 20,
            faults: 99,
            ..Default::default()
        };
        let process = Process { command: "simulator".into(), numbers: numbers(2000, 2_000_000_000), buffers: vec![buffer] };
        let view = View {
            process,
            before: Some((numbers(1000, 1_000_000_000), 1_000_000_000)),
            faults: [5, 9, 1000].into(),
            alive: true,
        };
        let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for part in [
            "4321 simulator",
            "192.0 MiB of 256.0 MiB",
            "faults/s: 1000",
            "evicted before 50.0 %",
            "read ahead 25.0 %",
            "0x7f000000",
            "320.0 MiB",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        // Any size of terminal will do.
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            Terminal::new(TestBackend::new(width, height)).unwrap().draw(|frame| view.draw(frame)).unwrap();
        }
    }
}
