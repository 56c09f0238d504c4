//! `qmem report`: a recording, or a process that runs, as one HTML file with plots over time, which needs nothing beside it. Called by
//! `main`.

use crate::record::{self, Recorder, Sample, Series};
use crate::size::{bytes, seconds};
use crate::watch;
use plotters::prelude::*;
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Between two looks at a process that runs.
const LOOK: Duration = Duration::from_millis(100);
/// Points that a curve has at most; more are thinned.
const POINTS: usize = 2000;
const SIZE: (u32, u32) = (860, 260);

/// What is reported.
pub struct Report {
    /// A recording, or the number of a process that runs.
    pub source: String,
    /// Where the page goes.
    pub output: PathBuf,
}

/// Makes the page.
pub fn report(report: &Report) -> ExitCode {
    match load(&report.source).and_then(|series| write(&series, &report.output)) {
        Ok(()) => {
            println!("qmem: the report is {}", report.output.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("qmem: {why}");
            ExitCode::FAILURE
        }
    }
}

fn load(source: &str) -> Result<Vec<Series>, String> {
    if !Path::new(source).exists()
        && let Ok(pid) = source.parse::<u32>()
    {
        return record::read(&follow(pid)?[..]);
    }
    let file = File::open(source).map_err(|error| format!("{source}: {error}"))?;
    record::read(BufReader::new(file)).map_err(|why| format!("{source}: {why}"))
}

/// Looks at a process until it ends.
fn follow(pid: u32) -> Result<Vec<u8>, String> {
    let mut process = watch::find(pid)?;
    let mut text = Vec::new();
    let mut recorder = Recorder::new(&mut text);
    eprintln!("qmem: watching process {} until it ends", process.numbers.pid);
    loop {
        recorder.look(std::slice::from_ref(&process)).map_err(|error| error.to_string())?;
        if !process.is_alive() {
            break;
        }
        std::thread::sleep(LOOK);
        match watch::again(&process) {
            Some(now) => process = now,
            None => break, // its directory is gone with the run
        }
    }
    drop(recorder);
    Ok(text)
}

fn write(all: &[Series], output: &Path) -> Result<(), String> {
    std::fs::write(output, page(all)?).map_err(|error| format!("{}: {error}", output.display()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td{padding:.15em 1.2em .15em 0;vertical-align:top}td+td{font-variant-numeric:tabular-nums}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}svg{max-width:100%;height:auto}figure{margin:1em 0}figcaption{color:#555}";

fn page(all: &[Series]) -> Result<String, String> {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>qmem report</title><style>{STYLE}</style></head><body>\n\
         <h1>Memory of a run</h1>\n<p>qmem {}; {} process{}.</p>\n",
        env!("CARGO_PKG_VERSION"),
        all.len(),
        if all.len() == 1 { "" } else { "es" }
    );
    for series in all {
        section(&mut out, series)?;
    }
    out.push_str("</body></html>\n");
    Ok(out)
}

fn section(out: &mut String, series: &Series) -> Result<(), String> {
    let Some(last) = series.samples.last() else { return Ok(()) };
    let n = &last.numbers;
    let _ = write!(out, "<h2>{} <small>(process {})</small></h2>\n<table>\n", escaped(&series.command), series.pid);
    let row = |out: &mut String, name: &str, value: String, exact: u64| {
        let _ = writeln!(out, "<tr><td>{name}</td><td data-value=\"{exact}\">{value}</td></tr>");
    };
    row(out, "budget", bytes(n.budget), n.budget);
    row(out, "peak resident", bytes(n.peak_resident), n.peak_resident);
    row(out, "logical, at most", bytes(n.peak_logical), n.peak_logical);
    row(out, "compressed, at most", bytes(n.peak_compressed), n.peak_compressed);
    row(out, "swapped, at most", bytes(n.peak_swapped), n.peak_swapped);
    row(out, "faults", n.faults.to_string(), n.faults);
    row(out, "of them on chunks that had been evicted", n.refaults.to_string(), n.refaults);
    row(out, "of them on chunks that had been read ahead", n.ahead_hits.to_string(), n.ahead_hits);
    row(out, "time in faults, all threads", seconds(n.fault_nanos), n.fault_nanos);
    row(out, "evictions", n.evictions.to_string(), n.evictions);
    row(out, "infidelity lost by compression, at most", format!("{:.2e}", n.error_spent as f64 * 1e-15), n.error_spent);
    row(out, "refused blocks", n.refused.to_string(), n.refused);
    out.push_str("</table>\n");
    let mib = |value: u64| value as f64 / (1 << 20) as f64;
    let level = |field: fn(&Sample) -> u64| series.samples.iter().map(|s| (s.at as f64 / 1e9, mib(field(s)))).collect::<Vec<_>>();
    let curves = [
        ("budget", level(|s| s.numbers.budget)),
        ("resident", level(|s| s.numbers.resident)),
        ("compressed", level(|s| s.numbers.compressed)),
        ("swapped", level(|s| s.numbers.swapped)),
        ("logical", level(|s| s.numbers.logical)),
    ];
    figure(out, "Where the bytes are, in MiB over seconds", &curves)?;
    let rate = |field: fn(&Sample) -> u64| rates(&series.samples, field);
    let curves = [
        ("faults", rate(|s| s.numbers.faults)),
        ("faults on evicted chunks", rate(|s| s.numbers.refaults)),
        ("evictions", rate(|s| s.numbers.evictions)),
    ];
    figure(out, "What the pager does, per second", &curves)?;
    let waited = rate(|s| s.numbers.fault_nanos).into_iter().map(|(at, nanos)| (at, nanos / 1e9)).collect();
    figure(out, "Threads that wait for a fault, on average", &[("waiting", waited)])
}

/// Growth per second between two samples.
fn rates(samples: &[Sample], field: fn(&Sample) -> u64) -> Vec<(f64, f64)> {
    let pair = |pair: &[Sample]| {
        let seconds = pair[1].at.saturating_sub(pair[0].at).max(1) as f64 / 1e9;
        (pair[1].at as f64 / 1e9, field(&pair[1]).saturating_sub(field(&pair[0])) as f64 / seconds)
    };
    samples.windows(2).map(pair).collect()
}

/// Every n-th point, so that a curve has at most [`POINTS`]; of each group the highest, which must not be lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS).max(1);
    points.chunks(group).filter_map(|g| g.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))).collect()
}

