//! `tiered_top` from end to end: another process, its socket, what is drawn.
#![cfg(unix)]

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use tiered_allocator::integrations::snapshot_socket::SnapshotSocket;
use tiered_allocator::{ClientOptions, Limit, Memory, SubscriptionTier, TieredAllocator};
use tiered_allocator_server::top;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const PATH: &str = "TIERED_TOP_TEST_SOCKET";
const MIB: u64 = 1 << 20;

/// Not a test: the process that the test below starts, and watches.
#[test]
fn the_process_that_is_watched() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    assert!(TieredAllocator::is_installed());
    let memory = Memory::new(100 * MIB);
    let options = ClientOptions::new(SubscriptionTier::Premium)
        .max(Limit::Bytes(8 * MIB))
        .guarantee(Limit::Bytes(2 * MIB));
    let acme = memory.register("acme\x1b[2J", options).unwrap();
    memory.add_client("idle", SubscriptionTier::Basic).unwrap();
    let kept = acme.run(|| vec![1_u8; 4 * MIB as usize]).unwrap();
    assert!(memory.allocate_for_client("idle", 50 << 20).is_err());
    let socket = SnapshotSocket::bind(&memory, path).unwrap();
    println!("\nlistening");
    // Until the other end is closed.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop((socket, kept));
}

fn drawn(snapshot: &Result<top::Snapshot, String>, width: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, 24)).unwrap();
    terminal
        .draw(|frame| top::draw(frame, "a process", snapshot))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(width.into());
    lines
        .map(|line| line.iter().map(|cell| cell.symbol()).collect())
        .collect()
}

fn line<'lines>(lines: &'lines [String], part: &str) -> &'lines str {
    let found = lines.iter().find(|line| line.contains(part));
    found.unwrap_or_else(|| panic!("no {part} in\n{}", lines.join("\n")))
}

#[test]
fn another_processes_figures_are_read_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("watched.sock");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_watched", "--nocapture"])
        .env(PATH, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let listens = output.any(|line| line.unwrap() == "listening");
    assert!(listens, "the other process did not come so far");

    let lines = drawn(&top::fetch(&path).map_err(|error| error.to_string()), 120);
    // Half of the limit: a quarter guaranteed, a quarter borrowed.
    let acme = line(&lines, "acme");
    assert!(acme.contains("acme?[2J"), "{acme}");
    let quarter = acme.matches('=').count();
    assert!(
        quarter > 1 && acme.matches('#').count() == quarter,
        "{acme}"
    );
    assert!(acme.contains("Premium") && acme.contains("8.0"), "{acme}");
    let idle = line(&lines, "idle ");
    assert!(
        idle.trim_end()
            .trim_end_matches('│')
            .trim_end()
            .ends_with('1'),
        "one refusal: {idle}"
    );
    assert!(line(&lines, "of 80.0 MiB").contains("100.0 in all"));
    for rung in [
        "idle blocks",
        "soft limit caches",
        "borrower caches",
        "purge",
        "cancel",
    ] {
        line(&lines, rung);
    }
    // A narrow terminal cuts, and does not fail.
    drawn(&top::fetch(&path).map_err(|error| error.to_string()), 30);

    drop(child.stdin.take());
    output.for_each(drop);
    assert!(child.wait().unwrap().success());
    assert!(top::fetch(&path).is_err(), "nobody listens any more");
}

#[test]
fn who_is_not_there_or_says_something_else_is_an_error_that_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    assert!(top::fetch(Path::new("/nowhere.sock")).is_err());
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || drop(listener.accept()));
    let snapshot = top::fetch(&path).map_err(|error| error.to_string());
    other.join().unwrap();
    assert!(snapshot.is_err());
    line(&drawn(&snapshot, 80), "a process: ");
}
