//! The rules of the source tree, checked by reading it (docs/architecture.md, CONTRIBUTING.md): floors, one place for metrics
//! and bounds, no panics that a peer could cause, short files with one job, documents that name only what exists.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines (CONTRIBUTING.md).
const LINES_MAX: usize = 600;

/// The crate's modules and their floors (layers). A module uses only lower floors.
const FLOORS: [(&str, u8); 15] = [
    ("wire", 1),
    ("congestion", 1),
    ("random", 1),
    ("store", 2),
    ("auth", 2),
    ("observe", 2),
    ("link", 2),
    ("hub", 3),
    ("session", 4),
    ("transport", 5),
    ("client", 5),
    ("server", 6),
    ("cli", 7),
    ("simulation", 7),
    ("main", 8),
];
/// Modules outside the floors: every floor of the server may use them, and they use at most `wire` and each other. `planted`
/// and `skip` are for tests only.
const CELLAR: [&str; 5] = ["limits", "clock", "config", "planted", "skip"];

/// A Rust file of the crate.
struct Source {
    /// Path from the root, as in `src/session/chat.rs`.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap();
        inner.split(['/', '.']).next().unwrap()
    }

    /// Whether `super` means the crate's root in this file.
    fn is_module_root(&self) -> bool {
        let module = self.module();
        self.path == format!("src/{module}.rs") || self.path == format!("src/{module}/mod.rs")
    }

    /// Whether the whole file is compiled for tests only: its module, or one that contains it, is declared under
    /// `#[cfg(test)]`.
    fn is_test_only(&self, sources: &[Source]) -> bool {
        let is_part = |module: PathBuf| {
            let path = Path::new(&self.path);
            path == module.with_extension("rs") || path.starts_with(module)
        };
        sources.iter().any(|source| source.test_modules().any(is_part))
    }

    /// Paths, without `.rs`, of the modules that this file declares for tests only.
    fn test_modules(&self) -> impl Iterator<Item = PathBuf> {
        let path = Path::new(&self.path);
        let folder = if path.ends_with("mod.rs") || path.ends_with("lib.rs") {
            path.parent().unwrap().to_owned()
        } else {
            path.with_extension("")
        };
        self.text.split("#[cfg(test)]\n").skip(1).filter_map(move |item| {
            let declaration = item.lines().next()?.strip_suffix(';')?;
            let (_, name) = declaration.split_once("mod ")?;
            Some(folder.join(name))
        })
    }

    /// Numbered lines of code, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Numbered lines of code before the test module at the end of the file.
    fn served_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_tests = |line: &str| line.trim_end() == "#[cfg(test)]";
        let tests_begin = self.text.lines().zip(self.text.lines().skip(1)).position(|(attribute, item)| {
            is_tests(attribute) && item.starts_with("mod ") && item.trim_end().ends_with('{')
        });
        self.code().take_while(move |(number, _)| tests_begin.is_none_or(|begin| *number <= begin))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path from the root and text of all files under a folder whose names have one of these endings, sorted.
fn files(folder: &str, ends: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let sources: Vec<_> = files("src", &[".rs"]).into_iter().map(|(path, text)| Source { path, text }).collect();
    assert!(sources.len() > 30, "the sources are where this test looks for them");
    sources
}

/// Documents that refer to the code.
fn documents() -> Vec<(String, String)> {
    let mut documents = files("docs", &[".md"]);
    documents.extend(files("grafana", &[".md", ".json", ".yml", ".yaml", ".rules"]));
    for name in ["README.md", "CONTRIBUTING.md", "certs/README.md"] {
        documents.extend(fs::read_to_string(root().join(name)).ok().map(|text| (name.to_owned(), text)));
    }
    documents
}

