//! Requests that share one HTTP/2 connection at the same time are each charged
//! to their own tenant, and the connection to nobody.

mod http;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use http::{Multiplexed, OnDrop, Pieces};
use http::{ask, by_header, client, connect_http2, live, made, memory, once, request, serve, take};
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use serial_test::serial;
use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tiered_allocator::integrations::tower::TenantLayer;
use tiered_allocator::{
    Client, ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator, untracked,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const KIB: u64 = 1 << 10;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// No test waits this long for anything that is going to happen.
const ENOUGH: Duration = Duration::from_secs(600);

fn small(memory: &Memory, name: &str, max: u64) -> Client {
    let options = ClientOptions::new(SubscriptionTier::Basic).max(Limit::Bytes(max));
    memory.register(name, options).unwrap()
}

/// Serves `router` while `work` asks it, all on one connection.
fn on_one_connection<B>(router: Router, work: impl AsyncFnOnce(Multiplexed<B>))
where
    B: hyper::body::Body<Data: Send, Error = Infallible> + Send + Unpin + 'static,
{
    serve(router, async |at| {
        let work = work(connect_http2(at).await);
        timeout(ENOUGH, work).await.expect("waited in vain");
    });
}

/// Waits for the server's tasks to drop what is over, connections being open.
async fn nothing_is_left(tenants: &[Client]) {
    let begun = Instant::now();
    while let Some(left) = tenants.iter().find(|tenant| live(tenant) > 0) {
        let bytes = live(left);
        // Before the work as a whole is given up, which does not say why.
        assert!(
            begun.elapsed() < ENOUGH / 2,
            "{bytes} bytes left at {left:?}"
        );
        tokio::task::yield_now().await;
    }
}

/// What is whose: a channel for each tenant.
fn each<T>(of: impl Fn(&'static str) -> T) -> HashMap<&'static str, T> {
    NAMES.map(|name| (name, of(name))).into()
}

fn current() -> Client {
    Client::current().expect("in a tenant's scope")
}

async fn send(
    connection: &Multiplexed,
    request: ::http::Request<Full<Bytes>>,
) -> ::http::Response<Bytes> {
    let answer = connection.clone().send_request(request).await.unwrap();
    assert_eq!(answer.version(), ::http::Version::HTTP_2);
    let (head, body) = answer.into_parts();
    ::http::Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

#[test]
#[serial]
fn requests_at_once_on_one_connection_are_charged_to_their_own_tenants() {
    const ROUNDS: usize = 8;
    let size = |at: usize, round: usize| 1000 * (at + 1) + 10 * round;
    let sum = |at: usize| (0..ROUNDS).map(|round| size(at, round)).sum::<usize>();
    let memory = memory();
    let tenants = NAMES.map(|name| client(&memory, name));
    let (reads, mut read): (HashMap<_, _>, HashMap<_, _>) = NAMES
        .map(|name| {
            let (sender, receiver) = mpsc::unbounded_channel();
            ((name, sender), (name, receiver))
        })
        .into_iter()
        .unzip();
    let reads = Arc::new(reads);
    let handler = post(move |mut body: Body| {
        let reads = Arc::clone(&reads);
        async move {
            let tenant = current();
            let name = tenant.name().unwrap();
            let mut pieces = Vec::with_capacity(100);
            let before = live(&tenant);
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                bytes += piece.len();
                pieces.push(piece);
                assert_eq!(current(), tenant);
                assert_eq!(live(&tenant) - before, bytes as u64);
                untracked(|| reads[&*name].send(bytes).unwrap());
            }
            pieces.concat()
        }
    });
    let router = Router::new()
        .route("/echo", handler)
        .layer(by_header(&memory));
    on_one_connection(router, async |connection: Multiplexed<Pieces>| {
        let mut uploads = HashMap::new();
        let mut answers = Vec::new();
        for name in NAMES {
            let (pieces, body) = Pieces::new();
            let answer = connection
                .clone()
                .send_request(request(name, "/echo", body));
            answers.push(tokio::spawn(answer));
            uploads.insert(name, pieces);
        }
        let mut sent = each(|_| 0);
        for round in 0..ROUNDS {
            for (at, name) in NAMES.into_iter().enumerate() {
                let piece = vec![name.as_bytes()[0]; size(at, round)];
                uploads[name].send(piece.into()).await.unwrap();
                *sent.get_mut(name).unwrap() += size(at, round);
                while read.get_mut(name).unwrap().recv().await.unwrap() < sent[name] {}
            }
        }
        for (at, tenant) in tenants.iter().enumerate() {
            let held = live(tenant);
            let own = sum(at) as u64;
            assert!((own..own + 8 * KIB).contains(&held), "{tenant:?}: {held}");
        }
        drop(uploads);
        for (at, answer) in answers.into_iter().enumerate() {
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, vec![NAMES[at].as_bytes()[0]; sum(at)]);
        }
        nothing_is_left(&tenants).await;
    });
    for (at, tenant) in tenants.iter().enumerate() {
        assert_eq!(live(tenant), 0);
        // Read once and answered once.
        let made = tenant.usage().total_bytes;
        assert!(made >= 2 * sum(at) as u64, "{tenant:?}: {made}");
        assert!(made <= 2 * sum(at) as u64 + 32 * KIB, "{tenant:?}: {made}");
    }
}

#[test]
#[serial]
fn one_over_its_quota_is_answered_and_the_others_finish() {
    let memory = memory();
    let poor = small(&memory, "poor", 100 * KIB);
    let others = ["a", "b"].map(|name| client(&memory, name));
    let (read, mut reads) = mpsc::unbounded_channel();
    let handler = post(move |mut body: Body| {
        let read = read.clone();
        async move {
            let mut pieces = Vec::with_capacity(100);
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                // Refused to one over its quota, and the answer with it.
                let Ok(frame) = frame else { break };
                let piece = frame.into_data().unwrap();
                bytes += piece.len();
                pieces.push(piece);
                let tenant = current().name().unwrap();
                if &*tenant != "poor" {
                    untracked(|| read.send((tenant, bytes)).unwrap());
                }
            }
            bytes.to_string()
        }
    });
    let router = Router::new()
        .route("/sum", handler)
        .layer(by_header(&memory));
    on_one_connection(router, async |connection: Multiplexed<Pieces>| {
        let begin = |name| {
            let (pieces, body) = Pieces::new();
            let answer = connection.clone().send_request(request(name, "/sum", body));
            (pieces, tokio::spawn(answer))
        };
        let uploads = ["a", "b"].map(begin);
        let mut arrived = HashMap::new();
        for half in 1..=2 {
            for (pieces, _) in &uploads {
                pieces.send(vec![b'x'; 150_000].into()).await.unwrap();
            }
            while arrived.values().sum::<usize>() < half * 300_000 {
                let (tenant, bytes) = reads.recv().await.unwrap();
                arrived.insert(tenant, bytes);
            }
            for _ in 0..3 {
                let (pieces, answer) = begin("poor");
                // Until it is told: nobody takes more of it then.
                let upload = tokio::spawn(async move {
                    while pieces.send(vec![b'x'; 10_000].into()).await.is_ok() {}
                });
                let answer = answer.await.unwrap().unwrap();
                assert_eq!(answer.status(), 429);
                assert_eq!(answer.headers()["retry-after"], "1");
                drop(answer);
                upload.await.unwrap();
                nothing_is_left(std::slice::from_ref(&poor)).await;
            }
        }
        for (pieces, answer) in uploads {
            drop(pieces);
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "300000");
        }
        nothing_is_left(&others).await;
    });
    assert!(poor.usage().refusals >= 6);
    assert_eq!(others.map(|other| other.usage().refusals), [0, 0]);
}

