//! What is known, as text: OpenMetrics for scrapers and JSON for everything else, made from one list of families. Called by `ffi` and by
//! the metrics server. More is in it the higher the monitoring level.
#![forbid(unsafe_code)]

use super::{numbers, resources, tags};
use crate::ds::json::Quoted;
use crate::error::Class;
use crate::monitor::account::{self, Holder};
use crate::monitor::counters::{ERRORS, FALLBACKS, PAGER, RETRIES};
use crate::monitor::events::{self, EVENTS};
use crate::monitor::histogram::{self, Snapshot};
use crate::monitor::{counters, fidelity, level};
use crate::os::clock;
use crate::paged;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

/// Events in a JSON export, the latest ones.
const EVENTS_SHOWN: u64 = 256;
/// Buffers and tags shown one by one.
const BUFFERS_SHOWN: usize = 256;
/// Bounds of histograms: 2^7 to 2^35 nanoseconds, 128 ns to 34 s.
const OCTAVES: core::ops::RangeInclusive<u32> = 7..=35;

#[derive(Clone, Copy, PartialEq)]
enum Type {
    Gauge,
    Counter,
    Histogram,
}

enum Value {
    Number(f64),
    Whole(u64),
    Durations(Box<Snapshot>),
}

struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// One metric: its name without "qmem_", ending in its unit if it has one.
struct Family {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    kind: Type,
    samples: Vec<Sample>,
}

/// All that is exported.
struct Export {
    families: Vec<Family>,
}

impl Export {
    fn family(&mut self, kind: Type, name: &'static str, unit: &'static str, help: &'static str) -> &mut Vec<Sample> {
        self.families.push(Family { name, unit, help, kind, samples: Vec::new() });
        match self.families.last_mut() {
            Some(family) => &mut family.samples,
            None => unreachable!("one was pushed just now"),
        }
    }

    fn gauge(&mut self, name: &'static str, unit: &'static str, help: &'static str, value: usize) {
        self.family(Type::Gauge, name, unit, help).push(Sample::plain(value as u64));
    }

    fn counter(&mut self, name: &'static str, unit: &'static str, help: &'static str, value: usize) {
        self.family(Type::Counter, name, unit, help).push(Sample::plain(value as u64));
    }
}

impl Sample {
    fn plain(value: u64) -> Self {
        Self { labels: Vec::new(), value: Value::Whole(value) }
    }

    fn of(label: &'static str, name: impl Into<String>, value: u64) -> Self {
        Self { labels: vec![(label, name.into())], value: Value::Whole(value) }
    }

    fn number(value: f64) -> Self {
        Self { labels: Vec::new(), value: Value::Number(value) }
    }
}

fn collect() -> Export {
    let mut export = Export { families: Vec::new() };
    export.family(Type::Gauge, "build_info", "", "The version; always 1.").push(Sample::of(
        "version",
        env!("CARGO_PKG_VERSION"),
        1,
    ));
    export.gauge("monitoring_level", "", "0 none, 1 counters, 2 histograms and events too.", level::get());
    memory(&mut export);
    failures(&mut export);
    if level::basic() {
        pager(&mut export);
        by_tag(&mut export);
        by_resource(&mut export);
    }
    if level::detailed() {
        for (name, help, histogram) in histogram::ALL {
            let name = match name {
                "fault" => "fault_duration_seconds",
                "eviction" => "eviction_duration_seconds",
                "swap_io" => "swap_io_duration_seconds",
                _ => "allocation_duration_seconds",
            };
            let value = Value::Durations(Box::new(histogram.snapshot()));
            export.family(Type::Histogram, name, "seconds", help).push(Sample { labels: Vec::new(), value });
        }
        by_buffer(&mut export);
        export.counter("events", "", "Events noted, kept or not.", EVENTS.next() as usize);
    }
    export
}

