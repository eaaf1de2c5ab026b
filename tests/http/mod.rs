//! A server and its clients on loopback, for tests of whole requests.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use axum::Router;
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{Client, Memory, SubscriptionTier, TieredAllocator};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

pub fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    Memory::new(1 << 30)
}

pub fn client(memory: &Memory, name: &str) -> Client {
    memory.register(name, SubscriptionTier::Premium).unwrap()
}

pub fn by_header(memory: &Memory) -> TenantLayer {
    TenantLayer::from_header(memory, HeaderName::from_static("x-tenant"))
}

pub fn live(client: &Client) -> u64 {
    client.usage().live_bytes
}

/// Serves `router` while `work` runs, and then until every connection is
/// closed: after it nothing of any request is left.
pub fn serve<W: Future>(router: Router, work: impl FnOnce(SocketAddr) -> W) -> W::Output {
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

pub type Connection<B = Full<Bytes>> = SendRequest<B>;

/// Closed when it is dropped and what was asked for has been answered or
/// dropped, too.
pub async fn connect<B>(at: SocketAddr) -> Connection<B>
where
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let stream = TcpStream::connect(at).await.unwrap();
    let (requests, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// Requests of an HTTP/2 connection: clones of it ask at once.
pub type Multiplexed<B = Full<Bytes>> = http2::SendRequest<B>;

/// As `connect`, with HTTP/2 from the first byte.
pub async fn connect_http2<B>(at: SocketAddr) -> Multiplexed<B>
where
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(at).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (requests, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    requests
}

pub fn request<B>(tenant: &str, path: &str, body: B) -> Request<B> {
    Request::post(path)
        .header("host", "localhost")
        .header("x-tenant", tenant)
        .body(body)
        .unwrap()
}

pub fn ask(tenant: &str, path: &str) -> Request<Full<Bytes>> {
    request(tenant, path, Full::default())
}

pub async fn send(connection: &mut Connection, request: Request<Full<Bytes>>) -> Response<Bytes> {
    connection.ready().await.unwrap();
    let (head, body) = connection.send_request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// Sends when it is dropped.
pub struct OnDrop(Option<oneshot::Sender<()>>);

impl OnDrop {
    pub fn new() -> (OnDrop, oneshot::Receiver<()>) {
        let (dropped, seen) = oneshot::channel();
        (OnDrop(Some(dropped)), seen)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.take().map(|dropped| dropped.send(()));
    }
}

/// For a handler that takes it once.
pub fn once<T>(value: T) -> Arc<Mutex<Option<T>>> {
    Arc::new(Mutex::new(Some(value)))
}

pub fn take<T>(once: &Mutex<Option<T>>) -> T {
    once.lock().unwrap().take().expect("it is taken once")
}

/// A body of the pieces that are sent to it.
pub struct Pieces(mpsc::Receiver<Bytes>);

impl Pieces {
    pub fn new() -> (mpsc::Sender<Bytes>, Pieces) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Pieces(receiver))
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.0.poll_recv(context);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A body whose pieces `make` makes in its polls.
pub fn made<F>(make: F) -> axum::body::Body
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Vec<u8>>> + Unpin + Send + 'static,
{
    axum::body::Body::new(Made(make))
}

struct Made<F>(F);

impl<F> Body for Made<F>
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Vec<u8>>> + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = (self.0)(context);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece.into()))))
    }
}
