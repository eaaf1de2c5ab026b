//! A memory as large as what the process may have.

use super::{Memory, MemoryBuilder};
use crate::pressure::{Cgroup, PressureError};
use crate::registry::ConfigError;
use crate::registry::policies::LARGEST;
use crate::sys;

/// One part in so many is left to what the ledger does not see: rounding and
/// caches of the inner allocator, stacks, code, kernel memory.
const UNSEEN_PART: u64 = 10;

/// How much the process may have is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// There is a cgroup, and it cannot be read. It may have a limit, so the
    /// machine's memory is no answer.
    #[error("the limit of the process' cgroup is not known: {0}")]
    Cgroup(#[source] PressureError),
    /// There is no limit, and the system does not tell its memory either.
    #[error("neither a cgroup's limit nor the machine's memory is known: name the total")]
    Unknown,
    /// There is a limit, and a memory cannot be made of it.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Nine tenths of the lower of the limit and the machine's memory.
fn total_bytes(limit: Option<u64>, physical: Option<u64>) -> Option<u64> {
    let bytes = limit.into_iter().chain(physical).min()?;
    Some((bytes - bytes / UNSEEN_PART).min(LARGEST))
}

fn limit_bytes() -> Result<Option<u64>, PressureError> {
    match Cgroup::own() {
        // No cgroups, no limit.
        Err(PressureError::Unknown(_)) => Ok(None),
        cgroup => cgroup?.limit_bytes(),
    }
}

impl Memory {
    /// A memory whose total is 90 % of what the process may have: of the
    /// tightest limit of its cgroup and those around it, or of the machine's
    /// memory where that is less or there is no limit. The rest is left to what
    /// no client is charged for: the inner allocator's rounding and caches,
    /// thread stacks, code, the kernel's memory for the process. Of the total,
    /// 80 % are usable, as always.
    ///
    /// Use it once in a process: each memory would count on all of it.
    ///
    /// ```
    /// use tiered_allocator::Memory;
    ///
    /// match Memory::from_cgroup() {
    ///     Ok(memory) => println!("{} bytes", memory.usage().total_bytes),
    ///     Err(reason) => println!("name the total yourself: {reason}"),
    /// }
    /// ```
    ///
    /// # Errors
    /// What the process may have cannot be known, or is too little.
    pub fn from_cgroup() -> Result<Memory, SizeError> {
        Ok(MemoryBuilder::from_cgroup()?.build()?)
    }
}

impl MemoryBuilder {
    /// As [`Memory::from_cgroup`], to be configured further.
    ///
    /// # Errors
    /// What the process may have cannot be known.
    pub fn from_cgroup() -> Result<MemoryBuilder, SizeError> {
        let limit = limit_bytes().map_err(SizeError::Cgroup)?;
        let total = total_bytes(limit, sys::physical_bytes()).ok_or(SizeError::Unknown)?;
        Ok(MemoryBuilder::new(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_nine_tenths_of_the_lower_of_limit_and_machine() {
        let gib = 1 << 30;
        assert_eq!(total_bytes(Some(10 * gib), Some(64 * gib)), Some(9 * gib));
        assert_eq!(total_bytes(Some(64 * gib), Some(10 * gib)), Some(9 * gib));
        assert_eq!(total_bytes(None, Some(10 * gib)), Some(9 * gib));
        assert_eq!(total_bytes(Some(10 * gib), None), Some(9 * gib));
        assert_eq!(total_bytes(Some(0), Some(gib)), Some(0));
        assert_eq!(total_bytes(Some(u64::MAX), None), Some(LARGEST));
    }

    #[test]
    fn nothing_known_is_no_total() {
        assert_eq!(total_bytes(None, None), None);
    }
}
