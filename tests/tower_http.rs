//! HTTP requests over loopback are charged to their tenants to the byte,
//! however they end.

mod http;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::post;
use bytes::Bytes;
use http::{Connection, OnDrop, Pieces};
use http::{ask, by_header, client, connect, live, made, memory, once, request, send, serve, take};
use http_body_util::{BodyExt, Full};
use serial_test::serial;
use std::future::pending;
use std::panic::resume_unwind;
use std::task::Poll;
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{Client, TieredAllocator};
use tokio::sync::{mpsc, oneshot};
use tower_http::catch_panic::CatchPanicLayer;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[test]
#[serial]
fn tenants_that_take_turns_on_a_connection_pay_for_their_own_requests() {
    let memory = memory();
    let tenants = ["a", "b"].map(|name| client(&memory, name));
    let others = tenants.clone();
    let handler = post(move |request: Request| async move {
        // Kept for what it may hold of the connection's: see `Conn::cached_headers`
        // in hyper, the table of the last response's headers.
        let (_parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let current = Client::current().unwrap();
        let other = others.iter().find(|client| **client != current).unwrap();
        assert_eq!(live(other), 0);
        let before = live(&current);
        assert!(before >= body.len() as u64, "the body is charged, too");
        let scratch = vec![0_u8; body.len()];
        assert_eq!(live(&current) - before, scratch.len() as u64);
        format!("{} {}", current.name().unwrap(), body.len())
    });
    let router = Router::new()
        .route("/size", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        for round in 0..20 {
            let name = ["a", "b"][round % 2];
            let size = 1000 * (round + 1);
            let body = Full::from(vec![b'x'; size]);
            let answer = send(&mut connection, request(name, "/size", body)).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.body(), &format!("{name} {size}"));
        }
    });
    for tenant in &tenants {
        assert_eq!(live(tenant), 0);
        assert_eq!(tenant.usage().refusals, 0);
        assert!(tenant.usage().total_bytes > 200_000);
    }
}

#[test]
#[serial]
fn pieces_of_a_streamed_request_are_charged_as_they_are_read() {
    const SIZES: [usize; 5] = [1, 700, 5000, 64, 40_000];
    let memory = memory();
    let tenant = client(&memory, "reader");
    let (read, mut reads) = mpsc::channel(1);
    let handler = post(move |mut body: Body| async move {
        let mut pieces = Vec::with_capacity(1000);
        let before = live(&Client::current().unwrap());
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            bytes += piece.len();
            pieces.push(piece);
            assert_eq!(live(&Client::current().unwrap()) - before, bytes as u64);
            read.send(bytes).await.unwrap();
        }
        let sum = pieces.iter().map(Bytes::len).sum::<usize>();
        sum.to_string()
    });
    let router = Router::new()
        .route("/sum", handler)
        .layer(by_header(&memory));
    let answer = serve(router, async |at| {
        let mut connection: Connection<Pieces> = connect(at).await;
        let (pieces, body) = Pieces::new();
        let answer = connection.send_request(request("reader", "/sum", body));
        let answer = tokio::spawn(answer);
        let mut sent = 0;
        for size in SIZES {
            pieces.send(vec![b'x'; size].into()).await.unwrap();
            sent += size;
            // The next one goes out when this one was read whole.
            while reads.recv().await.unwrap() < sent {}
        }
        drop(pieces);
        let answer = answer.await.unwrap().unwrap().into_body();
        answer.collect().await.unwrap().to_bytes()
    });
    assert_eq!(answer, SIZES.iter().sum::<usize>().to_string());
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn pieces_that_a_task_of_the_service_reads_are_charged_to_the_tenant() {
    let memory = memory();
    let tenant = client(&memory, "reader");
    let payer = tenant.clone();
    let handler = post(move |mut body: Body| async move {
        let reader = tokio::spawn(async move {
            assert!(Client::current().is_none());
            let before = live(&payer);
            let piece = body.frame().await.unwrap().unwrap();
            (live(&payer) - before, piece.data_ref().unwrap().len())
        });
        let (charged, read) = reader.await.unwrap();
        format!("{charged} {read}")
    });
    let router = Router::new()
        .route("/read", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let body = Full::from(vec![b'x'; 900]);
        let answer = send(&mut connection, request("reader", "/read", body)).await;
        assert_eq!(answer.body(), "900 900");
    });
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_streamed_response_is_made_in_the_tenants_scope_and_freed_when_it_is_sent() {
    let memory = memory();
    let tenant = client(&memory, "writer");
    let payer = tenant.clone();
    let handler = post(move || async move {
        let mut left = 100;
        made(move |_| {
            assert_eq!(Client::current().as_ref(), Some(&payer));
            left -= 1;
            Poll::Ready((left >= 0).then(|| vec![b'y'; 10_000]))
        })
    });
    let router = Router::new()
        .route("/stream", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let answer = send(&mut connection, ask("writer", "/stream")).await;
        assert_eq!(answer.body().len(), 1_000_000);
        // The connection is open, and what it keeps is its own.
        assert_eq!(
            send(&mut connection, ask("nobody", "/")).await.status(),
            404
        );
        assert_eq!(live(&tenant), 0);
    });
    assert!(tenant.usage().total_bytes >= 1_000_000);
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_client_that_goes_away_in_mid_request_leaves_nothing() {
    let memory = memory();
    let tenant = client(&memory, "gone");
    let (holds, held) = oneshot::channel();
    let (guard, dropped) = OnDrop::new();
    let once = once((holds, guard));
    let handler = post(move || async move {
        let (holds, guard) = take(&once);
        let kept = vec![0_u8; 300_000];
        holds.send(()).unwrap();
        pending::<()>().await;
        drop((kept, guard));
    });
    let router = Router::new()
        .route("/wait", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let answer = tokio::spawn(connection.send_request(ask("gone", "/wait")));
        held.await.unwrap();
        assert!(live(&tenant) >= 300_000);
        answer.abort();
        drop(connection);
        dropped.await.unwrap();
    });
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_client_that_goes_away_in_mid_upload_leaves_nothing() {
    let memory = memory();
    let tenant = client(&memory, "gone");
    let (holds, held) = oneshot::channel();
    let (guard, dropped) = OnDrop::new();
    let once = once((holds, guard));
    let handler = post(move |mut body: Body| async move {
        let (holds, guard) = take(&once);
        let first = body.frame().await.unwrap().unwrap();
        holds.send(first.data_ref().unwrap().len()).unwrap();
        let _second = body.frame().await;
        drop((first, guard));
    });
    let router = Router::new()
        .route("/upload", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection: Connection<Pieces> = connect(at).await;
        let (pieces, body) = Pieces::new();
        let answer = connection.send_request(request("gone", "/upload", body));
        let answer = tokio::spawn(answer);
        pieces.send(vec![b'x'; 2000].into()).await.unwrap();
        let first = held.await.unwrap() as u64;
        assert!(first > 0 && live(&tenant) >= first);
        answer.abort();
        drop((pieces, connection));
        dropped.await.unwrap();
    });
    assert_eq!(live(&tenant), 0);
}

