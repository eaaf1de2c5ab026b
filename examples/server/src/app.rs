//! [`App`]: the memory, the tenants, the routes, and the life of it all.

use crate::error::ApiError;
use crate::live::Live;
use crate::operator::Token;
use crate::profile::Tickets;
use crate::tenant::Tenant;
use crate::{attribution, guard, jobs, live, load, operator, page, profile};
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Router, middleware};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tiered_allocator::pressure::Watermarks;
use tiered_allocator::{
    ClientOptions, Ladder, Limit, Memory, ReclaimPolicy, SubscriptionTier, Tier, TierPolicy,
    TieredAllocator,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub(crate) const MIB: u64 = 1 << 20;

/// Bodies of requests. With what a job makes of one, times the jobs at once,
/// it stays below the memory's headroom.
const BODY_BYTES: usize = 256 << 10;
const JOBS_AT_ONCE: usize = 16;
/// How long a block waits for room that others are to make: on a busy machine
/// they may be long in coming to it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the reclaimer waits for one cache, for the same reason.
const CACHE: Duration = Duration::from_secs(2);
/// How long open connections may take to end.
const FAREWELL: Duration = Duration::from_secs(3);

/// How the server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// All there is to hand out, in bytes.
    pub total_bytes: u64,
    /// Whether tenants send requests by themselves.
    pub load: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            total_bytes: 256 * MIB,
            load: true,
        }
    }
}

/// The server, without its socket.
pub struct App {
    pub(crate) memory: Memory,
    pub(crate) tenants: Vec<Arc<Tenant>>,
    pub(crate) hostile: AtomicBool,
    pub(crate) rush: AtomicBool,
    pub(crate) live: Live,
    pub(crate) token: Token,
    /// Whether a heap profile was ever started: there is one to report then.
    pub(crate) profiled: AtomicBool,
    pub(crate) tickets: Tickets,
    pub(crate) jobs: Semaphore,
    stop: watch::Sender<bool>,
    load: bool,
}

impl App {
    /// Makes the memory, on the process' global allocator, and registers the
    /// tenants.
    ///
    /// # Errors
    /// The total is too small, or the system gives no random bytes.
    pub fn new(
        options: &Options,
        heap: &'static TieredAllocator,
    ) -> Result<Arc<App>, Box<dyn std::error::Error>> {
        let memory = memory(options.total_bytes, heap)?;
        let tenant = |name, tier: SubscriptionTier, what, guarantee: Option<u64>| {
            let mut own = ClientOptions::new(tier);
            if let Some(bytes) = guarantee {
                own = own.guarantee(Limit::Bytes(bytes));
            }
            let client = memory.register(name, own)?;
            let tenant = Arc::new(Tenant::new(name, what, client, guarantee));
            tenant.offer_cache()?;
            Ok::<_, Box<dyn std::error::Error>>(tenant)
        };
        let total = options.total_bytes;
        let tenants = vec![
            tenant(
                "bank",
                SubscriptionTier::Enterprise,
                "reports and archives",
                Some(total / 8),
            )?,
            tenant(
                "press",
                SubscriptionTier::Premium,
                "pages and feeds",
                Some(total / 16),
            )?,
            tenant("shop", SubscriptionTier::Basic, "small pages", None)?,
            tenant(
                HOSTILE,
                SubscriptionTier::Basic,
                "takes all it can get",
                None,
            )?,
        ];
        Ok(Arc::new(App {
            memory,
            tenants,
            hostile: AtomicBool::new(false),
            rush: AtomicBool::new(false),
            live: Live::new(),
            token: Token::random()?,
            profiled: AtomicBool::new(false),
            tickets: Tickets::default(),
            jobs: Semaphore::new(JOBS_AT_ONCE),
            stop: watch::Sender::new(false),
            load: options.load,
        }))
    }

    /// What the operator has to show in order to change anything.
    pub fn token(&self) -> &str {
        self.token.as_str()
    }

    /// Lets other programs of this user read the figures, `tiered_top` for one.
    ///
    /// # Errors
    /// There is no place for the socket.
    #[cfg(unix)]
    pub fn listen_for_top(
        &self,
    ) -> io::Result<tiered_allocator::integrations::snapshot_socket::SnapshotSocket> {
        tiered_allocator::integrations::snapshot_socket::SnapshotSocket::bind_default(&self.memory)
    }

    /// The routes, for a listener or for tests.
    pub fn router(self: &Arc<App>) -> Router {
        let operator = Router::new()
            .route("/api/login", post(operator::login))
            .route("/api/tenants/{name}/tier", post(operator::set_tier))
            .route("/api/tenants/{name}/limits", post(operator::set_limits))
            .route("/api/hostile", post(operator::set_hostile))
            .route("/api/rush", post(operator::set_rush))
            .route("/api/reclaim", post(operator::reclaim))
            .route("/api/profile", post(profile::switch))
            .route("/api/profile/{form}", get(profile::report))
            .route("/api/profile/{form}/ticket", post(profile::issue))
            .layer(middleware::from_fn_with_state(
                Arc::clone(self),
                operator::demand_token,
            ));
        Router::new()
            .merge(page::routes())
            .route("/api/state", get(live::state))
            .route("/api/live", get(live::stream))
            .route("/profile/{ticket}", get(profile::redeem))
            .merge(operator)
            .merge(self.jobs_router())
            .fallback(async || ApiError::NotFound)
            .layer(DefaultBodyLimit::max(BODY_BYTES))
            .layer(middleware::from_fn(guard::guard))
            .with_state(Arc::clone(self))
    }

