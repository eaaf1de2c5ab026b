//! snapshot-socket: a memory's snapshots for other programs of the same user,
//! over a local socket. `tiered_top` reads them.
//!
//! Whoever connects is sent one [`Snapshot`](crate::Snapshot) as JSON, as the
//! feature `serde` writes it, and nothing is read. The file of the socket has
//! mode 0600: only the user that the process runs as can connect. Figures and
//! names of clients are sent, nothing of what they hold.

use crate::client::untracked;
use crate::memory::Memory;
use core::fmt;
use core::time::Duration;
use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Readers are served one after the other; one that does not read for so long
/// makes way for the next.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a memory's snapshots until it is dropped, which removes the file.
///
/// ```
/// use std::io::read_to_string;
/// use std::os::unix::net::UnixStream;
/// use tiered_allocator::integrations::snapshot_socket::SnapshotSocket;
/// use tiered_allocator::Memory;
///
/// # let path = std::env::temp_dir().join(format!("snapshot-doc-{}.sock", std::process::id()));
/// let memory = Memory::new(1 << 30);
/// let socket = SnapshotSocket::bind(&memory, &path)?;
///
/// let snapshot = read_to_string(UnixStream::connect(socket.path())?)?;
/// assert!(snapshot.contains("\"total_bytes\":1073741824"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SnapshotSocket {
    path: PathBuf,
    /// The file's number, so that no other's file is removed.
    file: u64,
    /// The process that listens: in a forked child there is no thread.
    process: u32,
    listener: UnixListener,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SnapshotSocket {
    /// Listens at `path`, on a thread of its own that holds the memory. The
    /// file of a process that ended without removing it is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if another process listens there or the
    /// path is something else than a socket; what the system says if there can
    /// be no socket or no thread. Nothing was changed then.
    pub fn bind(memory: &Memory, path: impl AsRef<Path>) -> io::Result<SnapshotSocket> {
        untracked(|| {
            let path = path.as_ref();
            let listener = listen(path)?;
            let mut socket = SnapshotSocket {
                path: path.to_owned(),
                file: fs::symlink_metadata(path)?.ino(),
                process: std::process::id(),
                listener: listener.try_clone()?,
                stop: Arc::default(),
                thread: None,
            };
            let (memory, stop) = (memory.clone(), Arc::clone(&socket.stop));
            let thread = std::thread::Builder::new().name("tiered-snapshots".to_owned());
            socket.thread = Some(thread.spawn(move || serve(&memory, &listener, &stop))?);
            Ok(socket)
        })
    }

    /// Listens at [`default_path`] of this process, and makes its directory,
    /// for this user alone, if it is not there.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such directory for this user,
    /// and as [`SnapshotSocket::bind`].
    pub fn bind_default(memory: &Memory) -> io::Result<SnapshotSocket> {
        untracked(|| {
            let directory = default_directory().ok_or(io::ErrorKind::NotFound)?;
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => SnapshotSocket::bind(memory, path_in(&directory, std::process::id())),
            }
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory of the sockets that were given no path: in `XDG_RUNTIME_DIR`,
/// or where that is not set, in the user's home. `None` where there is neither.
pub fn default_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match set("XDG_RUNTIME_DIR") {
        Some(runtime) => Some(PathBuf::from(runtime).join("tiered_allocator")),
        None => set("HOME").map(|home| PathBuf::from(home).join(".tiered_allocator")),
    }
}

/// Where the process of this number listens if it was given no path.
pub fn default_path(process: u32) -> Option<PathBuf> {
    default_directory().map(|directory| path_in(&directory, process))
}

fn path_in(directory: &Path, process: u32) -> PathBuf {
    directory.join(format!("{process}.sock"))
}

/// A listener whose file nobody else may open, from the first moment on: it is
/// made under another name, and gets its own when its mode is right.
fn listen(path: &Path) -> io::Result<UnixListener> {
    make_way(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let listener = UnixListener::bind(&new)?;
    let made = fs::set_permissions(&new, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::hard_link(&new, path));
    let removed = fs::remove_file(&new);
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::ErrorKind::AddrInUse.into(),
        _ => error,
    })?;
    removed?;
    Ok(listener)
}

/// Removes a socket that nobody listens to any more.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if !file.file_type().is_socket() => Err(io::ErrorKind::AddrInUse.into()),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(error) => Err(error),
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
    }
}

fn serve(memory: &Memory, listener: &UnixListener, stop: &AtomicBool) {
    untracked(|| {
        while !stop.load(Ordering::Acquire) {
            // A reader that went away or is too slow is its own affair; a
            // process without a descriptor to spare has one again some day.
            match listener.accept() {
                Ok((reader, _)) => drop(answer(memory, reader)),
                Err(_) => std::thread::yield_now(),
            }
        }
    });
}

fn answer(memory: &Memory, mut reader: UnixStream) -> io::Result<()> {
    reader.set_write_timeout(Some(PATIENCE))?;
    let text = serde_json::to_vec(&memory.snapshot())?;
    reader.write_all(&text)
}

impl SnapshotSocket {
    fn is_own_file(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.file)
    }

    /// Wakes the thread out of its `accept`, in the two ways that there are:
    /// Linux ends the call, elsewhere somebody has to come.
    fn wake(&self) -> bool {
        let listener = self.listener.try_clone().map(OwnedFd::from);
        let ended = listener.and_then(|fd| UnixStream::from(fd).shutdown(Shutdown::Both));
        ended.is_ok() || (self.is_own_file() && UnixStream::connect(&self.path).is_ok())
    }
}

impl Drop for SnapshotSocket {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            core::mem::forget(self.thread.take());
            return;
        }
        self.stop.store(true, Ordering::Release);
        let woken = self.thread.is_some() && self.wake();
        if self.is_own_file() {
            let _ = fs::remove_file(&self.path);
        }
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            // A panic in the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for SnapshotSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSocket")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
