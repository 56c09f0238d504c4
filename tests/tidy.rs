//! The rules of the house as a test: what each file may name, how it opens, how long it is. Each rule is a function from a file's
//! path and text to what it breaks, is run over the whole tree, and is shown here to find a broken example.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules and their floors, as in src/lib.rs. A module names only modules on lower floors; those of floor 0 may name each other.
const FLOORS: &[(&str, u32)] = &[
    ("config", 0),
    ("ds", 0),
    ("error", 0),
    ("os", 0),
    ("sync", 0),
    ("codec", 1),
    ("device", 1),
    ("topology", 1),
    ("monitor", 2),
    ("detect", 2),
    ("heap", 3),
    ("paged", 4),
    ("pool", 4),
    ("registry", 5),
    ("compress", 5),
    ("cache", 6),
    ("store", 7),
    ("tensor", 8),
    ("system", 9),
    ("ffi", 10),
];
/// Floors whose code runs where nothing may allocate.
const NO_ALLOCATION: &[&str] = &["heap", "monitor", "os", "ds", "codec", "paged", "pool", "registry", "sync", "error", "config"];
const LINES: usize = 600;

type Rule = fn(&str, &str) -> Vec<String>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project that people write, as (path from the root, text).
fn files() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.file_name().unwrap().to_str().unwrap();
            if matches!(name, ".git" | "target" | "build" | "Cargo.lock" | "__pycache__" | "data") {
                continue;
            }
            if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    let text = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        fs::read_to_string(&path).ok().map(|text| (name, text))
    };
    found.into_iter().filter_map(text).collect()
}

/// Runs a rule over the files that `wanted` picks; then shows that it finds the broken example and passes the good one.
fn hold(rule: Rule, wanted: fn(&str) -> bool, broken: &[(&str, &str)], good: &[(&str, &str)]) {
    for (path, text) in broken {
        assert!(!rule(path, text).is_empty(), "the rule does not see what is wrong with {path}: {text}");
    }
    for (path, text) in good {
        assert_eq!(rule(path, text), Vec::<String>::new(), "the rule is wrong about {path}: {text}");
    }
    let files = files();
    assert!(files.iter().any(|(path, _)| wanted(path)), "the rule looks at no file");
    let all: Vec<String> = files.iter().filter(|(path, _)| wanted(path)).flat_map(|(path, text)| rule(path, text)).collect();
    assert!(all.is_empty(), "\n{}\n", all.join("\n"));
}

fn is_source(path: &str) -> bool {
    path.starts_with("src/") && path.ends_with(".rs")
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn is_code(path: &str) -> bool {
    is_rust(path) || path.ends_with(".c") || path.ends_with(".h") || path.ends_with(".hpp") || path.ends_with(".cpp")
}

fn anything(_: &str) -> bool {
    true
}

/// The code of a Rust file: no comments, no contents of string literals, nothing from `#[cfg(test)] mod` on. Same line numbers.
fn code(text: &str) -> String {
    let text = match text.find("#[cfg(test)]\nmod ") {
        Some(tests) => &text[..tests],
        None => text,
    };
    let mut out = String::new();
    for line in text.lines() {
        let mut chars = line.chars().peekable();
        let mut quoted = false;
        while let Some(c) = chars.next() {
            match c {
                '/' if !quoted && chars.peek() == Some(&'/') => break,
                '\'' if !quoted && chars.peek() == Some(&'"') => {
                    chars.next(); // the character literal '"'
                }
                '\\' if quoted => {
                    chars.next();
                }
                '"' => {
                    quoted = !quoted;
                    out.push('"');
                }
                _ if quoted => {}
                c => out.push(c),
            }
        }
        out.push('\n');
    }
    out
}

fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// The modules that `crate::name` and `crate::{name, …}` name.
fn named_modules(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => names.push(word(std::mem::take(&mut item).trim_start())),
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if c != ',' || depth > 0 {
                item.push(c);
            }
        }
        names.push(word(item.trim_start()));
    }
    names
}

fn floors(path: &str, text: &str) -> Vec<String> {
    let floor = |name: &str| FLOORS.iter().find(|(module, _)| *module == name).map(|(_, floor)| *floor);
    let own = module_of(path);
    if own == "lib" {
        return Vec::new();
    }
    let Some(own_floor) = floor(own) else {
        return vec![format!("{path}: module {own} has no floor: name one in tests/tidy.rs")];
    };
    let upward = |name: &String| {
        let above = floor(name).is_some_and(|other| other > own_floor || (other == own_floor && other > 0));
        (name != own && above).then(|| format!("{path}: {own} (floor {own_floor}) names crate::{name}"))
    };
    named_modules(&code(text)).iter().filter_map(upward).collect()
}

