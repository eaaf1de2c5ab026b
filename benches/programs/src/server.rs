//! A web server and its clients in one process, over the loopback device (axum
//! on tokio, two workers): JSON in, a session looked up and changed, JSON out.

use crate::heap;
use crate::random::{Random, mix};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

const CONNECTIONS: usize = 8;

#[derive(Serialize, Deserialize)]
struct Request {
    user: String,
    items: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Response {
    user: String,
    cart: Vec<String>,
    total: usize,
}

type Sessions = Arc<Mutex<HashMap<String, Vec<String>>>>;

async fn add(State(sessions): State<Sessions>, Json(request): Json<Request>) -> Json<Response> {
    let mut sessions = sessions.lock().unwrap();
    let cart = sessions.entry(request.user.clone()).or_default();
    if cart.len() > 20 {
        cart.clear();
    }
    cart.extend(request.items);
    Json(Response {
        user: request.user,
        total: cart.iter().map(String::len).sum(),
        cart: cart.clone(),
    })
}

/// One connection: a request at a time, for users of its own.
async fn ask(at: std::net::SocketAddr, number: usize, requests: usize) -> u64 {
    let mut stream = BufReader::new(TcpStream::connect(at).await.unwrap());
    let mut random = Random(0xA5 + number as u64);
    let mut sum = 0;
    for _ in 0..requests {
        let request = Request {
            user: format!("user-{number}-{}", random.below(200)),
            items: (0..1 + random.below(5)).map(|_| random.text(2)).collect(),
        };
        let body = serde_json::to_string(&request).unwrap();
        let head = format!(
            "POST /add HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all((head + body.as_str()).as_bytes())
            .await
            .unwrap();
        let mut len = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.strip_prefix("content-length: ") {
                len = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.unwrap();
        let response: Response = serde_json::from_slice(&body).unwrap();
        assert_eq!(response.user, request.user);
        sum = mix(sum, (response.total + response.cart.len()) as u64);
    }
    sum
}

pub fn run(requests: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        // The thread is the program's until it ends.
        .on_thread_start(|| std::mem::forget(heap::enter()))
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/add", post(add))
            .with_state(Sessions::default());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| tokio::spawn(ask(at, number, requests / CONNECTIONS)))
            .collect();
        let mut sum = 0;
        for client in clients {
            sum = mix(sum, client.await.unwrap());
        }
        sum
    })
}
