//! What a request is told that is not served: whose it is, why not, and when
//! to come again.

mod http;

use ::http::request::Parts;
use ::http::{Response, StatusCode};
use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::{ask, by_header, client, connect, live, made, memory, request, send, serve};
use http_body_util::{BodyExt, Full};
use serial_test::serial;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tiered_allocator::integrations::tower::{Fallback, Refused, RequestBody, TenantLayer};
use tiered_allocator::{Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tokio::sync::mpsc;
use tower_layer::Layer;
use tower_service::Service;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const KIB: u64 = 1 << 10;

fn small(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(max));
    memory.register(name, options).unwrap()
}

async fn who() -> String {
    let name = Client::current().and_then(|client| client.name());
    name.map_or_else(|| "nobody".to_owned(), |name| name.to_string())
}

/// What the path `/t/acme/who` is answered, asked by the header's tenant.
fn told(layer: TenantLayer, tenant: &'static str) -> Response<Bytes> {
    let router = Router::new().route("/t/{tenant}/who", post(who));
    serve(router.layer(layer), async |at| {
        let mut connection = connect(at).await;
        let answer = send(&mut connection, ask(tenant, "/t/acme/who")).await;
        let again = send(&mut connection, ask(tenant, "/t/acme/who")).await;
        assert_eq!(again.status(), answer.status(), "the connection is usable");
        answer
    })
}

#[track_caller]
fn is_told(layer: TenantLayer, tenant: &'static str, expected: &str) {
    let answer = told(layer, tenant);
    assert_eq!(
        (answer.status(), &**answer.body()),
        (StatusCode::OK, expected.as_bytes())
    );
}

#[test]
#[serial]
fn the_tenant_is_where_the_layer_looks_for_it() {
    let memory = memory();
    let acme = client(&memory, "acme");
    client(&memory, "other");
    is_told(by_header(&memory), "other", "other");
    is_told(TenantLayer::from_path_segment(&memory, 1), "other", "acme");
    let by_place = TenantLayer::from_name(&memory, |parts: &Parts| parts.uri.path().get(3..7));
    is_told(by_place, "other", "acme");
    let found = acme.clone();
    let by_hand = TenantLayer::from_fn(move |_| Some(found.clone()));
    is_told(by_hand, "other", "acme");
}