#[test]
#[serial]
fn a_client_that_goes_away_in_mid_response_leaves_nothing() {
    let memory = memory();
    let tenant = client(&memory, "gone");
    let (guard, dropped) = OnDrop::new();
    let once = once(guard);
    let handler = post(move || async move {
        let guard = take(&once);
        made(move |_| {
            let _ = &guard;
            Poll::Ready(Some(vec![b'y'; 100_000]))
        })
    });
    let router = Router::new()
        .route("/endless", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        let answer = connection.send_request(ask("gone", "/endless")).await;
        let mut answer = answer.unwrap().into_body();
        answer.frame().await.unwrap().unwrap();
        assert!(live(&tenant) > 0);
        drop((answer, connection));
        dropped.await.unwrap();
    });
    assert_eq!(live(&tenant), 0);
}

/// Panics with a payload of the tenant's, and no hook: the default one keeps
/// symbols for good.
async fn panics(body: Bytes) -> String {
    let kept = vec![0_u8; 50_000];
    if body.is_empty() {
        resume_unwind(Box::new(format!("{} bytes", kept.len())));
    }
    format!("{}", Client::current().unwrap().name().unwrap())
}

#[test]
#[serial]
fn a_handler_that_panics_breaks_its_connection_and_nothing_else() {
    let memory = memory();
    let (bad, good) = (client(&memory, "bad"), client(&memory, "good"));
    let router = Router::new()
        .route("/", post(panics))
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut other = connect(at).await;
        for _ in 0..3 {
            let mut connection = connect(at).await;
            let answer = connection.send_request(ask("bad", "/")).await;
            assert!(answer.is_err());
            let answer = send(&mut other, request("good", "/", "go".into())).await;
            assert_eq!(answer.body(), "good");
        }
    });
    assert_eq!((live(&bad), live(&good)), (0, 0));
}

#[test]
#[serial]
fn a_panic_that_is_caught_outside_or_inside_the_layer_leaves_the_connection_usable() {
    let memory = memory();
    let (bad, good) = (client(&memory, "bad"), client(&memory, "good"));
    let route = || Router::new().route("/", post(panics));
    let outside = route()
        .layer(by_header(&memory))
        .layer(CatchPanicLayer::new());
    let inside = route()
        .layer(CatchPanicLayer::new())
        .layer(by_header(&memory));
    for router in [outside, inside] {
        serve(router, async |at| {
            let mut connection = connect(at).await;
            for _ in 0..3 {
                let answer = send(&mut connection, ask("bad", "/")).await;
                assert_eq!(answer.status(), 500);
                let answer = send(&mut connection, request("good", "/", "go".into())).await;
                assert_eq!(answer.body(), "good");
                assert_eq!(live(&bad), 0);
            }
        });
        assert_eq!((live(&bad), live(&good)), (0, 0));
    }
}

#[test]
#[serial]
fn services_of_hyper_alone_take_the_layer_too() {
    use ::http::{Request, Response};
    use hyper_util::rt::TokioIo;
    use tiered_allocator::integrations::tower::RequestBody;
    use tower_layer::Layer;
    use tower_service::Service;

    #[derive(Clone)]
    struct Echo;

    impl Service<Request<RequestBody<hyper::body::Incoming>>> for Echo {
        type Response = Response<Full<Bytes>>;
        type Error = std::convert::Infallible;
        type Future =
            std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<RequestBody<hyper::body::Incoming>>) -> Self::Future {
            let payer = Client::current().unwrap();
            Box::pin(async move {
                assert_eq!(Client::current(), Some(payer));
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Ok(Response::new(Full::new(body)))
            })
        }
    }

    let memory = memory();
    let tenant = client(&memory, "acme");
    let service = TenantLayer::from_path_segment(&memory, 1).layer(Echo);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(move |request| service.clone().call(request));
            let connection = hyper::server::conn::http1::Builder::new();
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            connection.await.unwrap();
        };
        let work = async {
            let mut connection = connect(at).await;
            let answer = send(
                &mut connection,
                request("", "/t/acme/echo", Full::from(vec![b'z'; 3000])),
            )
            .await;
            assert_eq!(answer.body(), &vec![b'z'; 3000]);
        };
        tokio::join!(server, work);
    });
    assert_eq!(live(&tenant), 0);
    assert!(tenant.usage().total_bytes >= 3000);
}
