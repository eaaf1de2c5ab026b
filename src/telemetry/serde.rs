//! How ids and times are serialised: in forms that stay as they are.

use crate::client::ClientId;
use serde::{Serialize, Serializer};
use std::time::SystemTime;

/// As [`Display`](core::fmt::Display) writes it: `"index.generation"`.
impl Serialize for ClientId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

pub(super) fn unix_ms<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    serializer.serialize_u64(since_1970.map_or(0, |since| since.as_millis() as u64))
}
