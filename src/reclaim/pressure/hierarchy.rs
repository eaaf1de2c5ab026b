//! Where the process' cgroup is: from `/proc/self/cgroup` (its name in each
//! hierarchy) and `/proc/self/mountinfo` (where hierarchies can be seen).

use super::PressureError;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V1,
    V2,
}

/// The process' cgroup in one hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Group {
    pub(super) version: Version,
    /// Its directory, then those of the groups around it, as far as they are
    /// mounted. Never empty.
    pub(super) levels: Vec<PathBuf>,
}

/// The group that limits the process' memory: of the hierarchy that has the
/// memory controller, which in a hybrid set-up is one of version 1. `None`: the
/// system has no such groups.
pub(super) fn memory_group(root: &Path) -> Result<Option<Group>, PressureError> {
    let Some(names) = names(root)? else {
        return Ok(None);
    };
    match (names.v1_memory, names.v2) {
        (Some(group), _) => visible(root, Version::V1, &group).map(Some),
        (None, Some(group)) => visible(root, Version::V2, &group).map(Some),
        (None, None) => Ok(None),
    }
}

/// The group in the hierarchy of version 2, which alone has `memory.pressure`.
pub(super) fn unified_group(root: &Path) -> Result<Option<Group>, PressureError> {
    match names(root)?.and_then(|names| names.v2) {
        Some(group) => visible(root, Version::V2, &group).map(Some),
        None => Ok(None),
    }
}

struct Names {
    v1_memory: Option<PathBuf>,
    v2: Option<PathBuf>,
}

const NAMES: &str = "proc/self/cgroup";

/// What the system calls the process' groups; `None` if it has none.
pub(super) fn names_text(root: &Path) -> Result<Option<String>, PressureError> {
    match read(&root.join(NAMES)) {
        Err(PressureError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        text => text.map(Some),
    }
}

fn names(root: &Path) -> Result<Option<Names>, PressureError> {
    let path = root.join(NAMES);
    let Some(text) = names_text(root)? else {
        return Ok(None);
    };
    let mut names = Names {
        v1_memory: None,
        v2: None,
    };
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            return Err(malformed(&path, "hierarchy:controllers:group", line));
        };
        if controllers.is_empty() {
            names.v2 = Some(group.into());
        } else if controllers.split(',').any(|name| name == "memory") {
            names.v1_memory = Some(group.into());
        }
    }
    Ok(Some(names))
}

/// The directories of `group`, in the mount that shows the most of them.
fn visible(root: &Path, version: Version, group: &Path) -> Result<Group, PressureError> {
    let path = root.join("proc/self/mountinfo");
    let mut best: Option<Vec<PathBuf>> = None;
    for line in read(&path)?.lines() {
        let mount = mount(line).ok_or_else(|| malformed(&path, "mount", line))?;
        if !mount.is_of(version) {
            continue;
        }
        let Ok(below) = group.strip_prefix(&mount.root) else {
            continue;
        };
        if !below
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
        {
            continue;
        }
        let at = mount.at.strip_prefix("/").unwrap_or(&mount.at);
        let top = root.join(at);
        let own = top.join(below);
        if !own.is_dir() {
            continue;
        }
        let depth = below.components().count();
        let levels: Vec<PathBuf> = own
            .ancestors()
            .take(depth + 1)
            .map(Path::to_owned)
            .collect();
        if best.as_ref().is_none_or(|best| best.len() < levels.len()) {
            best = Some(levels);
        }
    }
    match best {
        Some(levels) => Ok(Group { version, levels }),
        None => Err(PressureError::NotVisible {
            group: group.to_owned(),
        }),
    }
}

struct Mount<'line> {
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where.
    at: PathBuf,
    kind: &'line str,
    options: &'line str,
}

impl Mount<'_> {
    fn is_of(&self, version: Version) -> bool {
        match version {
            Version::V1 => self.kind == "cgroup" && self.options.split(',').any(|o| o == "memory"),
            Version::V2 => self.kind == "cgroup2",
        }
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount<'_>> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let mut file_system = file_system.split(' ');
    Some(Mount {
        root: unescaped(place.next()?),
        at: unescaped(place.next()?),
        kind: file_system.next()?,
        options: file_system.nth(1)?,
    })
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut pieces = text.split('\\');
    let mut plain = OsString::from(pieces.next().unwrap_or_default());
    for piece in pieces {
        let code = piece.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                plain.push(char::from(code).to_string());
                plain.push(&piece[3..]);
            }
            None => {
                plain.push("\\");
                plain.push(piece);
            }
        }
    }
    plain.into()
}

/// A file of the system as text.
pub(super) fn read(path: &Path) -> Result<String, PressureError> {
    let bytes = std::fs::read(path).map_err(|source| PressureError::Io {
        path: path.to_owned(),
        source,
    })?;
    // Names of cgroups and mount points need not be UTF-8. One that is not is
    // not found then, which is an error of its own.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `path` holds `found` where `expected` should be.
pub(super) fn malformed(path: &Path, expected: &'static str, found: &str) -> PressureError {
    PressureError::Malformed {
        path: path.to_owned(),
        expected,
        found: found.trim_end().chars().take(80).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_and_without_optional_fields() {
        let line = r"41 31 0:38 /docker/a /sys/fs/my\040cgroup rw - cgroup2 none rw,nsdelegate";
        let read = mount(line).unwrap();
        assert_eq!(read.root, Path::new("/docker/a"));
        assert_eq!(read.at, Path::new("/sys/fs/my cgroup"));
        assert!(read.is_of(Version::V2) && !read.is_of(Version::V1));
        let line = "35 31 0:32 / /m rw shared:1 master:7 - cgroup cgroup rw,cpuset,memory";
        assert!(mount(line).unwrap().is_of(Version::V1));
        let line = "35 31 0:32 / /m rw shared:1 - cgroup cgroup rw,memory_recursiveprot";
        assert!(!mount(line).unwrap().is_of(Version::V1));
        for line in ["", "1 2 3", "35 31 0:32 / /m rw - cgroup"] {
            assert!(mount(line).is_none(), "{line}");
        }
    }

    #[test]
    fn escapes_of_mountinfo_are_undone_and_others_left() {
        for (text, plain) in [
            (r"/a\040b\134c", r"/a b\c"),
            (r"/a\", r"/a\"),
            (r"/a\9", r"/a\9"),
            (r"\040", " "),
            (r"/\xx\011", "/\\xx\t"),
        ] {
            assert_eq!(unescaped(text), Path::new(plain), "{text}");
        }
    }
}
