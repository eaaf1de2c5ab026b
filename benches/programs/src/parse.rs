//! A compiler's front end: Rust source to a syntax tree and back (syn,
//! prettyplease). The source is this repository's own.

use crate::random::checksum;
use std::fs;
use std::path::Path;

fn sources(dir: &Path, into: &mut Vec<String>) {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(fs::read_to_string(&path).unwrap());
        }
    }
}

pub fn run(times: usize) -> u64 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut texts = Vec::new();
    for part in ["src", "tests", "examples"] {
        sources(&root.join(part), &mut texts);
    }
    let mut sum = 0;
    for _ in 0..times {
        // All trees at once, as a compiler has them.
        let trees: Vec<syn::File> = texts
            .iter()
            .map(|text| syn::parse_file(text).unwrap())
            .collect();
        for tree in &trees {
            sum = checksum(sum, prettyplease::unparse(tree).as_bytes());
        }
    }
    sum
}
