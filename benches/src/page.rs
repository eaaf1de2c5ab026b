//! Sections of `BENCHMARKS.md` that are measured by themselves and stay when
//! the rest of the page is written anew, and the README's one of that kind.

use std::path::Path;
use std::{fs, io};

const PAGE: &str = "BENCHMARKS.md";

fn marks(name: &str) -> (String, String) {
    (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->\n"),
    )
}

fn find(page: &str, name: &str) -> Option<std::ops::Range<usize>> {
    let (first, last) = marks(name);
    let from = page.find(&first)?;
    let len = page[from..].find(&last)?;
    Some(from..from + len + last.len())
}

/// The section `name` of the page below `root`, with its marks: as it is now,
/// or empty.
pub fn kept(root: &Path, name: &str) -> String {
    let page = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    find(&page, name).map_or_else(|| wrapped(name, ""), |range| page[range].to_owned())
}

fn wrapped(name: &str, text: &str) -> String {
    let (first, last) = marks(name);
    format!("{first}{text}{last}")
}

/// Replaces the section `name` of the page below `root`; appends it if there
/// is none.
pub fn replace(root: &Path, name: &str, text: &str) -> io::Result<()> {
    replace_in(&root.join(PAGE), name, text)
}

/// The same in any file.
pub fn replace_in(path: &Path, name: &str, text: &str) -> io::Result<()> {
    let mut page = fs::read_to_string(path)?;
    let section = wrapped(name, text);
    match find(&page, name) {
        Some(range) => page.replace_range(range, &section),
        None => page.push_str(&format!("\n{section}")),
    }
    fs::write(path, page)
}

/// Whether a goal was met, as the tables say it.
pub fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "within noise",
    }
}

/// The machine's load average over a minute.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("?").to_owned()
}
