//! The server over a real socket: who may do what, and what bad input is told.

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tiered_allocator::TieredAllocator;
use tiered_allocator_server::{App, Options};
use tokio::net::TcpListener;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

/// No answer takes this long.
const ENOUGH: Duration = Duration::from_secs(300);

struct Server {
    app: Arc<App>,
    address: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Without load of its own: it does what the test asks for.
    fn start() -> Server {
        assert!(TieredAllocator::is_installed());
        let options = Options {
            load: false,
            ..Options::default()
        };
        let app = App::new(&options, &HEAP).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&app);
        let thread = std::thread::spawn(move || {
            runtime.block_on(served.serve(listener)).unwrap();
        });
        Server {
            app,
            address,
            thread: Some(thread),
        }
    }

    /// The answer's status, headers and body, with these headers sent.
    fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
        let (status, head, body) = self.ask_for_bytes(line, headers, body);
        (status, head, String::from_utf8_lossy(&body).into_owned())
    }

    fn ask_for_bytes(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String, Vec<u8>) {
        let mut text = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        let mut answer = Vec::new();
        // A server that refuses a body may close before it has read it, or
        // before all of it was sent. Without an answer the test fails below.
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.expect("an answer") + 4);
        let head = String::from_utf8(answer).unwrap();
        let status = head[9..12].parse().unwrap();
        (status, head.to_ascii_lowercase(), body)
    }

    fn operate(&self, path: &str, body: Value) -> (u16, Value) {
        let token = format!("Bearer {}", self.app.token());
        let headers = [
            ("Authorization", token.as_str()),
            ("Content-Type", "application/json"),
        ];
        let (status, _, body) = self.ask(&format!("POST {path}"), &headers, &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn job(&self, tenant: &str, path: &str, body: Value) -> (u16, Value) {
        let headers = [("X-Tenant", tenant), ("Content-Type", "application/json")];
        let (status, _, body) = self.ask(&format!("POST {path}"), &headers, &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn tenant(&self, name: &str) -> Value {
        // What a thread has noticed is in the next message.
        let mut told = self.told();
        let tenants = told["tenants"].take();
        let tenant = |tenants: &Value| {
            let tenants = tenants.as_array()?;
            tenants
                .iter()
                .find(|tenant| tenant["name"] == name)
                .cloned()
        };
        tenant(&tenants).unwrap()
    }

    /// The first message that begins after this call.
    fn told(&self) -> Value {
        let state = || {
            let (status, _, body) = self.ask("GET /api/state", &[], "");
            assert_eq!(status, 200);
            serde_json::from_str::<Value>(&body).unwrap_or_default()
        };
        let before = state()["at_ms"].clone();
        loop {
            let now = state();
            if now["at_ms"] != before && !now["at_ms"].is_null() {
                return now;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn nothing_is_changed_without_the_token() {
    let server = Server::start();
    let body = json!({ "running": true }).to_string();
    let json = ("Content-Type", "application/json");
    let right = format!("Bearer {}", server.app.token());
    let almost = &right[..right.len() - 1];
    for authorization in [None, Some("Bearer x"), Some("Bearer "), Some(almost)] {
        let mut headers = vec![json];
        headers.extend(authorization.map(|value| ("Authorization", value)));
        let (status, head, answer) = server.ask("POST /api/hostile", &headers, &body);
        assert_eq!(status, 401, "{authorization:?}");
        assert!(head.contains("www-authenticate: bearer"));
        assert!(answer.contains("unauthorized"));
    }
    // Nor with a token where addresses are logged, nor by a link.
    let in_query = format!("POST /api/hostile?token={}", server.app.token());
    assert_eq!(server.ask(&in_query, &[json], &body).0, 401);
    let authorized = [json, ("Authorization", right.as_str())];
    assert_eq!(server.ask("GET /api/hostile", &authorized, "").0, 405);
    assert_eq!(server.told()["hostile"], false);

    assert_eq!(server.ask("POST /api/hostile", &authorized, &body).0, 204);
    assert_eq!(server.told()["hostile"], true);
}

#[test]
fn other_sites_and_other_names_are_turned_away() {
    let server = Server::start();
    let token = format!("Bearer {}", server.app.token());
    let own = format!("http://{}", server.address);
    let post = |origin: (&str, &str)| {
        let headers = [
            ("Authorization", token.as_str()),
            ("Content-Type", "application/json"),
            origin,
        ];
        server
            .ask("POST /api/hostile", &headers, r#"{"running":false}"#)
            .0
    };
    assert_eq!(post(("Origin", &own)), 204);
    assert_eq!(post(("Origin", "http://evil.example")), 403);
    assert_eq!(post(("Origin", "null")), 403);
    assert_eq!(post(("Sec-Fetch-Site", "cross-site")), 403);
    assert_eq!(post(("Host", "evil.example")), 421);
    assert_eq!(server.ask("GET /", &[("Host", "evil.example")], "").0, 421);
    let (status, head, _) = server.ask("GET /", &[], "");
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"));
    assert!(!head.contains("unsafe-inline"));
}

#[test]
fn a_tenant_changes_its_tier_and_limits_and_bad_ones_change_nothing() {
    const MIB: u64 = 1 << 20;
    let server = Server::start();
    let tier = "/api/tenants/shop/tier";
    let limits = "/api/tenants/shop/limits";
    let before = server.tenant("shop");
    let usable = server.told()["usable"].as_u64().unwrap();

    for (path, body, status, code) in [
        (tier, json!({ "tier": "Gold" }), 422, "unknown_tier"),
        (tier, json!({}), 422, "bad_input"),
        (
            tier,
            json!({ "tier": "Basic", "more": 1 }),
            422,
            "bad_input",
        ),
        (
            "/api/tenants/nobody/tier",
            json!({ "tier": "Basic" }),
            404,
            "unknown_tenant",
        ),
        (limits, json!({ "max_bytes": 1 }), 422, "out_of_range"),
        (
            limits,
            json!({ "max_bytes": usable + 1 }),
            422,
            "out_of_range",
        ),
        (limits, json!({ "max_bytes": -1 }), 422, "bad_input"),
        (
            limits,
            json!({ "max_bytes": MIB, "guarantee_bytes": 2 * MIB }),
            409,
            "does_not_fit",
        ),
        (
            limits,
            json!({ "max_bytes": usable, "guarantee_bytes": usable }),
            409,
            "does_not_fit",
        ),
        ("/api/nothing", json!({}), 404, "not_found"),
    ] {
        let (answered, answer) = server.operate(path, body.clone());
        assert_eq!(answered, status, "{path} {body}");
        assert_eq!(answer["error"]["code"], code, "{path} {body}");
    }
    let after = server.tenant("shop");
    for figure in ["tier", "max", "guarantee", "own_max"] {
        assert_eq!(after[figure], before[figure], "{figure}");
    }

    assert_eq!(server.operate(tier, json!({ "tier": "Premium" })).0, 204);
    let premium = server.tenant("shop");
    assert_eq!(premium["tier"], "Premium");
    assert_eq!(premium["max"], usable / 5);
    let own = json!({ "max_bytes": 30 * MIB, "guarantee_bytes": 2 * MIB });
    assert_eq!(server.operate(limits, own).0, 204);
    assert_eq!(server.operate(tier, json!({ "tier": "Basic" })).0, 204);
    let own = server.tenant("shop");
    assert_eq!(
        (&own["max"], &own["guarantee"]),
        (&json!(30 * MIB), &json!(2 * MIB))
    );
    assert_eq!(
        server
            .operate(
                limits,
                json!({ "max_bytes": null, "guarantee_bytes": null })
            )
            .0,
        204
    );
    assert_eq!(server.tenant("shop")["max"], usable / 10);
}

#[test]
fn what_a_tenant_sends_is_answered_charged_and_bounded() {
    let server = Server::start();
    let orders = json!([
        { "customer": "a", "cents": 3 },
        { "customer": "b", "cents": 5 },
        { "customer": "a", "cents": 4 },
    ]);
    let (status, sums) = server.job("bank", "/jobs/report", orders);
    assert_eq!(status, 200);
    assert_eq!(sums["a"], json!({ "orders": 2, "cents": 7 }));

    let page = json!({ "key": 1, "bytes": 1 << 20, "keep_ms": 600_000 });
    for from_cache in [false, true] {
        let (status, answer) = server.job("press", "/jobs/page", page.clone());
        assert_eq!((status, &answer["from_cache"]), (200, &json!(from_cache)));
    }
    let press = server.tenant("press");
    assert!(press["live"].as_u64().unwrap() >= 1 << 20);
    assert_eq!(press["answers"], 2);

    let script = json!({ "script": "for n in 0..3 { emit(`${n * n}`); }" });
    let (_, answer) = server.job("shop", "/jobs/script", script);
    assert_eq!(answer["lines"], json!(["0", "1", "4"]));
    let (status, _, text) = server.ask("GET /jobs/feed?chunks=3", &[("X-Tenant", "shop")], "");
    assert_eq!(status, 200);
    assert!(text.contains("2: what is new at shop"));

    let document = json!({ "document": 7, "bytes": 100_000 });
    for _ in 0..2 {
        let (status, answer) = server.job("bank", "/jobs/archive", document.clone());
        assert_eq!((status, &answer["bytes"]), (200, &json!(100_000)));
    }
    assert_eq!(server.tenant("bank")["wrong"], 0);

    for (tenant, path, body, status) in [
        ("nobody", "/jobs/report", json!([]), 404),
        ("bank", "/jobs/report", json!({ "not": "orders" }), 422),
        (
            "bank",
            "/jobs/page",
            json!({ "key": 1, "bytes": 0, "keep_ms": 1 }),
            422,
        ),
        (
            "bank",
            "/jobs/archive",
            json!({ "document": 64, "bytes": 1 }),
            422,
        ),
        (
            "bank",
            "/jobs/script",
            json!({ "script": "this is none" }),
            422,
        ),
        (
            "bank",
            "/jobs/script",
            json!({ "script": "x".repeat(300 << 10) }),
            413,
        ),
    ] {
        assert_eq!(server.job(tenant, path, body).0, status, "{tenant} {path}");
    }
    assert_eq!(
        server
            .ask(
                "POST /jobs/report",
                &[("Content-Type", "application/json")],
                "[]"
            )
            .0,
        400
    );
    let plain = [("X-Tenant", "bank"), ("Content-Type", "text/plain")];
    assert_eq!(server.ask("POST /jobs/report", &plain, "[]").0, 415);
}

#[test]
fn a_tenant_beyond_its_limit_is_stopped_and_its_neighbour_is_not() {
    let server = Server::start();
    let flood = json!({ "script": "let line = \"\"; line.pad(8192, '#'); loop { emit(line); }" });
    let (status, answer) = server.job("mallory", "/jobs/script", flood);
    assert_eq!(status, 429, "{answer}");
    assert_eq!(answer["error"]["code"], "over_quota");
    let mallory = server.tenant("mallory");
    assert_eq!(answer["error"]["figures"]["limit"], mallory["max"]);

    // One byte more than it may have, in one piece: refused before it is had.
    let bytes = mallory["max"].as_u64().unwrap() + 1;
    let (status, answer) = server.job("mallory", "/jobs/block", json!({ "bytes": bytes }));
    assert_eq!(status, 429);
    assert_eq!(answer["error"]["figures"]["requested"], bytes);

    let told = server.told();
    assert_eq!(told["overdrawn"], 0, "nothing is left of it");
    let mallory = server.tenant("mallory");
    assert_eq!(mallory["stopped"], 2);
    assert!(mallory["cancelled"].as_u64().unwrap() >= 1);
    assert!(mallory["live"].as_u64().unwrap() < 1 << 20);
    assert_eq!(server.job("shop", "/jobs/report", json!([])).0, 200);
    assert_eq!(server.tenant("shop")["refusals"], 0);
}

#[test]
fn the_stream_begins_with_the_past_goes_on_and_ends_with_the_server() {
    let server = Server::start();
    server.told();
    let mut stream = TcpStream::connect(server.address).unwrap();
    write!(stream, "GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut piece = [0; 4096];
    while text.matches("event: state").count() < 3 {
        let read = stream.read(&mut piece).unwrap();
        assert_ne!(read, 0, "the stream ended by itself");
        text += &String::from_utf8_lossy(&piece[..read]);
    }
    assert!(text.contains("content-type: text/event-stream"));
    let past = text.find("event: past").unwrap();
    assert!(past < text.find("event: state").unwrap());
    drop(server);
    // To the end: nobody waits for a reader that stays.
    stream.read_to_end(&mut Vec::new()).unwrap();
}

/// The only test that takes a profile: there is one at a time in a process.
#[test]
fn a_heap_profile_is_started_once_shown_by_tenant_and_only_to_the_operator() {
    let server = Server::start();
    let token = format!("Bearer {}", server.app.token());
    let authorized = [("Authorization", token.as_str())];
    let running = |running: bool| server.operate("/api/profile", json!({ "running": running }));
    let ticket = |form: &str, tenant: Value| {
        let path = format!("/api/profile/{form}/ticket");
        server.operate(&path, json!({ "tenant": tenant }))
    };
    let code = |(status, answer): (u16, Value)| (status, answer["error"]["code"].clone());

    for line in [
        "POST /api/profile",
        "GET /api/profile/flamegraph",
        "GET /api/profile/pprof",
        "POST /api/profile/flamegraph/ticket",
    ] {
        assert_eq!(server.ask(line, &[], "{}").0, 401, "{line}");
    }
    assert_eq!(code(running(false)), (409, json!("no_profile")));
    assert_eq!(
        code(ticket("pprof", Value::Null)),
        (409, json!("no_profile"))
    );
    assert_eq!(
        server.ask("GET /api/profile/flamegraph", &authorized, "").0,
        409
    );

    assert_eq!(running(true).0, 204);
    assert_eq!(code(running(true)), (409, json!("profile_running")));
    assert_eq!(server.told()["profiling"], true);
    for (path, form) in [("tenant=nobody", "pprof"), ("tenant=nobody", "flamegraph")] {
        let line = format!("GET /api/profile/{form}?{path}");
        let (status, _, answer) = server.ask(&line, &authorized, "");
        assert_eq!(status, 404, "{answer}");
        assert!(answer.contains("unknown_tenant"));
    }
    assert_eq!(
        code(ticket("pprof", json!("nobody"))),
        (404, json!("unknown_tenant"))
    );
    assert_eq!(
        code(ticket("poster", Value::Null)),
        (404, json!("not_found"))
    );

    for tenant in ["press", "shop"] {
        for key in 0..4 {
            let page = json!({ "key": key, "bytes": 1 << 20, "keep_ms": 600_000 });
            assert_eq!(server.job(tenant, "/jobs/page", page).0, 200);
        }
    }
    let (status, head, svg) =
        server.ask("GET /api/profile/flamegraph?tenant=press", &authorized, "");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: image/svg+xml"));
    assert!(head.contains("content-security-policy: sandbox allow-scripts; default-src 'none'"));
    let press = titles(&svg);
    let begins = |titles: &[String], name: &str| titles.iter().any(|one| one.starts_with(name));
    assert!(begins(&press, "press ("), "{press:?}");
    assert!(!begins(&press, "shop ("));
    assert!(begins(&press, "tiered_allocator_server::jobs::"));

    // By its address alone, once.
    let (status, issued) = ticket("flamegraph", Value::Null);
    assert_eq!(status, 200);
    let line = format!("GET {}", issued["path"].as_str().unwrap());
    assert!(!line.contains(server.app.token()));
    let (status, _, svg) = server.ask(&line, &[], "");
    assert_eq!(status, 200);
    let all = titles(&svg);
    assert!(begins(&all, "press (") && begins(&all, "shop ("));
    assert_eq!(server.ask(&line, &[], "").0, 404);

    assert_eq!(running(false).0, 204);
    assert_eq!(server.told()["profiling"], false);
    let (status, head, file) =
        server.ask_for_bytes("GET /api/profile/pprof?tenant=shop", &authorized, "");
    assert_eq!(status, 200);
    assert!(head.contains("content-disposition: attachment"));
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    assert_eq!(file[..2], [0x1f, 0x8b]);
}

/// What each part of a flame graph is.
fn titles(svg: &str) -> Vec<String> {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let document = roxmltree::Document::parse_with_options(svg, options).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let titles = document
        .descendants()
        .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title")));
    titles
        .filter_map(|title| Some(title.text()?.to_owned()))
        .collect()
}
