//! [`Tenant`]: what the host keeps for a tenant, and how it is served.

use axum::http::StatusCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tiered_allocator::{Client, MemoryBlock, RegisterError};

/// Latencies that are kept.
const LATENCIES: usize = 256;

pub(crate) struct Tenant {
    pub(crate) name: &'static str,
    /// What it does, for people.
    pub(crate) what: &'static str,
    pub(crate) client: Client,
    /// Pages by key, on the heap. Charged to the tenant.
    pub(crate) cache: Mutex<HashMap<u64, Page>>,
    /// Documents by number, in blocks. Charged to the tenant.
    pub(crate) archive: Mutex<HashMap<u64, MemoryBlock>>,
    pub(crate) own_limits: Mutex<OwnLimits>,
    service: Mutex<Service>,
}

pub(crate) struct Page {
    pub(crate) text: String,
    pub(crate) checksum: u64,
    pub(crate) until: Instant,
}

/// Limits that the tenant has of its own, in bytes; its tier's where `None`.
#[derive(Clone, Copy, Default)]
pub(crate) struct OwnLimits {
    pub(crate) max: Option<u64>,
    pub(crate) guarantee: Option<u64>,
}

struct Service {
    figures: Figures,
    latencies: Box<[Duration; LATENCIES]>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) answers: u64,
    /// Ended because the tenant was over its quota.
    pub(crate) stopped: u64,
    /// Answers that were compared, and differed.
    pub(crate) wrong: u64,
    /// Of the latest answers.
    pub(crate) p99: Duration,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tenant {
    pub(crate) fn new(
        name: &'static str,
        what: &'static str,
        client: Client,
        guarantee: Option<u64>,
    ) -> Tenant {
        Tenant {
            name,
            what,
            client,
            cache: Mutex::default(),
            archive: Mutex::default(),
            own_limits: Mutex::new(OwnLimits {
                max: None,
                guarantee,
            }),
            service: Mutex::new(Service {
                figures: Figures::default(),
                latencies: Box::new([Duration::ZERO; LATENCIES]),
            }),
        }
    }

    pub(crate) fn served(&self, took: Duration, status: StatusCode) {
        let mut service = lock(&self.service);
        if status.is_success() {
            let at = service.figures.answers as usize % LATENCIES;
            service.latencies[at] = took;
            service.figures.answers += 1;
        } else if matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE
        ) {
            service.figures.stopped += 1;
        }
    }

    pub(crate) fn answered_wrong(&self) {
        lock(&self.service).figures.wrong += 1;
    }

    pub(crate) fn figures(&self) -> Figures {
        let service = lock(&self.service);
        let mut figures = service.figures;
        let mut latencies = *service.latencies;
        drop(service);
        let known = (figures.answers as usize).min(LATENCIES);
        let latencies = &mut latencies[..known];
        latencies.sort_unstable();
        figures.p99 = latencies.get(known * 99 / 100).copied().unwrap_or_default();
        figures
    }

    /// Lets the reclaimer ask for pages when memory is short.
    pub(crate) fn offer_cache(self: &Arc<Tenant>) -> Result<(), RegisterError> {
        let tenant = Arc::downgrade(self);
        let offer = self.client.register_reclaimer(move |request| {
            let tenant = tenant.upgrade();
            tenant.map_or(0, |tenant| tenant.give_back(request.wanted_bytes))
        })?;
        offer.keep();
        Ok(())
    }

    /// Throws away pages, those first that would be too old soonest.
    fn give_back(&self, wanted_bytes: u64) -> u64 {
        let mut cache = lock(&self.cache);
        let mut by_age: Vec<(Instant, u64)> =
            cache.iter().map(|(&key, page)| (page.until, key)).collect();
        by_age.sort_unstable();
        let mut freed = 0;
        for (_, key) in by_age {
            if freed >= wanted_bytes {
                break;
            }
            freed += cache
                .remove(&key)
                .map_or(0, |page| page.text.capacity() as u64);
        }
        freed
    }

    /// Throws away pages that are too old.
    pub(crate) fn forget_old_pages(&self, now: Instant) {
        lock(&self.cache).retain(|_, page| page.until > now);
    }
}