#[test]
#[serial]
fn an_outer_layer_that_knows_the_tenant_leaves_it_among_the_extensions() {
    let memory = memory();
    let acme = client(&memory, "acme");
    let router = Router::new()
        .route("/who", post(who))
        .layer(TenantLayer::from_extension())
        .layer(axum::Extension(acme));
    serve(router, async |at| {
        let answer = send(&mut connect(at).await, ask("", "/who")).await;
        assert_eq!(answer.body(), "acme");
    });
    let answer = told(TenantLayer::from_extension(), "acme");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[test]
#[serial]
fn a_request_of_nobody_is_answered_or_passed_through_as_configured() {
    let memory = memory();
    let missing = || TenantLayer::from_path_segment(&memory, 7);
    assert_eq!(told(missing(), "x").status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        told(by_header(&memory), "x").status(),
        StatusCode::NOT_FOUND
    );
    assert!(!told(missing(), "x").headers().contains_key("retry-after"));

    let teapot = Fallback::Answer(StatusCode::IM_A_TEAPOT);
    assert_eq!(told(missing().missing(teapot), "x").status(), 418);
    assert_eq!(told(by_header(&memory).unknown(teapot), "x").status(), 418);
    assert_eq!(told(by_header(&memory).missing(teapot), "x").status(), 404);

    is_told(missing().missing(Fallback::PassThrough), "x", "nobody");
    is_told(
        by_header(&memory).unknown(Fallback::PassThrough),
        "x",
        "nobody",
    );
}

#[test]
#[serial]
fn a_removed_tenant_is_not_found() {
    let memory = memory();
    let gone = client(&memory, "gone");
    memory.remove_client("gone").unwrap();
    assert_eq!(told(by_header(&memory), "gone").status(), 404);
    let by_handle = TenantLayer::from_fn(move |_| Some(gone.clone()));
    assert_eq!(told(by_handle.clone(), "gone").status(), 404);
    assert_eq!(told(by_handle.budget(KIB), "gone").status(), 404);
}

/// Takes as many bytes as the body says, and answers them.
async fn take(body: Bytes) -> Vec<u8> {
    let bytes = std::str::from_utf8(&body).unwrap().parse().unwrap();
    vec![b'z'; bytes]
}

fn number(tenant: &str, path: &str, bytes: u64) -> ::http::Request<Full<Bytes>> {
    request(tenant, path, Full::from(bytes.to_string()))
}

#[test]
#[serial]
fn a_tenant_over_its_quota_is_told_to_come_again() {
    let memory = memory();
    let tenants = [small(&memory, "small", 100 * KIB), client(&memory, "large")];
    let route = || Router::new().route("/take", post(take));
    let patient = by_header(&memory).retry_after(Duration::from_millis(6500));
    for (layer, seconds) in [(by_header(&memory), "1"), (patient, "7")] {
        serve(route().layer(layer), async |at| {
            let mut connection = connect(at).await;
            for _ in 0..3 {
                let answer = send(&mut connection, number("small", "/take", 150 * KIB)).await;
                assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
                assert_eq!(answer.headers()["retry-after"], seconds);
                let text = "the tenant's memory quota of 102400 bytes is used up\n";
                assert_eq!(answer.body(), text);
                // It is over: the same connection serves it, and others.
                for (name, bytes) in [("small", 50 * KIB), ("large", 500 * KIB)] {
                    let answer = send(&mut connection, number(name, "/take", bytes)).await;
                    assert_eq!(answer.status(), StatusCode::OK);
                    assert_eq!(answer.body().len() as u64, bytes);
                }
            }
        });
    }
    assert_eq!(tenants.map(|tenant| live(&tenant)), [0, 0]);
}

#[test]
#[serial]
fn a_tenant_that_is_stopped_while_it_waits_is_told_so() {
    let memory = memory();
    let tenant = small(&memory, "small", 100 * KIB);
    let stopped = Arc::new(Mutex::new(true));
    let ended = Arc::clone(&stopped);
    let handler = post(move || async move {
        let _kept = vec![0_u8; 150 * KIB as usize];
        tokio::task::yield_now().await;
        *ended.lock().unwrap() = false;
    });
    let router = Router::new()
        .route("/wait", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let answer = send(&mut connect(at).await, ask("small", "/wait")).await;
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    });
    assert!(
        *stopped.lock().unwrap(),
        "the handler was dropped where it waited"
    );
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_service_that_works_at_once_is_not_called_for_a_tenant_over_its_quota() {
    struct Called(usize);

    impl Service<::http::Request<RequestBody<Full<Bytes>>>> for Called {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: ::http::Request<RequestBody<Full<Bytes>>>) -> Self::Future {
            self.0 += 1;
            ready(Ok(Response::new(Full::from(format!("{}", self.0)))))
        }
    }

    let memory = memory();
    let tenant = small(&memory, "small", 100 * KIB);
    let mut service = by_header(&memory).layer(Called(0));
    let mut status = async || {
        let answer = service.call(ask("small", "/")).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, body)
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        assert_eq!(status().await, (200, "1".into()));
        let hoard = tenant.run(|| vec![0_u8; 150 * KIB as usize]);
        assert_eq!(status().await.0, 429);
        drop(hoard);
        assert_eq!(status().await, (200, "2".into()));
    });
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn an_upload_beyond_the_quota_is_refused_before_it_is_stored() {
    let memory = memory();
    let tenant = small(&memory, "small", 100 * KIB);
    let length = async |body: Bytes| body.len().to_string();
    let router = Router::new()
        .route("/length", post(length))
        .layer(by_header(&memory));
    serve(router, async |at| {
        // Small enough for the connection to take all of it: the answer may
        // come before the end of the upload, and with it the connection's.
        let upload = Full::from(vec![b'x'; 150 * KIB as usize]);
        let answer = send(&mut connect(at).await, request("small", "/length", upload)).await;
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers()["retry-after"], "1");
        let upload = Full::from(vec![b'x'; 20 * KIB as usize]);
        let answer = send(&mut connect(at).await, request("small", "/length", upload)).await;
        assert_eq!(answer.body(), "20480");
    });
    assert!(tenant.usage().peak_bytes <= 100 * KIB);
    assert!(tenant.usage().refusals >= 1);
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_memory_that_is_used_up_is_not_the_tenants_fault_and_not_its_business() {
    assert!(TieredAllocator::is_installed());
    let memory = Memory::builder(1000 * KIB).usable(0.8).build().unwrap();
    let secretive = small(&memory, "secretive", 790 * KIB);
    let poor = small(&memory, "poor", 400 * KIB);
    let router = Router::new()
        .route("/take", post(take))
        .layer(by_header(&memory));
    let hoard = secretive.run(|| vec![0_u8; 780 * KIB as usize]).unwrap();
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let answer = send(&mut connection, number("poor", "/take", 100 * KIB)).await;
        assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(answer.body(), "the server has no memory to spare\n");
        drop(hoard);
        let answer = send(&mut connection, number("poor", "/take", 100 * KIB)).await;
        assert_eq!(answer.status(), StatusCode::OK);
    });
    assert_eq!((live(&poor), live(&secretive)), (0, 0));
}