fn memory(export: &mut Export) {
    let now = numbers::now();
    let pages = now.paged;
    export.gauge("budget_bytes", "bytes", "Bound on resident bytes; 0 where none is set.", now.budget_bytes);
    let resident = export.family(Type::Gauge, "resident_bytes", "bytes", "Bytes resident through qmem, by holder.");
    for (name, holder) in [("heap", Holder::Heap), ("frames", Holder::Frames), ("tables", Holder::Tables)] {
        resident.push(Sample::of("holder", name, account::held(holder) as u64));
    }
    export.gauge("peak_resident_bytes", "bytes", "The most that was resident.", now.peak_resident_bytes);
    export.gauge("allocated_bytes", "bytes", "Bytes of live blocks, as requested.", now.current_allocated);
    export.gauge("peak_allocated_bytes", "bytes", "The most of that.", now.peak_allocated);
    export.counter("allocated_ever_bytes", "bytes", "Bytes ever given.", now.total_allocated);
    export.counter("allocations", "", "Blocks ever given.", now.num_allocations);
    export.counter("frees", "", "Blocks taken back.", now.num_frees);
    export
        .family(Type::Gauge, "fragmentation_ratio", "ratio", "1 - live bytes / resident bytes of the heap.")
        .push(Sample::number(now.fragmentation));
    export.gauge("committed_bytes", "bytes", "Bytes granted to paged buffers by the commit rule.", account::committed());
    export.gauge("paged_logical_bytes", "bytes", "Bytes of paged buffers.", pages.logical_bytes);
    let places = export.family(Type::Gauge, "paged_bytes", "bytes", "Where the bytes of paged buffers are held.");
    for (place, bytes) in [
        ("resident", pages.resident_bytes),
        ("compressed", pages.compressed_bytes),
        ("deduplicated", pages.deduplicated_bytes),
        ("swapped", pages.swapped_bytes),
        ("pinned", pages.pinned_bytes),
    ] {
        places.push(Sample::of("place", place, bytes as u64));
    }
    export.gauge("swap_capacity_bytes", "bytes", "Bytes that the swap file may reach; 0 without one.", account::swap());
    export.counter("page_faults", "", "Page faults of paged buffers served.", pages.page_faults);
    export.counter("evictions", "", "Chunks taken out of memory.", pages.evictions);
    export.gauge("lossy_bytes", "bytes", "Bytes of chunks, as programs see them, that the lossy codec holds.", pages.lossy_bytes);
    export
        .family(Type::Gauge, "error_spent", "", "Infidelity that lossy compression has spent.")
        .push(Sample::number(now.error_spent));
    export
        .family(Type::Gauge, "error_budget", "", "Infidelity that it may spend; 0 = no bound for the process.")
        .push(Sample::number(fidelity::PROCESS.limit()));
}

fn failures(export: &mut Export) {
    let classes = [Class::Allocation, Class::Cache, Class::Resources, Class::Corruption, Class::Leak, Class::Io, Class::Device];
    let errors = export.family(Type::Counter, "errors", "", "Failures dispatched, by class.");
    for class in classes {
        errors.push(Sample::of("class", class.name(), ERRORS.get(class as usize) as u64));
    }
    export.counter("retries", "", "Retries of failed operations.", RETRIES.get());
    export.counter("fallbacks", "", "Operations saved by a fallback strategy.", FALLBACKS.get());
}

fn pager(export: &mut Export) {
    export.counter("refaults", "", "Faults on chunks that had been evicted.", counters::FAULTS.again.load(Relaxed) as usize);
    export.counter("read_ahead_hits", "", "Faults whose chunk had been read ahead.", PAGER.ahead_hits.get());
    export.counter("read_ahead_mapped", "", "Chunks mapped before they were asked for.", PAGER.ahead_mapped.get());
    export.counter("read_ahead_wasted", "", "Chunks read ahead in vain.", PAGER.ahead_wasted.get());
    export.counter("swap_read_bytes", "bytes", "Bytes read from the swap file.", PAGER.swap_read.get());
    export.counter("swap_written_bytes", "bytes", "Bytes written to the swap file.", PAGER.swap_written.get());
    let nanos = PAGER.swap_nanos.get() as f64;
    export
        .family(Type::Counter, "swap_io_seconds", "seconds", "Time of these reads and writes.")
        .push(Sample::number(nanos / 1e9));
}