/// Words of a text that begin with `begin`. A word consists of letters, digits and the characters `besides`.
fn words<'a>(text: &'a str, begin: &'a str, besides: &'a [char]) -> impl Iterator<Item = &'a str> {
    let part_of_word = move |c: char| c.is_ascii_alphanumeric() || besides.contains(&c);
    text.match_indices(begin).filter_map(move |(at, _)| {
        let before = &text[..at];
        let inside_another = before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            // After a slash the word is part of a longer path, unless the slash belongs to `./` or `../`.
            || before.ends_with('/') && !before.ends_with("./");
        let word = &text[at..];
        let end = word.find(|c| !part_of_word(c)).unwrap_or(word.len());
        (!inside_another).then_some(word[..end].trim_end_matches(besides))
    })
}

fn report(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The crate's modules that a line of code names.
fn named_modules<'a>(source: &Source, line: &'a str) -> Vec<&'a str> {
    let mut paths: Vec<_> =
        words(line, "crate::", &['_', ':']).filter_map(|path| path.strip_prefix("crate::")).collect();
    if source.is_module_root() {
        paths.extend(line.strip_prefix("use super::"));
    }
    if let Some((_, list)) = line.split_once("crate::{") {
        let (list, _) = list.split_once('}').unwrap_or_else(|| panic!("{}: a list over several lines", source.path));
        paths.extend(list.split(',').map(str::trim));
    }
    let end_of_name = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    paths.into_iter().filter_map(|path| path.split(end_of_name).next()).collect()
}

fn may_use(user: &str, used: &str) -> bool {
    let floor = |module: &str| FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor);
    match (user, used) {
        _ if user == used => true,
        ("lib", _) => true,
        ("main", _) => used == "cli",
        ("wire" | "congestion" | "random" | "limits" | "clock", _) => false,
        ("config", _) => ["wire", "limits"].contains(&used),
        ("client", _) => ["wire", "congestion", "random"].contains(&used),
        _ if CELLAR.contains(&used) => true,
        _ => floor(user).zip(floor(used)).is_some_and(|(user, used)| used < user),
    }
}

#[test]
fn a_floor_uses_only_floors_below_it() {
    let mut found = Vec::new();
    for source in sources() {
        let module = source.module();
        let known = FLOORS.iter().any(|(name, _)| *name == module) || CELLAR.contains(&module) || module == "lib";
        assert!(known, "{}: on which floor is it?", source.path);
        for (number, line) in source.code() {
            for used in named_modules(&source, line) {
                if !may_use(module, used) {
                    found.push(format!("{}:{number}: {module} uses {used}", source.path));
                }
            }
        }
    }
    report("floors", &found);
}

#[test]
fn this_test_would_see_a_floor_that_reaches_up() {
    let source = |path: &str| Source { path: path.to_owned(), text: String::new() };
    let inner = source("src/session/chat.rs");
    assert_eq!(named_modules(&inner, "use crate::server::Server;"), ["server"]);
    assert_eq!(named_modules(&inner, "    fn a(b: crate::wire::Eid, c: &crate::hub::Hub) {}"), ["wire", "hub"]);
    assert_eq!(named_modules(&inner, "use crate::{limits, wire::Eid};"), ["limits", "wire"]);
    assert_eq!(named_modules(&inner, "use super::fault::Fault;"), [""; 0]);
    assert_eq!(named_modules(&source("src/hub/mod.rs"), "use super::session::Session;"), ["session"]);
    assert!(!may_use("session", "server") && !may_use("store", "auth") && !may_use("client", "limits"));
    assert!(may_use("session", "hub") && may_use("store", "limits") && may_use("server", "config"));
}

#[test]
fn every_file_says_its_one_job_first_and_stays_one_room() {
    let mut found = Vec::new();
    let all = ["src", "tests", "benches"].iter().flat_map(|folder| files(folder, &[".rs"]));
    for (path, text) in all {
        if !text.starts_with("//! ") {
            found.push(format!("{path}: the first line does not say what it is in charge of"));
        }
        if text.lines().count() > LINES_MAX {
            found.push(format!("{path}: {} lines; what second job moved in?", text.lines().count()));
        }
    }
    report("rooms", &found);
}

#[test]
fn nothing_left_behind_by_tools_is_among_the_sources() {
    let folders = ["src", "tests", "benches", "docs", "proto", "grafana"];
    let left: Vec<_> = folders.iter().flat_map(|folder| files(folder, &[".orig", ".rej", ".bak", ".swp"])).collect();
    let left: Vec<_> = left.into_iter().map(|(path, _)| path).collect();
    report("left behind", &left);
}