#[test]
#[serial]
fn the_host_answers_in_its_own_words_or_leaves_it() {
    let memory = memory();
    small(&memory, "small", 100 * KIB);
    let layer = by_header(&memory).answer(|refused| {
        assert!(Client::current().is_none());
        let Refused::Quota(quota) = refused else {
            return None;
        };
        let body = format!(r#"{{"limit":{}}}"#, quota.limit);
        let answer = Response::builder().status(413);
        answer.body(body.into()).ok()
    });
    let router = Router::new().route("/take", post(take)).layer(layer);
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let answer = send(&mut connection, number("small", "/take", 150 * KIB)).await;
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.body(), r#"{"limit":102400}"#);
        assert_eq!(send(&mut connection, ask("x", "/take")).await.status(), 404);
    });
}

#[test]
#[serial]
fn each_route_has_its_own_budget() {
    let memory = memory();
    let tenant = client(&memory, "acme");
    let narrow = by_header(&memory).budget(50 * KIB);
    let wide = by_header(&memory).budget(500 * KIB);
    let router = Router::new()
        .route("/narrow", post(take).layer(narrow))
        .route("/wide", post(take).layer(wide))
        .route("/open", post(take).layer(by_header(&memory)));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        for (path, bytes, status) in [
            ("/narrow", 40, 200),
            ("/narrow", 60, 429),
            ("/wide", 60, 200),
            ("/wide", 501, 429),
            ("/open", 501, 200),
        ] {
            let answer = send(&mut connection, number("acme", path, bytes * KIB)).await;
            assert_eq!(answer.status(), status, "{path} {bytes}");
            assert_eq!(answer.headers().contains_key("retry-after"), status == 429);
            if path == "/narrow" && status == 429 {
                let text = "the request's memory budget of 51200 bytes is used up\n";
                assert_eq!(answer.body(), text);
            }
        }
    });
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_budget_binds_the_streamed_response_and_ends_with_it() {
    let memory = memory();
    let tenant = client(&memory, "acme");
    let budgets = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&budgets);
    let (read, reads) = mpsc::channel(1);
    let reads = Arc::new(Mutex::new(Some(reads)));
    // Keeps more and more, and makes a piece whenever the last one was read.
    let handler = post(move || async move {
        let budget = Client::current().unwrap();
        tiered_allocator::untracked(|| seen.lock().unwrap().push(budget.clone()));
        let mut reads = reads.lock().unwrap().take().unwrap();
        let mut kept = Vec::with_capacity(1000);
        made(move |context| {
            assert!(budget.is_active());
            assert_eq!(Client::current().as_ref(), Some(&budget));
            if !kept.is_empty() && std::task::ready!(reads.poll_recv(context)).is_none() {
                return Poll::Ready(None);
            }
            kept.push(vec![b'y'; 10 * KIB as usize]);
            Poll::Ready(Some(vec![b'y'; 10]))
        })
    });
    let router = Router::new()
        .route("/stream", handler)
        .layer(by_header(&memory).budget(150 * KIB));
    serve(router, async |at| {
        let answer = connect(at).await.send_request(ask("acme", "/stream")).await;
        let mut answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut bytes = 0;
        while let Ok(piece) = answer.frame().await.expect("it does not end well") {
            bytes += piece.data_ref().unwrap().len();
            let _ = read.send(()).await;
        }
        assert!((100..150).contains(&bytes), "{bytes} bytes");
    });
    let budgets = budgets.lock().unwrap();
    assert_eq!(budgets.len(), 1);
    assert!(budgets.iter().all(|budget| !budget.is_active()));
    assert_eq!(live(&tenant), 0);
}