/// Both kinds of attribution: to the tenant, and to a budget for the request.
fn layers(memory: &Memory) -> [TenantLayer; 2] {
    [by_header(memory), by_header(memory).budget(1 << 20)]
}

#[test]
#[serial]
fn a_stream_that_is_reset_in_mid_upload_leaves_nothing() {
    let memory = memory();
    let tenants = ["gone", "stays"].map(|name| client(&memory, name));
    for layer in layers(&memory) {
        let (holds, held) = oneshot::channel();
        let (guard, dropped) = OnDrop::new();
        let once = once((holds, guard));
        let gone = post(move |mut body: Body| async move {
            let (holds, guard) = take(&once);
            let first = body.frame().await.unwrap().unwrap();
            holds.send(first.data_ref().unwrap().len()).unwrap();
            let second = body.frame().await;
            assert!(second.unwrap().is_err());
            drop((first, guard));
        });
        let stays = post(|body: Bytes| async move { body.len().to_string() });
        let router = Router::new()
            .route("/gone", gone)
            .route("/stays", stays)
            .layer(layer);
        on_one_connection(router, async |connection: Multiplexed<Pieces>| {
            let begin = |name, path| {
                let (pieces, body) = Pieces::new();
                let answer = connection.clone().send_request(request(name, path, body));
                (pieces, tokio::spawn(answer))
            };
            let (pieces, answer) = begin("gone", "/gone");
            let (others, other) = begin("stays", "/stays");
            others.send(vec![b'x'; 5000].into()).await.unwrap();
            pieces.send(vec![b'x'; 2000].into()).await.unwrap();
            let first = held.await.unwrap() as u64;
            assert!(first > 0 && live(&tenants[0]) >= first);
            // The answer is given up, and its request is reset.
            answer.abort();
            let _ = dropped.await;
            nothing_is_left(&tenants[..1]).await;
            others.send(vec![b'x'; 5000].into()).await.unwrap();
            drop((pieces, others));
            let body = other.await.unwrap().unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "10000");
            nothing_is_left(&tenants).await;
        });
    }
}

