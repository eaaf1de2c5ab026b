//! What the reader sees: a view redrawn in place in a terminal, a line now and
//! then elsewhere. No size of the terminal is needed: wrapping is off while a
//! frame is drawn, so a narrow one cuts lines at its edge.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

const PLAIN_EVERY: Duration = Duration::from_secs(2);
const BAR_CELLS: u64 = 24;

#[derive(Clone, Copy)]
pub enum Colour {
    Green = 32,
    Yellow = 33,
    Red = 31,
    Dim = 2,
}

pub struct View {
    /// Whether frames are drawn over each other.
    is_live: bool,
    has_colour: bool,
    drawn_lines: usize,
    next_plain: Instant,
}

impl View {
    pub fn new() -> View {
        let is_terminal = io::stdout().is_terminal();
        let is_live = is_terminal && env::var_os("TERM").is_none_or(|term| term != "dumb");
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        View {
            is_live,
            has_colour: is_live && !no_colour,
            drawn_lines: 0,
            next_plain: Instant::now() + PLAIN_EVERY,
        }
    }

    /// Shows the state of things: `frame` in a terminal, `short` elsewhere if
    /// the last one was a while ago.
    pub fn show(&mut self, frame: &[String], short: impl FnOnce() -> String) {
        if self.is_live {
            let mut out = self.to_top();
            out.push_str("\x1b[?7l");
            out.push_str(&frame.join("\x1b[K\r\n"));
            // Before the last line ends: up to there it is one write, so that
            // Ctrl-C leaves wrapping on.
            out.push_str("\x1b[K\x1b[?7h\r\n");
            write(&out);
            self.drawn_lines = frame.len();
        } else if Instant::now() >= self.next_plain {
            self.next_plain = Instant::now() + PLAIN_EVERY;
            write(&format!("{}\n", short()));
        }
    }

    /// Prints lines that stay, in place of the last frame.
    pub fn say(&mut self, text: &str) {
        let mut out = self.to_top();
        for line in text.lines() {
            let _ = writeln!(out, "{}", line.trim_end());
        }
        write(&out);
        self.drawn_lines = 0;
    }

    fn to_top(&self) -> String {
        match self.drawn_lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    pub fn paint(&self, colour: Colour, text: &str) -> String {
        if self.has_colour {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }

    /// `used` bytes solid, what is charged beyond them shaded, the rest of
    /// `max` dotted.
    pub fn bar(&self, used: u64, charged: u64, max: u64) -> String {
        let cells = |bytes: u64| (bytes.min(max) * BAR_CELLS).div_ceil(max.max(1)) as usize;
        let solid = cells(used);
        let shaded = cells(charged).saturating_sub(solid);
        let colour = match charged {
            _ if charged > max => Colour::Red,
            _ if charged > max / 4 * 3 => Colour::Yellow,
            _ => Colour::Green,
        };
        let filled = "█".repeat(solid) + &"▒".repeat(shaded);
        let empty = "·".repeat(BAR_CELLS as usize - solid - shaded);
        self.paint(colour, &filled) + &self.paint(Colour::Dim, &empty)
    }
}

/// A reader who went away is no reason to fail.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

pub fn mib(bytes: u64) -> String {
    mib_number(bytes) + " MiB"
}

pub fn mib_number(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
