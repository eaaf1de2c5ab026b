//! What `docs/VERIFICATION.md` names is there: every test, every script, every
//! step of the gate, every limitation. And what it says of all tests of the
//! process-wide heap holds: they know that it is installed, and take turns.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// The page's code spans, wherever they stand.
fn spans(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The file and the function of a span that names a test: `src/a/b.rs::works`,
/// or `a::works` for the test in `tests/a.rs`.
fn test_of(span: &str) -> Option<(PathBuf, &str)> {
    let (file, name) = span.split_once("::")?;
    if !is_name(name) {
        return None;
    }
    if file.ends_with(".rs") {
        return Some((file.into(), name));
    }
    let is_test_binary = is_name(file) && file.chars().all(|c| !c.is_ascii_uppercase());
    is_test_binary.then(|| (format!("tests/{file}.rs").into(), name))
}

/// Whether a source has a test of this name.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let opening = format!("fn {name}(");
    let is_opening = |line: &str| line.trim_start_matches("async ").starts_with(&opening);
    lines.iter().enumerate().any(|(at, line)| {
        // Its attributes, up to whatever comes before them.
        is_opening(line)
            && lines[..at]
                .iter()
                .rev()
                .take_while(|line| !line.is_empty() && !line.ends_with('}'))
                .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

/// Runs of white space and the marks of comments made one space.
fn flat(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| *word != "//!");
    words.collect::<Vec<_>>().join(" ")
}

/// What the page names and the project does not have.
fn missing(page: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for span in spans(page) {
        if let Some((file, name)) = test_of(span)
            && !read(&file).is_some_and(|source| has_test(&source, name))
            // The package has no server.
            && (!file.starts_with("examples/server") || root().join("examples/server").exists())
        {
            missing.push(span.to_string());
        }
        // The package has neither scripts nor the gate.
        let command = span.split_whitespace().find(|word| !word.contains('='));
        match command {
            Some(script)
                if script.starts_with("scripts/")
                    && root().join("scripts").exists()
                    && !root().join(script).exists() =>
            {
                missing.push(span.to_string());
            }
            Some(".ci/run") => {
                if let Some(gate) = read(".ci/run") {
                    let words = span.split_whitespace().skip(1);
                    let steps = words.filter(|word| !word.starts_with('-'));
                    let unknown =
                        steps.filter(|step| !gate.contains(&format!("\nstep_{step}() {{")));
                    missing.extend(unknown.map(|step| format!(".ci/run {step}")));
                }
            }
            _ => {}
        }
    }
    let limitations = flat(&read("src/docs/limitations.rs").unwrap());
    let quotes = page.split("limitations: \"").skip(1);
    for quote in quotes.filter_map(|rest| rest.split_once('"')) {
        if !limitations.contains(&flat(quote.0)) {
            missing.push(format!("limitations: \"{}\"", quote.0));
        }
    }
    missing
}

#[test]
fn whatever_the_page_names_is_there() {
    let page = read("docs/VERIFICATION.md").unwrap();
    assert!(spans(&page).filter_map(test_of).count() > 100);
    assert_eq!(missing(&page), Vec::<String>::new());
}

#[test]
fn whatever_is_not_there_is_found_out() {
    let page = "`verification::whatever_the_page_names_is_there` \
        `verification::has_test` `no_such_file::works` `src/lib.rs::works` \
        `Client::run` limitations: \"What is not charged\" limitations: \"no such words\"";
    let found = missing(page);
    assert_eq!(
        found,
        [
            "verification::has_test",
            "no_such_file::works",
            "src/lib.rs::works",
            "limitations: \"no such words\"",
        ]
    );
}

/// What each tool of `scripts/sanitizers.sh` runs, by the script.
fn watched(script: &str) -> [Vec<&str>; 2] {
    let address = script.split("--test ").skip(1);
    let address = address.filter_map(|rest| rest.split_whitespace().next());
    // The other tool's are a variable there.
    let address = address.filter(|name| is_name(name));
    let memcheck = script.split_once("for name in ").unwrap().1;
    let memcheck = memcheck.split_once(';').unwrap().0;
    [address.collect(), memcheck.split_whitespace().collect()]
}

#[test]
fn the_tests_under_each_sanitizer_are_those_of_its_script() {
    let Some(script) = read("scripts/sanitizers.sh") else {
        return;
    };
    let page = read("docs/VERIFICATION.md").unwrap();
    let row = page.split_once("AddressSanitizer: `").unwrap().1;
    let (address, rest) = row.split_once("memcheck: ").unwrap();
    let memcheck = rest.split_once("; no report").unwrap().0;
    let address = format!("`{address}");
    let named = [&*address, memcheck].map(|part| spans(part).collect::<Vec<_>>());
    assert_eq!(named, watched(&script));
}

/// A test binary's source, with the modules of `tests` that it takes in.
fn with_modules(source: &str) -> String {
    let mut whole = source.to_string();
    for line in source.lines() {
        if let Some(module) = line.strip_prefix("mod ").and_then(|m| m.strip_suffix(';')) {
            let paths = [
                format!("tests/{module}/mod.rs"),
                format!("tests/support/{module}.rs"),
            ];
            whole.extend(paths.iter().filter_map(read));
        }
        if let Some(module) = line.strip_prefix("use support::") {
            let module = module.split([':', ';', '{']).next().unwrap();
            whole.extend(read(format!("tests/support/{module}.rs")));
        }
    }
    whole
}

/// Pitfalls 21 and 22: a test that is not on the heap that it is about, and
/// tests of one heap that disturb each other.
#[test]
fn tests_of_the_process_heap_know_that_it_is_theirs_and_take_turns() {
    let mut checked = 0;
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let whole = with_modules(&source);
        if !whole.contains("\n#[global_allocator]\n") {
            continue;
        }
        checked += 1;
        assert!(
            whole.contains("is_installed()"),
            "{}: is the heap there?",
            path.display()
        );
        let tests = source.matches("#[test]").count() + source.matches("#[tokio::test").count();
        // Cases in processes of their own need no turns.
        let apart = whole.contains("current_exe()");
        assert!(
            tests < 2 || apart || whole.contains("serial"),
            "{}: tests of one heap without turns",
            path.display()
        );
    }
    assert!(checked > 30, "{checked}");
}
