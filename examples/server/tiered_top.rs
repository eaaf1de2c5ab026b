//! Whose memory is whose, in a terminal: of any process of yours that listens
//! at a `SnapshotSocket`, as the example `server` does.
//!
//! ```text
//! cargo run --release --example server       # in one terminal
//! cargo run --release --example tiered_top   # in another
//! ```

use std::process::ExitCode;

#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("error: there are no local sockets here");
    ExitCode::FAILURE
}

#[cfg(unix)]
fn main() -> ExitCode {
    match unix::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
mod unix {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
    use std::error::Error;
    use std::fs;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};
    use tiered_allocator::integrations::snapshot_socket::{default_directory, default_path};
    use tiered_allocator_server::top;

    const HELP: &str = "\
Whose memory is whose, in a terminal.

  tiered_top [PROCESS | PATH]   the process of this number, or who listens at this
                                path; default: who began to listen last
  --once                        print the figures once, as text
  --every MILLISECONDS          default: 500
";

    struct Arguments {
        path: Option<PathBuf>,
        once: bool,
        every: Duration,
    }

    fn arguments() -> Result<Option<Arguments>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut arguments = Arguments {
            path: None,
            once: false,
            every: Duration::from_millis(500),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("once") => arguments.once = true,
                Long("every") => {
                    arguments.every =
                        Duration::from_millis(parser.value()?.parse::<u64>()?.max(50));
                }
                Long("help") | Short('h') => return Ok(None),
                Value(given) if arguments.path.is_none() => {
                    let process = given.to_str().and_then(|text| text.parse().ok());
                    let path = process.and_then(default_path);
                    arguments.path = Some(path.unwrap_or_else(|| given.into()));
                }
                _ => return Err(argument.unexpected()),
            }
        }
        Ok(Some(arguments))
    }

    /// The socket that was made last, of those that were given no path.
    fn latest() -> Option<PathBuf> {
        let sockets = fs::read_dir(default_directory()?).ok()?;
        let dated = sockets.filter_map(|entry| {
            let entry = entry.ok()?;
            let is_socket = entry.path().extension().is_some_and(|end| end == "sock");
            let made = entry.metadata().ok()?.modified().ok()?;
            // Killed processes leave theirs behind.
            let listens = is_socket && UnixStream::connect(entry.path()).is_ok();
            listens.then(|| (made, entry.path()))
        });
        dated.max().map(|(_, path)| path)
    }

    fn fetch(path: &Path) -> Result<top::Snapshot, String> {
        top::fetch(path).map_err(|error| error.to_string())
    }

    pub fn run() -> Result<(), Box<dyn Error>> {
        let Some(arguments) = arguments()? else {
            print!("{HELP}");
            return Ok(());
        };
        let path = arguments.path.or_else(latest).ok_or(
            "no process listens: start one that has a SnapshotSocket, such as the example server",
        )?;
        let title = path.display().to_string();
        if arguments.once {
            let snapshot = top::fetch(&path).map_err(|error| format!("{title}: {error}"))?;
            let mut terminal = Terminal::new(TestBackend::new(120, 30))?;
            terminal.draw(|frame| top::draw(frame, &title, &Ok(snapshot)))?;
            print!("{}", text(terminal.backend()));
            return Ok(());
        }
        let mut terminal = ratatui::try_init()?;
        let outcome = watch(&mut terminal, &title, &path, arguments.every);
        ratatui::restore();
        outcome
    }

    fn text(backend: &TestBackend) -> String {
        let buffer = backend.buffer();
        let lines = buffer.content().chunks(buffer.area.width.into());
        let line = |cells: &[ratatui::buffer::Cell]| {
            let text: String = cells.iter().map(|cell| cell.symbol()).collect();
            text.trim_end().to_owned() + "\n"
        };
        lines.map(line).collect()
    }

    fn watch(
        terminal: &mut ratatui::DefaultTerminal,
        title: &str,
        path: &Path,
        every: Duration,
    ) -> Result<(), Box<dyn Error>> {
        loop {
            let snapshot = fetch(path);
            terminal.draw(|frame| top::draw(frame, title, &snapshot))?;
            let next = Instant::now() + every;
            while event::poll(next.saturating_duration_since(Instant::now()))? {
                if let Event::Key(key) = event::read()?
                    && key.kind == KeyEventKind::Press
                    && ends(key.code, key.modifiers)
                {
                    return Ok(());
                }
            }
        }
    }

    fn ends(code: KeyCode, modifiers: KeyModifiers) -> bool {
        matches!(code, KeyCode::Char('q') | KeyCode::Esc)
            || (code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL))
    }
}
