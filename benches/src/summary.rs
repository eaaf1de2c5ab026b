//! What the README says of the costs, from the tables of `BENCHMARKS.md`.

use crate::page;
use std::path::Path;
use std::{fs, io};

const PAIR: &str = "alloc + free, 64 bytes";
const SCOPE: &str = "enter + leave a scope, ";
const MEAN: &str = "**geometric mean**";

/// Rewrites the README's paragraph from the page as it is now.
pub fn write(root: &Path) -> io::Result<()> {
    let text = of(&fs::read_to_string(root.join("BENCHMARKS.md"))?);
    page::replace_in(&root.join("README.md"), "summary", &text)
}

/// A sentence a line; what has not been measured has none.
fn of(page: &str) -> String {
    let sentences = [pairs(page), scopes(page), programs(page)];
    sentences.into_iter().flatten().collect()
}

/// The cells of each row of a table whose first one passes.
fn rows<'page>(page: &'page str, is_one: impl Fn(&str) -> bool) -> Vec<Vec<&'page str>> {
    let cells = |line: &'page str| -> Vec<&str> {
        let inside = line.strip_prefix("| ").and_then(|l| l.strip_suffix('|'));
        let cells = inside.into_iter().flat_map(|inside| inside.split('|'));
        cells.map(str::trim).collect()
    };
    let all = page.lines().map(cells);
    all.filter(|row| row.first().is_some_and(|first| is_one(first)))
        .collect()
}

/// What a cell begins with.
fn number(cell: &str) -> Option<f64> {
    cell.split([' ', ',']).next()?.parse().ok()
}

fn ends(values: impl Iterator<Item = Option<f64>>) -> Option<(f64, f64)> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    let low = values.iter().copied().reduce(f64::min)?;
    Some((low, values.into_iter().reduce(f64::max)?))
}

fn pairs(page: &str) -> Option<String> {
    let rows = rows(page, |name| name == PAIR);
    let added = rows
        .iter()
        .map(|row| Some(number(row.get(3)?)? - number(row.get(2)?)?));
    let added = ends(added)?;
    let ratio = ends(rows.iter().map(|row| number(row.get(4)?)))?;
    let peers = rows.iter().map(|row| {
        let (_, peer) = row.get(7)?.split_once("shared atomics ")?;
        number(peer)
    });
    let peers = ends(peers)?;
    Some(format!(
        "An allocation of 64 bytes and its free take {:.1} to {:.1} ns more than on the bare\n\
         allocator, {:.3} to {:.3} times its time; a model of the usual design, shared atomics, {:.1} to\n\
         {:.1} times.\n",
        added.0, added.1, ratio.0, ratio.1, peers.0, peers.1
    ))
}

fn scopes(page: &str) -> Option<String> {
    let rows = rows(page, |name| {
        name.starts_with(SCOPE) && name.ends_with("in turn")
    });
    let (low, high) = ends(rows.iter().map(|row| number(row.get(1)?)))?;
    Some(format!(
        "To enter a scope and leave it takes {low:.1} to {high:.1} ns.\n"
    ))
}

fn programs(page: &str) -> Option<String> {
    let (_, section) = page.split_once("<!-- programs -->")?;
    let section = section.split_once("<!-- end of programs -->")?.0;
    let programs = rows(section, |name| name.contains(": "));
    let mut names: Vec<&str> = programs.iter().map(|row| row[0]).collect();
    names.dedup();
    let names = names
        .iter()
        .filter_map(|name| Some(name.split_once(':')?.0));
    let names: Vec<&str> = names.collect();
    let percent = |row: &[&str], cell: usize| Some((number(row.get(cell)?)? - 1.0) * 100.0);
    let instructions = ends(programs.iter().map(|row| percent(row, 8)))?;
    let means = rows(section, |name| name == MEAN);
    let mean = |cell| {
        let of_each = means.iter().map(|row| {
            let inner = row.get(1)?;
            Some(format!("{:.1} % on {inner}", percent(row, cell)?))
        });
        of_each
            .collect::<Option<Vec<_>>>()
            .map(|all| all.join(", "))
    };
    Some(format!(
        "{} whole programs ({}) execute {:.1} to {:.1} %\n\
         more instructions.\n\
         Their means are {} for instructions,\n{} for processor time, and\n{} for the peak of \
         resident memory.\n",
        names.len(),
        names.join(", "),
        instructions.0,
        instructions.1,
        mean(8)?,
        mean(5)?,
        mean(11)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../BENCHMARKS.md");

    #[test]
    fn the_readme_says_what_the_page_says() {
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("<!-- summary -->\n").unwrap();
        let (summary, _) = section.split_once("<!-- end of summary -->").unwrap();
        assert_eq!(summary, of(PAGE));
    }

    #[test]
    fn each_figure_is_a_measured_one() {
        let page = "\
            | alloc + free, 64 bytes | glibc | 5.00 ns a pair | 7.00 ns a pair | 1.400 ± 0.011 | ≤ 1.15 | **no** | shared atomics 5.32, cap 2.88 |\n\
            | alloc + free, 64 bytes | mimalloc | 4.00 ns a pair | 5.00 ns a pair | 1.250 ± 0.1 | ≤ 1.25 | yes | cap 1.00, shared atomics 6.33 |\n\
            | alloc + free, 64 bytes, size constant and inlined | glibc | 1.00 ns | 9.00 ns | 9.000 | | | shared atomics 99.0 |\n\
            | enter + leave a scope, 64 clients in turn | 2.14 ± 0.01 ns | ≤ 2 | **no** |\n\
            <!-- programs -->\n\
            | a: first | glibc | 1 s | 1 s | 1.2 | 1.3 ± 0.1 | ≤ 1.05 | yes | 1.107 | 1 MiB | 1 MiB | 1.083 ± 0.1 | ≤ 1.03 | **no** | 1 million |\n\
            | b: second | glibc | 1 s | 1 s | 1.2 | 1.3 ± 0.1 | ≤ 1.05 | yes | 1.004 | 1 MiB | 1 MiB | 1.083 ± 0.1 | ≤ 1.03 | **no** | 1 million |\n\
            | **geometric mean** | glibc | | | 1.067 | 1.063 | ≤ 1.02 | **no** | 1.054 | | | 0.980 | ≤ 1.03 | yes | |\n\
            <!-- end of programs -->\n";
        assert_eq!(
            of(page),
            "An allocation of 64 bytes and its free take 1.0 to 2.0 ns more than on the bare\n\
             allocator, 1.250 to 1.400 times its time; a model of the usual design, shared atomics, 5.3 to\n\
             6.3 times.\n\
             To enter a scope and leave it takes 2.1 to 2.1 ns.\n\
             2 whole programs (a, b) execute 0.4 to 10.7 %\n\
             more instructions.\n\
             Their means are 5.4 % on glibc for instructions,\n6.3 % on glibc for processor time, \
             and\n-2.0 % on glibc for the peak of resident memory.\n"
        );
    }

    #[test]
    fn what_was_not_measured_has_no_sentence() {
        assert_eq!(of(""), "");
        let (before, _) = PAGE.split_once("<!-- programs -->").unwrap();
        assert_eq!(of(before).matches(".\n").count(), 2);
    }

    #[test]
    fn the_page_ends_with_the_notes() {
        assert!(PAGE.ends_with(include_str!("../NOTES.md")));
    }
}