fn by_tag(export: &mut Export) {
    let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
    tags::for_each(&mut |name, counted| {
        bytes.push(Sample::of("tag", name, counted.current.load(Relaxed) as u64));
        let live = counted.allocations.load(Relaxed).saturating_sub(counted.frees.load(Relaxed));
        blocks.push(Sample::of("tag", name, live as u64));
    });
    if !bytes.is_empty() {
        *export.family(Type::Gauge, "tag_allocated_bytes", "bytes", "Bytes of live blocks, by tag.") = bytes;
        *export.family(Type::Gauge, "tag_blocks", "", "Live blocks, by tag.") = blocks;
    }
}

fn by_resource(export: &mut Export) {
    let (mut used, mut capacity) = (Vec::new(), Vec::new());
    let mut number = 0;
    resources::for_each(&mut |kind, name, usage| {
        // Names need not differ, labels must.
        let labels = || {
            vec![("resource", format!("{number}")), ("kind", resources::kind_name(kind).to_owned()), ("name", name.to_owned())]
        };
        used.push(Sample { labels: labels(), value: Value::Whole(usage.used) });
        capacity.push(Sample { labels: labels(), value: Value::Whole(usage.capacity) });
        number += 1;
    });
    if number > 0 {
        *export.family(Type::Gauge, "resource_used", "", "In use, by resource.") = used;
        *export.family(Type::Gauge, "resource_capacity", "", "Quota, by resource.") = capacity;
    }
}

/// Buffers that have lost something: how much, and in how many passes.
fn lost_by_buffer(export: &mut Export, buffers: impl Iterator<Item = usize>) {
    let losses: Vec<_> = buffers
        .filter_map(|start| Some((format!("{start:#x}"), paged::loss(start as *const u8).filter(|loss| loss.total > 0.0)?)))
        .collect();
    type Pick = fn(&paged::Loss) -> f64;
    let columns: [(Type, &'static str, &'static str, Pick); 3] = [
        (Type::Gauge, "buffer_error", "Bound on the relative L2 error that lossy compression has made, by buffer.", |l| l.total),
        (Type::Gauge, "buffer_error_per_pass", "The same of one pass of evictions on average, by buffer.", |l| l.mean_pass),
        (Type::Counter, "buffer_lossy_passes", "Passes of evictions that lost something, by buffer.", |l| f64::from(l.passes)),
    ];
    for (kind, name, help, pick) in columns.into_iter().filter(|_| !losses.is_empty()) {
        let samples = losses
            .iter()
            .map(|(buffer, loss)| Sample { labels: vec![("buffer", buffer.clone())], value: Sample::number(pick(loss)).value });
        *export.family(kind, name, "", help) = samples.collect();
    }
}