#[test]
fn nothing_that_is_served_unwraps_or_is_left_for_later() {
    let sources = sources();
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test_only(&sources)) {
        for (number, line) in source.served_code() {
            for forbidden in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(forbidden) {
                    found.push(format!("{}:{number}: {forbidden}", source.path));
                }
            }
        }
        for (index, line) in source.text.lines().enumerate() {
            if ["TODO", "FIXME", "XXX"].iter().any(|mark| words(line, mark, &[]).any(|word| word == *mark)) {
                found.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    report("left for later", &found);
}

/// Prefixes of metric names.
const METRIC_PREFIXES: [&str; 2] = ["bimip_", "process_"];

/// Metric names in the string literals of `src/observe`, where metrics are declared.
fn declared_metrics(sources: &[Source]) -> BTreeSet<&str> {
    let observe = sources.iter().filter(|source| source.module() == "observe");
    let declared: BTreeSet<_> = observe
        .flat_map(|source| source.code())
        .flat_map(|(_, line)| {
            let names = METRIC_PREFIXES.iter().flat_map(move |prefix| words(line, prefix, &['_']));
            names.filter(move |name| line.contains(&format!("\"{name}\"")))
        })
        .collect();
    assert!(declared.len() > 10, "metrics are declared where this test looks for them");
    declared
}

#[test]
fn metrics_are_declared_in_one_place() {
    let sources = sources();
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.module() != "observe" && !source.is_test_only(&sources)) {
        for (number, line) in source.served_code().filter(|(_, line)| line.contains("\"bimip_")) {
            found.push(format!("{}:{number}: {}", source.path, line.trim()));
        }
    }
    report("metric names outside src/observe", &found);
}

/// Modules whose bounds are not in `src/limits.rs`: `wire` has the protocol's, which both sides keep, and the others have a
/// `limits.rs` of their own. What is for tests only has no bounds.
const BOUNDED_ELSEWHERE: [&str; 5] = ["wire", "client", "cli", "link", "simulation"];
/// Numbers that are no choice of the server, or that make sense only beside the code that uses them.
const NO_BOUNDS: [(&str, &str); 12] = [
    // What development certificates look like.
    ("src/auth/dev.rs", "DAY"),
    ("src/auth/dev.rs", "CA_VALID"),
    ("src/auth/dev.rs", "CERTIFICATE_VALID"),
    ("src/auth/dev.rs", "RENEW_BEFORE"),
    ("src/auth/dev.rs", "CLOCK_SLACK"),
    // What the verifier, the system, and QUIC with its draft for load balancers allow.
    ("src/auth/keys.rs", "BITS_MAX"),
    ("src/store/background.rs", "NICE_MAX"),
    ("src/store/background.rs", "SLICE"),
    ("src/config/lb.rs", "BYTES_MAX"),
    ("src/config/check.rs", "LB_BYTES_MAX"),
    ("src/transport/quic_lb.rs", "CID_BYTES_MAX"),
    ("src/transport/quic_lb.rs", "HALF_BYTES_MAX"),
];

/// The bound that a line of code declares: a time, or a constant that is called a maximum.
fn declared_bound(line: &str) -> Option<&str> {
    let (before, declared) = line.split_once("const ")?;
    let (name, after) = declared.split_once(':')?;
    let kind = after.split('=').next()?.trim();
    let is_item = before.trim().is_empty() || before.trim_start().starts_with("pub");
    (is_item && (kind.ends_with("Duration") || name.ends_with("_MAX"))).then_some(name)
}

