//! The spill area: one unlinked file, handed out in extents.
//!
//! The file is made when the first block is spilled. Freed extents are used
//! again, first fit, and their disk space is given back where the system can.
//! The lock covers the bookkeeping alone: reads and writes of different blocks
//! do not wait for each other, and nothing under it waits for a disk.
//!
//! A block counts as spilled only when the system says that its bytes are on
//! the disk: a full disk and an I/O error are seen while the bytes are still in
//! memory. Their copies in the page cache are given up then, too, or spilling
//! would have freed nothing.
//!
//! The file belongs to the process that made it. A forked child shares it with
//! its parent, who goes on to use it: the child leaves it alone, makes one of
//! its own, and cannot bring back what was spilled before the fork.

use crate::client::untracked;
use crate::ledger::whole::WholeMutex;
use crate::sys;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A block's place in the spill file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    len: u64,
    process: u32,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct SpillArea {
    dir: PathBuf,
    limit_bytes: u64,
    file: WholeMutex<Option<SpillFile>>,
}

#[derive(Debug)]
struct SpillFile {
    file: Arc<File>,
    space: Space,
    process: u32,
}

impl SpillFile {
    /// The file, if it is this process' own.
    fn own(slot: &mut Option<SpillFile>) -> Option<&mut SpillFile> {
        slot.as_mut()
            .filter(|file| file.process == sys::process_id())
    }
}

impl Extent {
    fn own(offset: u64, len: u64) -> Extent {
        Extent {
            offset,
            len,
            process: sys::process_id(),
        }
    }

    /// Whether the extent lies in the file of a parent process.
    fn is_inherited(&self) -> bool {
        self.process != sys::process_id()
    }
}

/// Which bytes of the file are free. Offsets to lengths; neighbours merged.
#[derive(Debug, Default)]
struct Space {
    end: u64,
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// A place for `len` bytes that does not take the file beyond `limit`.
    fn take(&mut self, len: u64, limit: u64) -> Option<Extent> {
        let fit = self.free.iter().find(|(_, free)| **free >= len);
        if let Some((&offset, &free)) = fit {
            self.free.remove(&offset);
            if free > len {
                self.free.insert(offset + len, free - len);
            }
            return Some(Extent::own(offset, len));
        }
        let end = self.end.checked_add(len).filter(|&end| end <= limit)?;
        let offset = core::mem::replace(&mut self.end, end);
        Some(Extent::own(offset, len))
    }

    fn give(&mut self, extent: &Extent) {
        let (mut offset, mut len) = (extent.offset, extent.len);
        if let Some(after) = self.free.remove(&(offset + len)) {
            len += after;
        }
        let before = self.free.range(..offset).next_back();
        if let Some((&start, &before)) = before.filter(|(start, len)| **start + **len == offset) {
            self.free.remove(&start);
            offset = start;
            len += before;
        }
        if offset + len == self.end {
            self.end = offset;
        } else {
            self.free.insert(offset, len);
        }
    }
}

impl SpillArea {
    pub(super) fn new(dir: PathBuf, limit_bytes: u64) -> SpillArea {
        SpillArea {
            dir,
            limit_bytes,
            file: WholeMutex::new(None),
        }
    }

    /// Uses this process' file, made now if there is none yet.
    fn with_file<T>(&self, use_file: impl FnOnce(&mut SpillFile) -> T) -> io::Result<T> {
        // Callers are in a client's scope; the book of free space is not theirs.
        untracked(|| {
            if let Some(file) = SpillFile::own(&mut self.file.lock()) {
                return Ok(use_file(file));
            }
            // Not under the lock. If two make one, one of them is used.
            let made = SpillFile {
                file: Arc::new(sys::spill_file(&self.dir)?),
                space: Space::default(),
                process: sys::process_id(),
            };
            let mut slot = self.file.lock();
            if SpillFile::own(&mut slot).is_none() {
                *slot = Some(made);
            }
            SpillFile::own(&mut slot)
                .map(use_file)
                .ok_or_else(|| io::Error::other("the spill file is gone"))
        })
    }

    /// Writes a block out. On any error the area is as it was.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<Extent> {
        let len = bytes.len() as u64;
        let (file, extent) = self.with_file(|SpillFile { file, space, .. }| {
            (Arc::clone(file), space.take(len, self.limit_bytes))
        })?;
        let extent = extent.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        let written = sys::write_at(&file, extent.offset, bytes).and_then(|()| file.sync_data());
        match written {
            Ok(()) => {
                sys::drop_cached(&file, extent.offset, extent.len);
                Ok(extent)
            }
            Err(error) => {
                self.free(&extent);
                Err(error)
            }
        }
    }

    /// Reads a block back. The extent stays taken.
    pub(super) fn read(&self, extent: &Extent, bytes: &mut [u8]) -> io::Result<()> {
        if extent.is_inherited() {
            return Err(io::Error::other("spilled before the process was forked"));
        }
        let file = self.with_file(|SpillFile { file, .. }| Arc::clone(file))?;
        sys::read_at(&file, extent.offset, bytes)
    }

    /// Gives the place of a block back.
    pub(super) fn free(&self, extent: &Extent) {
        if extent.is_inherited() {
            return;
        }
        let freed = self
            .with_file(|SpillFile { file, .. }| Arc::clone(file))
            .and_then(|file| {
                // Before anybody else can have the place.
                sys::punch_hole(&file, extent.offset, extent.len);
                self.with_file(|SpillFile { space, .. }| space.give(extent))
            });
        debug_assert!(freed.is_ok(), "an extent comes from a file that exists");
    }

    /// How large the file may become.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes of the file in use.
    pub(super) fn used_bytes(&self) -> u64 {
        SpillFile::own(&mut self.file.lock()).map_or(0, |file| {
            file.space.end - file.space.free.values().sum::<u64>()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_space_is_merged_and_used_again() {
        let mut space = Space::default();
        let a = space.take(100, 1000).unwrap();
        let b = space.take(100, 1000).unwrap();
        let c = space.take(100, 1000).unwrap();
        space.give(&a);
        space.give(&b);
        assert_eq!(space.free.len(), 1);
        let d = space.take(150, 1000).unwrap();
        assert_eq!(d.offset, 0);
        space.give(&d);
        space.give(&c);
        assert_eq!((space.end, space.free.len()), (0, 0));
    }

    #[test]
    fn the_limit_is_exact() {
        let mut space = Space::default();
        assert!(space.take(101, 100).is_none());
        assert!(space.take(100, 100).is_some());
        assert!(space.take(1, 100).is_none());
    }

    #[cfg(all(unix, not(tiered_allocator_portable)))]
    #[test]
    fn blocks_come_back_as_they_went_and_a_full_area_says_so() {
        let area = SpillArea::new(std::env::temp_dir(), 8192);
        let first: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
        let second = vec![0x5A; 4096];
        let at = area.write(&first).unwrap();
        let there = area.write(&second).unwrap();
        let full = area.write(&[1]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(area.used_bytes(), 8192);
        let mut back = vec![0; 4096];
        area.read(&there, &mut back).unwrap();
        assert_eq!(back, second);
        area.read(&at, &mut back).unwrap();
        assert_eq!(back, first);
        area.free(&at);
        area.free(&there);
        assert_eq!(area.used_bytes(), 0);
    }

    #[cfg(all(unix, not(tiered_allocator_portable)))]
    #[test]
    fn a_directory_that_does_not_exist_is_an_error() {
        let area = SpillArea::new("/nonexistent/spill".into(), 8192);
        assert!(area.write(&[1]).is_err());
        assert_eq!(area.used_bytes(), 0);
    }
}
