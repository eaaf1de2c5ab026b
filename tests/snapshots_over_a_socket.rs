//! Snapshots for other programs: over a socket that only this user can open.
#![cfg(unix)]

use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, read_to_string};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use tiered_allocator::integrations::snapshot_socket::{
    SnapshotSocket, default_directory, default_path,
};
use tiered_allocator::{Memory, SubscriptionTier};

fn read(path: &Path) -> Value {
    let text = read_to_string(UnixStream::connect(path).unwrap()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn each_reader_gets_the_figures_of_the_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory.sock");
    let memory = Memory::new(1 << 30);
    memory
        .add_client("acme", SubscriptionTier::Premium)
        .unwrap();
    let socket = SnapshotSocket::bind(&memory, &path).unwrap();
    assert_eq!(socket.path(), path);

    // Somebody who never reads does not keep the next one waiting for ever.
    let idle = UnixStream::connect(&path).unwrap();
    assert_eq!(read(&path)["clients"][0]["usage"]["block_bytes"], 0);
    let block = memory.allocate_for_client("acme", 123_456).unwrap();
    let snapshot = read(&path);
    assert_eq!(snapshot["clients"][0]["name"], "acme");
    assert_eq!(snapshot["clients"][0]["usage"]["block_bytes"], 123_456);
    assert_eq!(snapshot["memory"]["total_bytes"], 1 << 30);
    drop((idle, block));
}

#[test]
fn only_its_user_may_open_it_and_nothing_is_left_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory.sock");
    let memory = Memory::new(1 << 30);
    let socket = SnapshotSocket::bind(&memory, &path).unwrap();
    let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(socket);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(UnixStream::connect(&path).is_err());
}

#[test]
fn what_is_in_use_stays_and_what_was_left_behind_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory.sock");
    let memory = Memory::new(1 << 30);
    let first = SnapshotSocket::bind(&memory, &path).unwrap();
    let error = SnapshotSocket::bind(&memory, &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert_eq!(read(&path)["memory"]["total_bytes"], 1 << 30);
    drop(first);

    // As a process that was killed leaves it.
    drop(UnixListener::bind(&path).unwrap());
    let second = SnapshotSocket::bind(&memory, &path).unwrap();
    assert_eq!(read(&path)["memory"]["total_bytes"], 1 << 30);

    // What somebody put in its place is theirs.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a letter").unwrap();
    drop(second);
    assert_eq!(fs::read_to_string(&path).unwrap(), "a letter");
    let error = SnapshotSocket::bind(&memory, &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert_eq!(fs::read_to_string(&path).unwrap(), "a letter");
}

#[test]
fn the_default_place_is_the_users_own() {
    let directory = default_directory().unwrap();
    let path = default_path(7).unwrap();
    assert_eq!(path.parent(), Some(&*directory));
    assert_eq!(path.file_name().unwrap(), "7.sock");
}