#[test]
fn modules_name_only_lower_floors() {
    hold(
        floors,
        is_source,
        &[
            ("src/heap/mod.rs", "use crate::paged::find;"),
            ("src/heap/mod.rs", "use crate::{\n    error::Error,\n    ds::{Text, MappedArray}, registry,\n};"),
            ("src/monitor/mod.rs", "let x = crate::detect::report();"),
            ("src/attic/mod.rs", ""),
        ],
        &[
            (
                "src/heap/mod.rs",
                "use crate::{fail, error::Error, heap::classes}; // crate::paged\n#[cfg(test)]\nmod tests { use crate::ffi; }",
            ),
            ("src/os/vm.rs", "use crate::error::Error;"),
        ],
    );
}

fn border(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("src/ffi/") || path.starts_with("preload/") {
        return Vec::new();
    }
    let bad = |(n, line): (usize, &str)| {
        let callback = line.split("extern \"\" fn ").nth(1).is_some() && !path.starts_with("src/os/");
        (callback || line.contains("no_mangle")).then(|| format!("{path}:{}: C functions are defined in ffi only: {line}", n + 1))
    };
    code(text).lines().enumerate().filter_map(bad).collect()
}

#[test]
fn c_functions_are_defined_at_the_border_only() {
    hold(
        border,
        is_source,
        &[("src/system/a.rs", "pub unsafe extern \"C\" fn f() {}"), ("src/os/a.rs", "#[unsafe(no_mangle)]")],
        &[
            ("src/system/a.rs", "type F = unsafe extern \"C\" fn(usize);"),
            ("src/os/a.rs", "extern \"C\" fn on_signal() {}"),
            ("src/ffi/a.rs", "#[unsafe(no_mangle)] pub extern \"C\" fn f() {}"),
        ],
    );
}

fn opening(path: &str, text: &str) -> Vec<String> {
    let script = path.starts_with("tools/") || path.starts_with(".ci/");
    let opens = match () {
        () if is_rust(path) => text.starts_with("//! "),
        () if is_code(path) => text.starts_with("/*") || text.starts_with("//"),
        () if script && !path.ends_with(".toml") => {
            text.starts_with("#!") && text.lines().nth(1).is_some_and(|l| l.starts_with("# "))
        }
        () => true,
    };
    if opens { Vec::new() } else { vec![format!("{path}: does not open with what it is")] }
}

#[test]
fn files_open_with_what_they_are() {
    hold(
        opening,
        anything,
        &[("src/a.rs", "use core;"), ("c_tests/a.c", "#include <a.h>"), ("tools/a", "#!/bin/sh\nset -e")],
        &[("src/a.rs", "//! What.\n"), ("c_tests/a.c", "/* What. */"), ("tools/a", "#!/bin/sh\n# What.\n")],
    );
}

fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LINES { vec![format!("{path}: {lines} lines, more than {LINES}")] } else { Vec::new() }
}

/// Code that somebody writes; the generated headers are as long as the API.
fn is_written(path: &str) -> bool {
    is_code(path) && !path.starts_with("include/")
}

#[test]
fn files_are_short() {
    let long = "x\n".repeat(LINES + 1);
    hold(length, is_written, &[("src/a.rs", &long)], &[("src/a.rs", &long[2..])]);
}

fn unfinished(path: &str, text: &str) -> Vec<String> {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let bad = |(n, line): (usize, &str)| {
        let mark = marks.iter().find(|mark| line.contains(**mark) && !line.contains("XXXX"))?; // mktemp's XXXXXX is none
        Some(format!("{path}:{}: {mark}", n + 1))
    };
    text.lines().enumerate().filter_map(bad).collect()
}

#[test]
fn nothing_is_left_unfinished() {
    hold(
        unfinished,
        anything,
        &[("README.md", concat!("a\nTO", "DO: b")), ("src/a.rs", concat!("todo", "!()"))],
        &[("tools/a", "mktemp -d name.XXXXXX")],
    );
}

fn allocation(path: &str, text: &str) -> Vec<String> {
    if !NO_ALLOCATION.contains(&module_of(path)) {
        return Vec::new();
    }
    let names = [
        "std::collections",
        "std::alloc",
        "alloc::alloc",
        "Vec",
        "Box",
        "String",
        "format!",
        "vec!",
        "to_string",
        "to_owned",
        "to_vec",
        "println!",
        "eprintln!",
        "Rc",
        "Arc",
        "HashMap",
        "BTreeMap",
    ];
    let whole = |line: &str, name: &str| {
        line.match_indices(name).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + name.len()..].chars().next();
            let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !part(before) && (name.ends_with('!') || !part(after))
        })
    };
    let code = code(text);
    let bad = |(n, line): (usize, &str)| {
        let name = names.iter().find(|name| whole(line, name))?;
        Some(format!("{path}:{}: {name} allocates, and {} may not", n + 1, module_of(path)))
    };
    code.lines().enumerate().filter_map(bad).collect()
}

