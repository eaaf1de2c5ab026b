//! What a ready-made cache gives of what is wanted.

use crate::pressure::Urgency;
use crate::registry::reclaimers::ReclaimRequest;

/// Half of it while there is time: what is still wanted then is asked for
/// again, and other caches come first. All of it otherwise.
pub(super) fn of(request: &ReclaimRequest) -> u64 {
    match request.urgency {
        Urgency::Idle => 0,
        Urgency::Low => request.wanted_bytes.div_ceil(2),
        Urgency::High | Urgency::Critical => request.wanted_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientId;
    use core::time::Duration;

    #[test]
    fn what_is_given_grows_with_the_urgency() {
        let share = |urgency, wanted_bytes| {
            of(&ReclaimRequest {
                client: ClientId::new(1, 0),
                wanted_bytes,
                urgency,
                deadline: Duration::ZERO,
            })
        };
        assert_eq!(share(Urgency::Idle, 100), 0);
        assert_eq!(share(Urgency::Low, 100), 50);
        assert_eq!(share(Urgency::Low, 1), 1);
        assert_eq!(share(Urgency::High, 100), 100);
        assert_eq!(share(Urgency::Critical, u64::MAX), u64::MAX);
    }
}
