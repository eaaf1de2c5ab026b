//! HTTP requests over loopback: charged to their tenants to the byte, however
//! they end, and refused with a status that says why.

use axum::Router;

use axum::routing::post;
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serial_test::serial;
use std::future::Future;
use std::net::SocketAddr;
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::new(1 << 30)
}

fn client(memory: &Memory, name: &str) -> Client {
    memory.register(name, SubscriptionTier::Premium).unwrap()
}

fn by_header(memory: &Memory) -> TenantLayer {
    TenantLayer::from_header(memory, HeaderName::from_static("x-tenant"))
}

fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

/// Serves `router` while `work` runs, and then until every connection is closed.
fn serve<W: Future>(router: Router, work: impl FnOnce(SocketAddr) -> W) -> W::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(server.into_future());
        let output = work(at).await;
        drop(stop);
        server.await.unwrap().unwrap();
        output
    })
}

type Connection<B = Full<Bytes>> = SendRequest<B>;

async fn connect<B>(at: SocketAddr) -> Connection<B>
where
    B: hyper::body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static,
{
    let stream = TcpStream::connect(at).await.unwrap();
    let (requests, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    requests
}

fn request(tenant: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "localhost")
        .header("x-tenant", tenant)
        .body(Full::new(body.into()))
        .unwrap()
}

async fn send(connection: &mut Connection, request: Request<Full<Bytes>>) -> Response<Bytes> {
    connection.ready().await.unwrap();
    let (head, body) = connection.send_request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

#[test]
#[serial]
fn tenants_that_take_turns_on_a_connection_pay_for_their_own_requests() {
    let memory = memory();
    let tenants = ["a", "b"].map(|name| client(&memory, name));
    let others = tenants.clone();
    let handler = post(move |body: Bytes| async move {
        let current = Client::current().unwrap();
        let other = others.iter().find(|client| **client != current).unwrap();
        assert_eq!(live(other), 0);
        let before = live(&current);
        let scratch = vec![0_u8; body.len()];
        assert_eq!(live(&current) - before, scratch.len() as u64);
        assert!(before >= body.len() as u64, "the body is charged, too");
        format!("{} {}", current.name().unwrap(), body.len())
    });
    let router = Router::new()
        .route("/size", handler)
        .layer(by_header(&memory));
    serve(router, async |at| {
        let mut connection = connect(at).await;
        for round in 0..20 {
            let name = ["a", "b"][round % 2];
            let body = vec![b'x'; 1000 * (round + 1)];
            let answer = send(&mut connection, request(name, "/size", body)).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.body(), &format!("{name} {}", 1000 * (round + 1)));
        }
    });
    for tenant in &tenants {
        assert_eq!(live(tenant), 0);
        assert_eq!(tenant.usage().refusals, 0);
        assert!(tenant.usage().total_bytes > 200_000);
    }
}