#[test]
#[serial]
fn a_stream_that_is_reset_in_mid_response_leaves_nothing() {
    let memory = memory();
    let tenants = ["gone", "stays"].map(|name| client(&memory, name));
    for layer in layers(&memory) {
        let (guard, dropped) = OnDrop::new();
        let once = once(guard);
        let gone = post(move || async move {
            let guard = take(&once);
            made(move |_| {
                let _ = &guard;
                Poll::Ready(Some(vec![b'y'; 100_000]))
            })
        });
        let stays = post(|body: Bytes| async move { body });
        let router = Router::new()
            .route("/gone", gone)
            .route("/stays", stays)
            .layer(layer);
        on_one_connection(router, async |connection: Multiplexed| {
            let answer = connection.clone().send_request(ask("gone", "/gone")).await;
            let mut answer = answer.unwrap().into_body();
            answer.frame().await.unwrap().unwrap();
            assert!(live(&tenants[0]) > 0);
            drop(answer);
            dropped.await.unwrap();
            nothing_is_left(&tenants[..1]).await;
            let body = Full::from(vec![b'x'; 20_000]);
            let answer = send(&connection, request("stays", "/stays", body)).await;
            assert_eq!(answer.body().len(), 20_000);
            nothing_is_left(&tenants).await;
        });
    }
}

