//! What the parts of one request's way share: who pays for it, within which
//! budget, and whether its body was refused.

use crate::client::{Budget, Client, QuotaExceeded, RegisterError, untracked};
use http::Version;
use std::sync::{Arc, OnceLock};

/// Alive until the last of the service's future and the two bodies is gone;
/// then the request's budget ends.
#[derive(Debug)]
pub(super) struct Attributed {
    account: Account,
    version: Version,
    /// Why a piece of the request body was refused, which ends the request.
    refused: OnceLock<QuotaExceeded>,
}

#[derive(Debug)]
enum Account {
    Client(Client),
    Budget(Budget),
}

impl Attributed {
    /// A request of `client`, with at most `budget` bytes if there is such.
    pub(super) fn new(
        client: Client,
        budget: Option<u64>,
        version: Version,
    ) -> Result<Arc<Attributed>, RegisterError> {
        let account = match budget {
            Some(bytes) => Account::Budget(client.budget(bytes)?),
            None => Account::Client(client),
        };
        Ok(untracked(|| {
            Arc::new(Attributed {
                account,
                version,
                refused: OnceLock::new(),
            })
        }))
    }

    /// Who pays: the client, or its budget for this request.
    pub(super) fn account(&self) -> &Client {
        match &self.account {
            Account::Client(client) => client,
            Account::Budget(budget) => budget,
        }
    }

    /// Whether the connection compresses headers, and so keeps their text.
    pub(super) fn keeps_headers(&self) -> bool {
        self.version >= Version::HTTP_2
    }

    /// Notes that the request cannot go on; the first reason counts.
    pub(super) fn refuse(&self, quota: &QuotaExceeded) {
        self.refused.get_or_init(|| quota.clone());
    }

    pub(super) fn refused(&self) -> Option<&QuotaExceeded> {
        self.refused.get()
    }
}