#[test]
fn lower_floors_do_not_allocate() {
    hold(
        allocation,
        is_source,
        &[
            ("src/heap/a.rs", "let v: Vec<u8> = x;"),
            ("src/os/a.rs", "eprintln!(\"x\")"),
            ("src/registry.rs", "use std::collections::HashMap;"),
        ],
        &[
            ("src/heap/a.rs", "// Vec\nstruct Vector; let s = \"Box\";\n#[cfg(test)]\nmod tests { fn f() -> Vec<u8> {} }"),
            ("src/system/a.rs", "let v: Vec<u8> = x;"),
        ],
    );
}

fn safety(path: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let lines: Vec<&str> = text.lines().collect();
    let bad = |(n, line): (usize, &str)| {
        let block = line.contains("unsafe {") || line.trim_start().starts_with("unsafe impl");
        let argued = lines[n.saturating_sub(8)..=n].iter().any(|line| line.contains("SAFETY:"));
        (block && !argued).then(|| format!("{path}:{}: unsafe without SAFETY", n + 1))
    };
    code.lines().enumerate().filter_map(bad).collect()
}

#[test]
fn every_unsafe_is_argued() {
    hold(
        safety,
        is_source,
        &[("src/a.rs", "fn f() {\n    unsafe { g() }\n}"), ("src/a.rs", "unsafe impl Send for X {}")],
        &[("src/a.rs", "// SAFETY: g is fine.\nunsafe { g() }"), ("src/a.rs", "/// unsafe {\nunsafe fn f() {}")],
    );
}

fn environment(path: &str, text: &str) -> Vec<String> {
    if path == "src/config.rs" {
        return Vec::new();
    }
    let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    let bad = |(n, line): (usize, &str)| {
        let reads = ["getenv(", "env::var(", "env::var_os(", "\"QMEM_"].iter().any(|name| line.contains(name));
        (reads && !line.trim_start().starts_with("//")).then(|| format!("{path}:{}: settings are read in config.rs", n + 1))
    };
    text[..tests].lines().enumerate().filter_map(bad).collect()
}

#[test]
fn settings_are_read_in_one_place() {
    hold(
        environment,
        is_source,
        &[("src/paged/a.rs", "config::environment(c\"QMEM_SWAP_DIR\")"), ("src/a.rs", "libc::getenv(x)")],
        &[("src/a.rs", "fail!(Limit, \"give QMEM_SWAP_DIR a larger disk\")"), ("src/config.rs", "c\"QMEM_BUDGET\"")],
    );
}

fn names(path: &str, _: &str) -> Vec<String> {
    let banned = ["util", "utils", "common", "helper", "helpers", "misc", "prelude", "factory"];
    let part = path.split(['/', '.']).find(|part| banned.contains(part));
    part.map(|part| format!("{path}: '{part}' says nothing about what is in it")).into_iter().collect()
}

#[test]
fn names_say_what_things_are() {
    hold(names, anything, &[("src/os/utils.rs", ""), ("common/a.c", "")], &[("src/os/vm.rs", "")]);
}

/// The project speaks of itself alone: no path of anyone's machine, no host that packages come from.
fn strangers(path: &str, text: &str) -> Vec<String> {
    let places = [
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("pypi", ".org"),
        concat!("npmjs", "."),
        concat!("crates", ".io"),
        concat!("deb.debian", ".org"),
    ];
    let bad = |(n, line): (usize, &str)| {
        let place = places.iter().find(|place| line.contains(**place))?;
        Some(format!("{path}:{}: {place}", n + 1))
    };
    text.lines().enumerate().filter_map(bad).collect()
}

#[test]
fn no_machine_paths_and_hosts() {
    let broken = concat!("see /ho", "me/me/x");
    hold(strangers, anything, &[("README.md", broken)], &[("README.md", "under src/os/ and target/release")]);
}

/// Relative links and paths in backticks of Markdown files lead somewhere.
fn links(path: &str, text: &str) -> Vec<String> {
    let here = root().join(path).parent().unwrap().to_path_buf();
    let mut bad = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let remote = link.is_empty() || link.contains("://") || link.starts_with("mailto:");
            if !remote && !here.join(link).exists() {
                bad.push(format!("{path}:{}: the link {link} leads nowhere", n + 1));
            }
        }
        let folders =
            ["src/", "tools/", "cmake/", "include/", "c_tests/", "examples_c/", "benches/", "tests/", "abi/", "preload/", "cli/"];
        for quoted in line.split('`').skip(1).step_by(2) {
            let is_path = folders.iter().any(|folder| quoted.starts_with(folder));
            let plain = quoted.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if is_path && plain && !root().join(quoted).exists() {
                bad.push(format!("{path}:{}: there is no {quoted}", n + 1));
            }
        }
    }
    bad
}

#[test]
fn markdown_leads_somewhere() {
    hold(
        links,
        |path| path.ends_with(".md"),
        &[("README.md", "[a](no/such/file.md)"), ("README.md", "in `src/no_such.rs`")],
        &[("README.md", "[a](https://example.net) [b](src/lib.rs#x) `src/lib.rs` `src/*.rs` `a b`")],
    );
}