#[test]
fn bounds_are_declared_in_one_place() {
    let sources = sources();
    let served = sources.iter().filter(|source| {
        let module = source.module();
        module != "limits" && !BOUNDED_ELSEWHERE.contains(&module) && !source.is_test_only(&sources)
    });
    let declared = |source: &Source| {
        let lines = source.served_code().filter_map(|(number, line)| Some((number, declared_bound(line)?.to_owned())));
        lines.map(|(number, name)| (source.path.clone(), number, name)).collect::<Vec<_>>()
    };
    let declared: Vec<_> = served.flat_map(declared).collect();
    let known = |path: &str, name: &str| NO_BOUNDS.contains(&(path, name));
    let outside = declared.iter().filter(|(path, _, name)| !known(path, name));
    let outside: Vec<_> = outside.map(|(path, number, name)| format!("{path}:{number}: {name}")).collect();
    report("bounds outside src/limits.rs", &outside);
    let gone = NO_BOUNDS
        .iter()
        .filter(|known| !declared.iter().any(|(path, _, name)| (path.as_str(), name.as_str()) == **known));
    report("exceptions that are gone", &gone.map(|(path, name)| format!("{path}: {name}")).collect::<Vec<_>>());
    assert_eq!(declared_bound("    pub(super) const A: std::time::Duration = B;"), Some("A"));
    assert_eq!(declared_bound("const FILES_MAX: usize = 1;"), Some("FILES_MAX"));
    assert_eq!(
        [declared_bound("pub const fn name(self: &A) -> Duration {"), declared_bound("const A: u8 = 1;")],
        [None; 2]
    );
}

#[test]
fn every_bound_is_used() {
    let sources = sources();
    let limits = sources.iter().find(|source| source.path == "src/limits.rs").unwrap();
    let names = limits.text.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    let names: Vec<_> = names.collect();
    assert!(names.len() > 30, "bounds are declared where this test looks for them");
    let used = |name: &str| {
        let elsewhere = sources.iter().filter(|source| source.path != limits.path);
        let by_another_bound = limits.code().filter(|(_, line)| !line.starts_with(&format!("pub const {name}:")));
        let mut lines = elsewhere.flat_map(Source::code).chain(by_another_bound);
        lines.any(|(_, line)| words(line, name, &['_']).any(|word| word == name))
    };
    let unused: Vec<_> = names.iter().filter(|name| !used(name)).map(|name| (*name).to_owned()).collect();
    report("bounds that bound nothing", &unused);
}

#[test]
fn documents_name_only_what_exists() {
    let sources = sources();
    let metrics = declared_metrics(&sources);
    let mut found = Vec::new();
    for (path, text) in documents() {
        for folder in ["src/", "tests/", "benches/", "docs/", "proto/", "grafana/"] {
            for named in words(&text, folder, &['/', '.', '_', '-', '*']) {
                // For a pattern, as in docs/decisions/NNNN-*.md, only the folder must exist.
                let named = if named.contains(['*', 'N']) { named.rsplit_once('/').unwrap().0 } else { named };
                if !exists(named) {
                    found.push(format!("{path}: {named}"));
                }
            }
        }
        for named in METRIC_PREFIXES.iter().flat_map(|prefix| words(&text, prefix, &['_'])) {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| named.strip_suffix(suffix));
            if !metrics.contains(named) && !plain.is_some_and(|plain| metrics.contains(plain)) {
                found.push(format!("{path}: {named} is no metric"));
            }
        }
    }
    report("documents that name what does not exist", &found);
}

/// An operator searches the log for what the guide says, and the guide for what the log says.
#[test]
fn the_operations_guide_lists_only_lines_that_are_logged() {
    let (sources, guide) = (sources(), fs::read_to_string(root().join("docs/operations.md")).unwrap());
    let (_, section) = guide.split_once("\n## Log\n").unwrap();
    let rows = section.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
    let messages: Vec<_> = rows.flat_map(|row| row.split(" | ").next().unwrap().split('`').step_by(2)).collect();
    assert!(messages.len() > 30, "the table is where this test looks for it");
    let logged = |message: &str| sources.iter().any(|source| source.text.contains(&format!("\"{message}\"")));
    let missing: Vec<_> = messages.iter().filter(|message| !logged(message)).map(|text| (*text).to_owned()).collect();
    report("lines of the log that nothing writes", &missing);
}

fn exists(named: &str) -> bool {
    let path: PathBuf = root().join(named);
    path.exists() || path.with_extension("rs").exists()
}