type Curve<'a> = (&'a str, Vec<(f64, f64)>);

fn figure(out: &mut String, title: &str, curves: &[Curve<'_>]) -> Result<(), String> {
    let mut svg = String::new();
    draw(&mut svg, curves).map_err(|error| format!("a plot cannot be drawn: {error}"))?;
    let _ = writeln!(out, "<figure><figcaption>{title}</figcaption>\n{svg}</figure>");
    Ok(())
}

fn draw(svg: &mut String, curves: &[Curve<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let all = || curves.iter().flat_map(|(_, points)| points);
    let end = all().map(|p| p.0).fold(0.0, f64::max).max(1e-3);
    let top = all().map(|p| p.1).fold(0.0, f64::max).max(1e-9) * 1.05;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart =
        ChartBuilder::on(&root).margin(8).x_label_area_size(28).y_label_area_size(70).build_cartesian_2d(0.0..end, 0.0..top)?;
    chart.configure_mesh().light_line_style(WHITE).draw()?;
    for (n, (name, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        chart
            .draw_series(LineSeries::new(thinned(points), color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmem::monitor::status::Numbers;

    fn samples(n: u64) -> Vec<Sample> {
        let sample = |i: u64| Sample {
            at: i * 100_000_000,
            command: "<sim>".into(),
            numbers: Numbers {
                pid: 5,
                budget: 64 << 20,
                resident: i << 20,
                faults: 10 * i,
                peak_resident: n << 20,
                ..Numbers::default()
            },
        };
        (0..n).map(sample).collect()
    }

    #[test]
    fn a_page_stands_alone_and_has_the_numbers() {
        let series = Series { command: "<sim>".into(), pid: 5, samples: samples(50) };
        let page = page(&[series]).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("&lt;sim&gt;") && page.contains("data-value=\"490\">490<") && page.contains(">50.0 MiB<"));
        for outside in ["<script", "href=", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn rates_and_thinning() {
        let all = samples(3);
        assert_eq!(rates(&all, |s| s.numbers.faults), [(0.1, 100.0), (0.2, 100.0)]);
        assert!(rates(&all[..1], |s| s.numbers.faults).is_empty());
        let many: Vec<_> = (0..10_000).map(|i| (f64::from(i), if i == 7_777 { 9.0 } else { 1.0 })).collect();
        let few = thinned(&many);
        assert!(few.len() <= POINTS && few.contains(&(7_777.0, 9.0)));
        // One sample alone still makes a page.
        assert!(page(&[Series { command: "x".into(), pid: 1, samples: samples(1) }]).is_ok());
    }
}
