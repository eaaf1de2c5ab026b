//! The tenants' scripts: an embedded engine, a fresh one for each request.
//!
//! The engine's own limits bound what one step may take; the tenant's quota
//! bounds what a script holds altogether. Between two operations there is a
//! safe point, where a tenant over its quota is stopped.

use rhai::{Dynamic, Engine, EvalAltResult};
use std::cell::RefCell;
use std::rc::Rc;
use tiered_allocator::{Client, QuotaExceeded};

const STRING_BYTES: usize = 64 << 10;
const ARRAY_ITEMS: usize = 4096;
const MAP_ITEMS: usize = 1024;
const CALLS_DEEP: usize = 32;
const OPERATIONS: u64 = 20_000_000;

/// Text that nobody ever reads: what `emit` is called with is kept until the
/// script ends. Only the quota ends this one.
pub(crate) const FLOOD: &str = r#"
    let line = "";
    line.pad(8192, '#');
    let n = 0;
    loop {
        for i in 0..40 { n += i; }
        emit(line);
    }"#;

/// Counts the primes below 400: 78.
pub(crate) const PRIMES: &str = "
    let count = 0;
    for n in 2..400 {
        let is_prime = true;
        for d in 2..n {
            if d * d > n { break; }
            if n % d == 0 { is_prime = false; break; }
        }
        if is_prime { count += 1; }
    }
    emit(count.to_string());";

/// How a script ended early.
#[derive(Debug)]
pub(crate) enum Stopped {
    OverQuota(QuotaExceeded),
    Failed(String),
}

/// Runs a script in the scope of the caller; answers what it emitted.
pub(crate) fn run(client: &Client, script: &str) -> Result<Vec<String>, Stopped> {
    let emitted = Rc::new(RefCell::new(Vec::new()));
    let mut engine = Engine::new();
    engine
        .set_max_string_size(STRING_BYTES)
        .set_max_array_size(ARRAY_ITEMS)
        .set_max_map_size(MAP_ITEMS)
        .set_max_call_levels(CALLS_DEEP)
        .set_max_operations(OPERATIONS);
    let output = Rc::clone(&emitted);
    engine.register_fn("emit", move |text: &str| {
        output.borrow_mut().push(text.to_owned());
    });
    engine.on_print(|_| {}).on_debug(|_, _, _| {});
    let client = client.clone();
    engine.on_progress(move |_| client.checkpoint().err().map(Dynamic::from));
    engine.run(script).map_err(|error| match *error {
        EvalAltResult::ErrorTerminated(token, _) if token.is::<QuotaExceeded>() => {
            Stopped::OverQuota(token.cast())
        }
        other => Stopped::Failed(other.to_string()),
    })?;
    drop(engine);
    Ok(emitted.take())
}
