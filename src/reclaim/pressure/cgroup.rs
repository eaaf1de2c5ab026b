//! [`Cgroup`]: what the process' container may have, and what is in it.

use super::hierarchy::{self, Group, Version, malformed, read};
use super::marks::{Hysteresis, Marks};
use super::{Figures, MarksError, Pressure, PressureError, PressureSource};
use std::io;
use std::path::{Path, PathBuf};

/// From here on a limit of version 1 means that there is none. The kernel says
/// the largest multiple of a page that is an `i64`.
const V1_NO_LIMIT: u64 = 1 << 62;

/// The memory of the process' cgroup against its limit, versions 1 and 2.
///
/// Groups nest, and the limit of each binds all that is in it. So every group
/// from the process' own up to the topmost one that is visible is judged with
/// its own limit and its own memory, and the worst counts. What is wanted back
/// is never more than the process' own group holds: what its neighbours have,
/// nobody here can give.
///
/// - **Limit**: the lower of `memory.max` and `memory.high` (version 2), or
///   `memory.limit_in_bytes` and `hierarchical_memory_limit` (version 1). It is
///   read each time: containers are resized while they run.
/// - **Memory**: `anon` and `shmem` of `memory.stat` (version 2), or `rss` and
///   `shmem` (version 1). Not the page cache, which the kernel drops by itself
///   before it kills anybody. Shared memory is counted as cache by the kernel
///   but leaves memory only by way of swap, as anonymous memory does. Kernel
///   memory (page tables, sockets) is not counted; the part above the high mark
///   is room for it.
///
/// `Low` on the way down between the marks, `High` above the high mark,
/// `Critical` above the middle between it and the limit: at the limit itself
/// the kernel would have acted.
///
/// ```
/// use tiered_allocator::pressure::{Cgroup, Figures, PressureSource};
///
/// match Cgroup::own() {
///     Ok(mut cgroup) => {
///         println!("limit: {:?} bytes", cgroup.limit_bytes()?);
///         println!("used:  {} bytes", cgroup.used_bytes()?);
///         println!("{:?}", cgroup.read(&Figures::default())?);
///     }
///     Err(reason) => println!("no cgroup to watch: {reason}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// What `/proc/self/cgroup` said when the group was found.
    names: Option<String>,
    group: Group,
    marks: Marks,
    /// One a level, in the same order.
    states: Vec<Hysteresis>,
}

impl Cgroup {
    /// The process' own, with marks of 0.9 and 0.8.
    ///
    /// # Errors
    /// As [`Cgroup::at`].
    pub fn own() -> Result<Cgroup, PressureError> {
        Cgroup::at("/")
    }

    /// As [`Cgroup::own`], with `proc/self/cgroup`, `proc/self/mountinfo` and
    /// the mounts that it names below the directory `root`.
    ///
    /// # Errors
    /// The system has no memory cgroups ([`PressureError::Unknown`]), does not
    /// show them to the process ([`PressureError::NotVisible`]), or what it
    /// says about them is not understood.
    pub fn at(root: impl Into<PathBuf>) -> Result<Cgroup, PressureError> {
        let root = root.into();
        let names = hierarchy::names_text(&root)?;
        let group = found(&root)?;
        Ok(Cgroup {
            states: vec![Hysteresis::default(); group.levels.len()],
            names,
            group,
            root,
            marks: Marks::known(0.9, 0.8),
        })
    }

    /// Pressure begins above `high` and wants bytes down to `low`, both shares
    /// of the limit.
    ///
    /// # Errors
    /// Unless `0.0 <= low < high <= 1.0`.
    pub fn marks(mut self, high: f64, low: f64) -> Result<Cgroup, MarksError> {
        self.marks = Marks::new(high, low)?;
        Ok(self)
    }

    /// The tightest limit on the way from the process' group to the topmost
    /// visible one, in bytes; `None` if there is none.
    ///
    /// # Errors
    /// A limit cannot be read.
    pub fn limit_bytes(&self) -> Result<Option<u64>, PressureError> {
        let mut limits = (0..self.group.levels.len()).map(|level| self.limit_of(level));
        limits.try_fold(None, |tightest, limit| Ok(lower(tightest, limit?)))
    }