#[test]
#[serial]
fn an_answer_that_goes_over_the_quota_is_reset_and_no_other() {
    let memory = memory();
    let poor = [small(&memory, "poor", 100 * KIB)];
    let other = [client(&memory, "other")];
    let (more, asked) = mpsc::channel(1);
    let asked = once(asked);
    let hoard = post(move || async move {
        let mut asked: mpsc::Receiver<()> = take(&asked);
        let mut hoard = Vec::new();
        made(move |context| {
            let asked = ready!(asked.poll_recv(context));
            hoard.push(vec![0_u8; 30 * KIB as usize]);
            Poll::Ready(asked.map(|()| vec![b'y'; 10]))
        })
    });
    let (pieces, given) = mpsc::channel(1);
    let given = once(given);
    let slow = post(move || async move {
        let mut given: mpsc::Receiver<usize> = take(&given);
        made(move |context| {
            let bytes = ready!(given.poll_recv(context));
            Poll::Ready(bytes.map(|bytes| vec![b'z'; bytes]))
        })
    });
    let router = Router::new()
        .route("/hoard", hoard)
        .route("/slow", slow)
        .layer(by_header(&memory));
    on_one_connection(router, async |connection: Multiplexed| {
        let begin = async |name, path| {
            let answer = connection.clone().send_request(ask(name, path)).await;
            let answer = answer.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body()
        };
        let mut slow = begin("other", "/slow").await;
        pieces.send(40_000).await.unwrap();
        assert!(slow.frame().await.unwrap().is_ok());
        let mut hoard = begin("poor", "/hoard").await;
        let error = loop {
            // Nobody is asked once the body is dropped.
            let _ = more.send(()).await;
            if let Err(error) = hoard.frame().await.unwrap() {
                break error;
            }
        };
        assert!(format!("{error:?}").contains("Reset"), "{error:?}");
        nothing_is_left(&poor).await;
        pieces.send(50_000).await.unwrap();
        drop(pieces);
        let rest = slow.collect().await.unwrap().to_bytes();
        assert!(rest.ends_with(&[b'z'; 50_000]));
        nothing_is_left(&other).await;
    });
    assert_eq!(other[0].usage().refusals, 0);
}

struct Frames(std::vec::IntoIter<Frame<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

/// What the connection's compression of headers remembers of an answer, it
/// remembers for as long as the connection lives.
#[test]
#[serial]
fn headers_and_trailers_of_an_answer_do_not_stay_charged_while_the_connection_lives() {
    let memory = memory();
    let tenants = ["a", "b"].map(|name| client(&memory, name));
    let handler = post(|body: Bytes| async move {
        let text = String::from_utf8(body.to_vec()).unwrap();
        let name = HeaderName::try_from(format!("x-{}", text.to_lowercase())).unwrap();
        let value = HeaderValue::try_from(text.clone()).unwrap();
        let mut trailers = HeaderMap::new();
        let trailer = HeaderName::try_from(format!("{name}-trailer")).unwrap();
        trailers.insert(trailer, value.clone());
        let frames = vec![Frame::data(Bytes::from(text)), Frame::trailers(trailers)];
        ([(name, value)], Body::new(Frames(frames.into_iter())))
    });
    let router = Router::new()
        .route("/named", handler)
        .layer(by_header(&memory));
    on_one_connection(router, async |connection: Multiplexed| {
        for round in 0..3 {
            for name in ["a", "b"] {
                let text = format!("{name}-header-of-round-{round}");
                let request = request(name, "/named", Full::from(text.clone()));
                let answer = connection.clone().send_request(request).await.unwrap();
                assert_eq!(answer.headers()[format!("x-{text}")], text);
                let body = answer.into_body().collect().await.unwrap();
                assert_eq!(body.trailers().unwrap()[format!("x-{text}-trailer")], text);
                assert_eq!(body.to_bytes(), text);
            }
            nothing_is_left(&tenants).await;
        }
    });
}

#[test]
#[serial]
fn a_handler_that_panics_resets_its_stream_and_nothing_else() {
    let memory = memory();
    let tenants = ["bad", "good"].map(|name| client(&memory, name));
    let handler = post(|body: Bytes| async move {
        let kept = vec![0_u8; 50_000];
        if body.is_empty() {
            // No hook: the default one keeps symbols for good.
            resume_unwind(Box::new(format!("{} bytes", kept.len())));
        }
        body
    });
    let router = Router::new().route("/", handler).layer(by_header(&memory));
    on_one_connection(router, async |connection: Multiplexed| {
        for _ in 0..3 {
            let answer = connection.clone().send_request(ask("bad", "/")).await;
            assert!(answer.is_err());
            let answer = send(&connection, request("good", "/", "go".into())).await;
            assert_eq!(answer.body(), "go");
            nothing_is_left(&tenants).await;
        }
    });
}
