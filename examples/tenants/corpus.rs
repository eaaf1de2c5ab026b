//! The text to index, and an independent word about what is in it.

use crate::index::Posting;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As much text as is taken from a directory.
const TEXT_LIMIT: u64 = 128 << 20;
/// Larger files are data more often than text, and one tenant's safe points
/// are a file apart.
const FILE_LIMIT: u64 = 1 << 20;
/// What a directory must hold to be worth indexing if nobody asked for it.
const WORTHWHILE: u64 = 8 << 20;

/// Text files in a fixed order.
pub struct Corpus {
    pub root: PathBuf,
    pub files: Vec<PathBuf>,
    pub text_bytes: u64,
    pub largest_bytes: u64,
    pub skipped: Skipped,
    /// Whether the directory holds more than was taken.
    pub is_cut: bool,
}

/// Files that are not part of the corpus, and why.
#[derive(Default)]
pub struct Skipped {
    pub not_text: usize,
    pub too_large: usize,
    pub unreadable: usize,
}

/// Why there is nothing to index.
#[derive(Debug)]
pub enum NoCorpus {
    NotADirectory(PathBuf),
    NoText(PathBuf),
}

impl fmt::Display for NoCorpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoCorpus::NotADirectory(path) => {
                write!(f, "{} is not a directory that can be read", path.display())
            }
            NoCorpus::NoText(path) => write!(
                f,
                "{} holds no text: files of UTF-8 with at least one word, up to {} KiB each",
                path.display(),
                FILE_LIMIT >> 10
            ),
        }
    }
}

impl std::error::Error for NoCorpus {}

impl Corpus {
    /// Something that every machine with Rust has: its documentation, else the
    /// sources of this crate's dependencies, else this crate itself.
    pub fn of_this_machine() -> Result<Corpus, NoCorpus> {
        let places = [
            rust_docs(),
            registry(),
            Some(env!("CARGO_MANIFEST_DIR").into()),
        ];
        let mut best = Err(NoCorpus::NotADirectory(env!("CARGO_MANIFEST_DIR").into()));
        for place in places.into_iter().flatten() {
            let Ok(corpus) = Corpus::under(&place) else {
                continue;
            };
            if corpus.text_bytes >= WORTHWHILE {
                return Ok(corpus);
            }
            let largest = best.as_ref().map_or(0, |best: &Corpus| best.text_bytes);
            if corpus.text_bytes > largest {
                best = Ok(corpus);
            }
        }
        best
    }

    /// The text files under `root`, by path, up to the limit. Hidden entries
    /// are left out, and links are not followed, so no loop is possible.
    pub fn under(root: &Path) -> Result<Corpus, NoCorpus> {
        let mut corpus = Corpus {
            root: root.to_owned(),
            files: Vec::new(),
            text_bytes: 0,
            largest_bytes: 0,
            skipped: Skipped::default(),
            is_cut: false,
        };
        let not_a_directory = || NoCorpus::NotADirectory(root.to_owned());
        let mut pending = VecDeque::from(sorted(root).ok_or_else(not_a_directory)?);
        while let Some(path) = pending.pop_front() {
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() => match sorted(&path) {
                    Some(inside) => inside.into_iter().rev().for_each(|p| pending.push_front(p)),
                    None => corpus.skipped.unreadable += 1,
                },
                Ok(found) if found.is_file() => {
                    if corpus.text_bytes >= TEXT_LIMIT {
                        corpus.is_cut = true;
                        break;
                    }
                    corpus.offer(path, found.len());
                }
                Ok(_) => {}
                Err(_) => corpus.skipped.unreadable += 1,
            }
        }
        if corpus.files.is_empty() {
            return Err(NoCorpus::NoText(root.to_owned()));
        }
        Ok(corpus)
    }

    fn offer(&mut self, path: PathBuf, bytes: u64) {
        if bytes > FILE_LIMIT {
            self.skipped.too_large += 1;
            return;
        }
        match fs::read(&path).map(String::from_utf8) {
            Err(_) => self.skipped.unreadable += 1,
            Ok(Ok(text)) if !text.contains('\0') => {
                if text.contains(char::is_alphanumeric) {
                    self.text_bytes += text.len() as u64;
                    self.largest_bytes = self.largest_bytes.max(text.len() as u64);
                    self.files.push(path);
                }
            }
            Ok(_) => self.skipped.not_text += 1,
        }
    }

    /// The text of one file; empty if it is gone since it was listed.
    pub fn text(&self, file: usize) -> String {
        fs::read_to_string(&self.files[file]).unwrap_or_default()
    }
}

fn sorted(directory: &Path) -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).ok()?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    Some(paths)
}

fn rust_docs() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let answer = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let sysroot = String::from_utf8(answer.stdout).ok()?;
    Some(Path::new(sysroot.trim_end()).join("share/doc"))
}

fn registry() -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    Some(cargo_home?.join("registry/src"))
}

/// How often a word occurs, and a sum over the places that does not depend on
/// their order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Occurrences {
    pub count: u64,
    places: u64,
}

impl Occurrences {
    pub fn add(&mut self, place: Posting) {
        let both = u64::from(place.file) << 32 | u64::from(place.line);
        let mixed = (both ^ both >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.count += 1;
        self.places = self.places.wrapping_add(mixed ^ mixed >> 29);
    }
}

/// What a right index must contain. Found in another way than the tenants do
/// it: by one thread, splitting lines and sorting words, without postings.
pub struct Reference {
    words: BTreeMap<Box<str>, Occurrences>,
}

impl Reference {
    pub fn of(corpus: &Corpus) -> Reference {
        let mut words: BTreeMap<Box<str>, Occurrences> = BTreeMap::new();
        for file in 0..corpus.files.len() {
            let text = corpus.text(file).to_ascii_lowercase();
            let mut found: Vec<(&str, u32)> = (1..)
                .zip(text.lines())
                .flat_map(|(line, text)| {
                    let parts = text.split(|c: char| !c.is_alphanumeric());
                    parts
                        .filter(|part| !part.is_empty())
                        .map(move |word| (word, line))
                })
                .collect();
            found.sort_unstable();
            for same in found.chunk_by(|a, b| a.0 == b.0) {
                let word = same[0].0;
                if !words.contains_key(word) {
                    words.insert(word.into(), Occurrences::default());
                }
                let occurrences = words.get_mut(word).expect("inserted just above");
                for &(_, line) in same {
                    occurrences.add(Posting {
                        file: file as u32,
                        line,
                    });
                }
            }
        }
        Reference { words }
    }

    pub fn words(&self) -> usize {
        self.words.len()
    }

    pub fn postings(&self) -> u64 {
        self.words.values().map(|word| word.count).sum()
    }

    pub fn of_word(&self, word: &str) -> Option<&Occurrences> {
        self.words.get(word)
    }
}