fn by_buffer(export: &mut Export) {
    let mut found: Vec<(usize, paged::PagedStats)> = Vec::new();
    paged::for_each_region(&mut |region| {
        if let Some(stats) = paged::region_stats(region.start) {
            found.push((region.start as usize, stats));
        }
    });
    found.sort_by_key(|(start, stats)| (core::cmp::Reverse(stats.logical_bytes), *start));
    found.truncate(BUFFERS_SHOWN);
    if found.is_empty() {
        return;
    }
    type Pick = fn(&paged::PagedStats) -> usize;
    let columns: [(Type, &'static str, &'static str, &'static str, Pick); 6] = [
        (Type::Gauge, "buffer_logical_bytes", "bytes", "Size, by buffer; the largest 256.", |s| s.logical_bytes),
        (Type::Gauge, "buffer_resident_bytes", "bytes", "Resident bytes, by buffer.", |s| s.resident_bytes),
        (Type::Gauge, "buffer_compressed_bytes", "bytes", "Compressed bytes in memory, by buffer.", |s| s.compressed_bytes),
        (Type::Gauge, "buffer_swapped_bytes", "bytes", "Bytes in the swap file, by buffer.", |s| s.swapped_bytes),
        (Type::Counter, "buffer_page_faults", "", "Faults served, by buffer.", |s| s.page_faults),
        (Type::Counter, "buffer_evictions", "", "Chunks taken out of memory, by buffer.", |s| s.evictions),
    ];
    lost_by_buffer(export, found.iter().map(|(start, _)| *start));
    for (kind, name, unit, help, pick) in columns {
        let samples = found.iter().map(|(start, stats)| Sample::of("buffer", format!("{start:#x}"), pick(stats) as u64));
        *export.family(kind, name, unit, help) = samples.collect();
    }
}

/// Writing to a String does not fail.
macro_rules! put {
    ($to:expr, $($arg:tt)*) => { let _ = write!($to, $($arg)*); };
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(sample: &Sample, more: Option<&str>) -> String {
    let mut all: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    all.extend(more.map(|le| format!("le=\"{le}\"")));
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// The text that OpenMetrics 1.0 describes (application/openmetrics-text).
pub fn openmetrics() -> String {
    let mut text = String::new();
    for Family { name, unit, help, kind, samples } in collect().families {
        let type_name = match kind {
            Type::Gauge => "gauge",
            Type::Counter => "counter",
            Type::Histogram => "histogram",
        };
        put!(text, "# TYPE qmem_{name} {type_name}\n");
        if !unit.is_empty() {
            put!(text, "# UNIT qmem_{name} {unit}\n");
        }
        put!(text, "# HELP qmem_{name} {}\n", escaped(help));
        let suffix = if kind == Type::Counter { "_total" } else { "" };
        for sample in &samples {
            match &sample.value {
                Value::Whole(value) => {
                    put!(text, "qmem_{name}{suffix}{} {value}\n", labels(sample, None));
                }
                Value::Number(value) => {
                    put!(text, "qmem_{name}{suffix}{} {value}\n", labels(sample, None));
                }
                Value::Durations(durations) => {
                    for octave in OCTAVES {
                        let bound = (1u64 << octave) as f64 / 1e9;
                        put!(
                            text,
                            "qmem_{name}_bucket{} {}\n",
                            labels(sample, Some(&format!("{bound}"))),
                            durations.below(octave)
                        );
                    }
                    put!(text, "qmem_{name}_bucket{} {}\n", labels(sample, Some("+Inf")), durations.count);
                    put!(text, "qmem_{name}_count{} {}\n", labels(sample, None), durations.count);
                    put!(text, "qmem_{name}_sum{} {}\n", labels(sample, None), durations.sum as f64 / 1e9);
                }
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

fn json_number(value: f64) -> String {
    if value.is_finite() { format!("{value}") } else { "null".to_owned() }
}

fn json_sample(text: &mut String, sample: &Sample) {
    text.push('{');
    if !sample.labels.is_empty() {
        let all: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{}:{}", Quoted(name), Quoted(value))).collect();
        put!(text, "\"labels\":{{{}}},", all.join(","));
    }
    match &sample.value {
        Value::Whole(value) => {
            put!(text, "\"value\":{value}}}");
        }
        Value::Number(value) => {
            put!(text, "\"value\":{}}}", json_number(*value));
        }
        Value::Durations(d) => {
            put!(
                text,
                "\"count\":{},\"sum_ns\":{},\"max_ns\":{},\"p50_ns\":{},\"p90_ns\":{},\"p99_ns\":{}}}",
                d.count,
                d.sum,
                d.most,
                d.quantile(0.5),
                d.quantile(0.9),
                d.quantile(0.99)
            );
        }
    }
}

/// The same as a JSON object: a time, "metrics" by name, and from the level DETAILED on the latest "events".
pub fn json() -> String {
    let mut text = String::new();
    put!(text, "{{\"timestamp_ns\":{},\"process\":{},\"metrics\":{{", clock::wall(), clock::process());
    for (n, family) in collect().families.iter().enumerate() {
        put!(text, "{}\"qmem_{}\":[", if n == 0 { "" } else { "," }, family.name);
        for (n, sample) in family.samples.iter().enumerate() {
            text.push_str(if n == 0 { "" } else { "," });
            json_sample(&mut text, sample);
        }
        text.push(']');
    }
    text.push_str("},\"events\":[");
    let mut first = true;
    if level::detailed() {
        EVENTS.since(EVENTS.next().saturating_sub(EVENTS_SHOWN), &mut |event| {
            let kind = events::NAMES.get(event.kind as usize).copied().unwrap_or("unknown");
            put!(
                text,
                "{}{{\"number\":{},\"time_ns\":{},\"kind\":\"{kind}\",\"thread\":{},\"subject\":{},\"amount\":{}}}",
                if first { "" } else { "," },
                event.number,
                event.time,
                event.thread,
                event.subject,
                event.amount
            );
            first = false;
            true
        });
    }
    text.push_str("]}\n");
    text
}
