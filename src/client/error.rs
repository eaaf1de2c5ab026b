//! Errors about clients, with their figures.

use crate::registry::budget::BudgetNode;
use crate::registry::policies::ConfigError;
use core::fmt;
use std::sync::Arc;

/// A request did not fit, and which budget said so. With the feature `serde`
/// its figures are serialised as an [`Event`](crate::Event)'s are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "client `{client}` ({tier}) {}: {charged} of {limit} bytes are charged to {}; free \
     memory, raise the limit or move it to a higher tier",
    Excess(*.requested),
    .node.what()
)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct QuotaExceeded {
    /// The client's name.
    pub client: Arc<str>,
    /// The name of its tier.
    pub tier: Arc<str>,
    /// Bytes asked for; 0 at a safe point, where the excess exists already.
    #[cfg_attr(feature = "serde", serde(rename = "requested_bytes"))]
    pub requested: u64,
    /// Bytes charged to the budget that refused.
    #[cfg_attr(feature = "serde", serde(rename = "charged_bytes"))]
    pub charged: u64,
    /// That budget's limit in bytes.
    #[cfg_attr(feature = "serde", serde(rename = "limit_bytes"))]
    pub limit: u64,
    /// Which budget refused.
    pub node: BudgetNode,
}

/// A client's work ended while the client was over its quota, or because of
/// it. What the work returned is not lost.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{quota}")]
#[non_exhaustive]
pub struct OverQuota<R> {
    /// By how much, and against which limit.
    pub quota: QuotaExceeded,
    /// What the work returned; `None` if it was unwound before it could.
    pub output: Option<R>,
}

/// What a client did that is too much, by the bytes that it asked for.
struct Excess(u64);

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("is over its quota"),
            bytes => write!(f, "may not have {bytes} more bytes"),
        }
    }
}

impl BudgetNode {
    pub(crate) fn what(self) -> &'static str {
        match self {
            BudgetNode::Request => "its request budget",
            BudgetNode::Client => "it",
            BudgetNode::Tier => "its tier",
            BudgetNode::Memory => "the memory",
            BudgetNode::Removed => "its name, which was removed",
        }
    }
}

/// No client of this name in this memory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no client `{name}`: register it with add_client, or look for a typing error")]
#[non_exhaustive]
pub struct UnknownClient {
    /// The name asked for.
    pub name: String,
}

/// A client could not be registered, renamed or moved. Nothing was changed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is taken.
    #[error("there is a client `{name}` already: names are unique in a memory")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// There is no client to rename.
    #[error(transparent)]
    Unknown(#[from] UnknownClient),
    /// Its limits make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What it would be guaranteed is not there.
    #[error(
        "a guarantee of {requested} bytes does not fit: {charged} of {limit} bytes are \
         reserved or in use"
    )]
    GuaranteeDoesNotFit {
        /// Bytes to reserve.
        requested: u64,
        /// Bytes reserved or in use in the budget that refused.
        charged: u64,
        /// That budget's limit.
        limit: u64,
    },
    /// Every id is in use.
    #[error("all {limit} client ids are in use: remove clients, and free what they hold")]
    IdsExhausted {
        /// Clients that can exist at once.
        limit: u32,
    },
    /// The system has no memory for another client.
    #[error("the system has no memory for another client")]
    OutOfMemory,
    /// The client was removed.
    #[error("the client was removed from its memory")]
    Removed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_was_asked_and_a_safe_point_the_excess() {
        let mut quota = QuotaExceeded {
            client: "acme".into(),
            tier: "Basic".into(),
            requested: 7,
            charged: 95,
            limit: 100,
            node: BudgetNode::Client,
        };
        let message = quota.to_string();
        assert!(message.starts_with("client `acme` (Basic) may not have 7 more bytes: 95 of 100"));
        quota.requested = 0;
        let message = quota.to_string();
        assert!(message.starts_with("client `acme` (Basic) is over its quota: 95 of 100 bytes"));
    }
}