    /// The tenants' routes: each request is charged to its tenant.
    fn jobs_router(self: &Arc<App>) -> Router<Arc<App>> {
        Router::new()
            .route("/jobs/report", post(jobs::report))
            .route("/jobs/page", post(jobs::page))
            .route("/jobs/archive", post(jobs::archive))
            .route("/jobs/block", post(jobs::block))
            .route("/jobs/script", post(jobs::script))
            .route("/jobs/feed", get(jobs::feed))
            .layer(attribution::layer())
            .layer(middleware::from_fn_with_state(
                Arc::clone(self),
                attribution::find_tenant,
            ))
    }

    /// Serves until [`App::stop`] is called.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self: &Arc<App>, listener: TcpListener) -> io::Result<()> {
        let background = load::start(self);
        let sampler = tokio::spawn(live::sample(Arc::clone(self)));
        let router = self.router();
        let mut stopped = self.stop.subscribe();
        let ended = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let mut served = tokio::spawn(
            axum::serve(listener, router)
                .with_graceful_shutdown(ended)
                .into_future(),
        );
        let outcome = tokio::select! {
            outcome = &mut served => outcome.map_err(io::Error::other)?,
            () = self.overdue() => {
                served.abort();
                Ok(())
            }
        };
        self.stop();
        for task in background.into_iter().chain([sampler]) {
            task.await.map_err(io::Error::other)?;
        }
        outcome
    }

    async fn overdue(&self) {
        self.stopped().await;
        tokio::time::sleep(FAREWELL).await;
    }

    /// Ends everything: streams, background work, the listener.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns when the server is to end.
    pub(crate) async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    pub(crate) fn sends_load(&self) -> bool {
        self.load
    }

    pub(crate) fn is_hostile(&self) -> bool {
        self.hostile.load(Ordering::Relaxed)
    }

    pub(crate) fn is_rush(&self) -> bool {
        self.rush.load(Ordering::Relaxed)
    }

    pub(crate) fn tenant(&self, name: &str) -> Result<&Arc<Tenant>, ApiError> {
        self.tenants
            .iter()
            .find(|tenant| tenant.name == name)
            .ok_or_else(|| ApiError::UnknownTenant {
                name: name.to_owned(),
            })
    }

    /// A line a tenant, for the terminal.
    pub fn report(&self) -> String {
        use std::fmt::Write;
        let snapshot = self.memory.snapshot();
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let mut text = String::from(
            "tenant   tier         live MiB   peak MiB    max MiB   answers   stopped     wrong\n",
        );
        for tenant in &self.tenants {
            let Some(client) = snapshot
                .clients
                .iter()
                .find(|client| *client.name == *tenant.name)
            else {
                continue;
            };
            let figures = tenant.figures();
            let _ = writeln!(
                text,
                "{:<8} {:<10} {:>10.1} {:>10.1} {:>10.1} {:>9} {:>9} {:>9}",
                tenant.name,
                client.tier,
                mib(client.usage.live_bytes),
                mib(client.usage.peak_bytes),
                mib(client.max_bytes),
                figures.answers,
                figures.stopped,
                figures.wrong,
            );
        }
        text
    }
}

/// The tenant that the hostile load belongs to.
pub(crate) const HOSTILE: &str = "mallory";

fn memory(
    total_bytes: u64,
    heap: &'static TieredAllocator,
) -> Result<Memory, Box<dyn std::error::Error>> {
    let seconds = Duration::from_secs;
    let tier = |tier, soft, idle_s, reclaim| {
        let policy = TierPolicy::from(tier)
            .soft(Limit::Share(soft))
            .idle_after(seconds(idle_s))
            .reclaim(reclaim);
        (Tier::from(tier), policy)
    };
    let ladder = Ladder::default()
        .watermarks(Watermarks::new(0.65, 0.55)?)
        .caches(PATIENCE)
        .call(CACHE);
    let mut builder = Memory::builder(total_bytes)
        .ladder(ladder)
        .patience(PATIENCE)
        .purge(heap)
        .reclaim_every(seconds(2))
        .sample_every(seconds(1));
    for (tier, policy) in [
        tier(SubscriptionTier::Basic, 0.09, 6, ReclaimPolicy::Discard),
        tier(SubscriptionTier::Premium, 0.18, 8, ReclaimPolicy::Spill),
        tier(SubscriptionTier::Enterprise, 0.45, 12, ReclaimPolicy::Spill),
    ] {
        builder = builder.tier(tier, policy);
    }
    Ok(builder.build()?)
}