    /// Memory of the process' own group that is not page cache, in bytes.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn used_bytes(&self) -> Result<u64, PressureError> {
        self.used_of(0)
    }

    fn limit_of(&self, level: usize) -> Result<Option<u64>, PressureError> {
        let dir = &self.group.levels[level];
        match self.group.version {
            Version::V2 => {
                let max = v2_limit(&dir.join("memory.max"))?;
                Ok(lower(max, v2_limit(&dir.join("memory.high"))?))
            }
            Version::V1 => {
                let limit = v1_limit(&dir.join("memory.limit_in_bytes"))?;
                if level > 0 {
                    return Ok(limit);
                }
                // Also covers the groups around it that are not visible.
                let stat = Stat::read(dir)?;
                let all = stat.figure("hierarchical_memory_limit")?;
                Ok(lower(limit, all.filter(|&bytes| bytes < V1_NO_LIMIT)))
            }
        }
    }

    fn used_of(&self, level: usize) -> Result<u64, PressureError> {
        let stat = Stat::read(&self.group.levels[level])?;
        let (anon, shmem) = match self.group.version {
            Version::V2 => (stat.figure("anon")?, stat.figure("shmem")?),
            // Those of the group with all that is in it, where they are told.
            Version::V1 => {
                let total = stat.figure("total_rss")?;
                match total {
                    Some(_) => (total, stat.figure("total_shmem")?),
                    None => (stat.figure("rss")?, stat.figure("shmem")?),
                }
            }
        };
        let expected = match self.group.version {
            Version::V2 => "`anon`",
            Version::V1 => "`rss`",
        };
        let anon = anon.ok_or_else(|| malformed(&stat.path, expected, &stat.text))?;
        Ok(anon.saturating_add(shmem.unwrap_or(0)))
    }

    fn judge(&mut self) -> Result<Pressure, PressureError> {
        let mut worst = Pressure::NONE;
        let mut own = None;
        for level in 0..self.group.levels.len() {
            let Some(limit) = self.limit_of(level)? else {
                self.states[level] = Hysteresis::default();
                continue;
            };
            let own = match own {
                Some(own) => own,
                None => *own.insert(self.used_of(0)?),
            };
            let used = if level == 0 {
                own
            } else {
                self.used_of(level)?
            };
            let state = &mut self.states[level];
            let mut pressure = state.judge(self.marks, used, limit, self.marks.near_full());
            pressure.excess_bytes = pressure.excess_bytes.min(own);
            worst = worst.worst(pressure);
        }
        Ok(worst)
    }
}

impl PressureSource for Cgroup {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn read(&mut self, _: &Figures) -> Result<Pressure, PressureError> {
        // The process may have been moved to another group.
        let names = hierarchy::names_text(&self.root)?;
        if names != self.names {
            self.group = found(&self.root)?;
            self.states = vec![Hysteresis::default(); self.group.levels.len()];
            self.names = names;
        }
        self.judge()
    }
}

fn found(root: &Path) -> Result<Group, PressureError> {
    let mut group = hierarchy::memory_group(root)?
        .ok_or(PressureError::Unknown("the memory cgroup of a process"))?;
    if group.version == Version::V1 {
        // A group of old kernels that does not account for what is in it.
        let flat =
            |dir: &Path| read(&dir.join("memory.use_hierarchy")).is_ok_and(|t| t.trim() == "0");
        let around = group.levels.iter().skip(1);
        let bound = around.take_while(|dir| !flat(dir)).count();
        group.levels.truncate(1 + bound);
    }
    Ok(group)
}

/// The lower of two limits that may not be there.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// The topmost group has no such file, nor has one without the controller.
fn v2_limit(path: &Path) -> Result<Option<u64>, PressureError> {
    match read(path) {
        Err(PressureError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(other) => Err(other),
        Ok(text) if text.trim() == "max" => Ok(None),
        Ok(text) => bytes(path, &text).map(Some),
    }
}

fn v1_limit(path: &Path) -> Result<Option<u64>, PressureError> {
    let limit = bytes(path, &read(path)?)?;
    Ok(Some(limit).filter(|&limit| limit < V1_NO_LIMIT))
}

fn bytes(path: &Path, text: &str) -> Result<u64, PressureError> {
    text.trim()
        .parse()
        .map_err(|_| malformed(path, "number of bytes", text))
}

/// `memory.stat`: a name and a number a line.
struct Stat {
    path: PathBuf,
    text: String,
}

impl Stat {
    fn read(dir: &Path) -> Result<Stat, PressureError> {
        let path = dir.join("memory.stat");
        let text = read(&path)?;
        Ok(Stat { path, text })
    }

    fn figure(&self, name: &str) -> Result<Option<u64>, PressureError> {
        let value = self.text.lines().find_map(|line| {
            let (found, value) = line.split_once(' ')?;
            (found == name).then_some(value)
        });
        value.map(|text| bytes(&self.path, text)).transpose()
    }
}
