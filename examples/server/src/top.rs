//! What `tiered_top` shows: snapshots that a process sends over its socket
//! (`integrations::snapshot_socket`), read and drawn.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use serde::Deserialize;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A process that does not answer for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// More than the snapshot of 100,000 clients.
const LARGEST_BYTES: u64 = 64 << 20;
const MIB: f64 = (1 << 20) as f64;

/// A memory at one moment, as far as it is shown.
#[derive(Deserialize, Debug)]
pub struct Snapshot {
    memory: Memory,
    clients: Vec<Client>,
    tiers: Vec<Tier>,
    unattributed_bytes: u64,
    resident_set_bytes: Option<u64>,
    reclaim: Reclaim,
}

#[derive(Deserialize, Debug)]
struct Memory {
    total_bytes: u64,
    usable_bytes: u64,
    charged_bytes: u64,
    overdrawn_bytes: u64,
    spilled_bytes: u64,
}

#[derive(Deserialize, Debug)]
struct Client {
    name: String,
    tier: String,
    usage: Usage,
    used_bytes: u64,
    max_bytes: u64,
    soft_bytes: u64,
    guarantee_bytes: u64,
}

#[derive(Deserialize, Debug)]
struct Usage {
    charged_bytes: u64,
    peak_bytes: u64,
    overdrawn_bytes: u64,
    refusals: u64,
}

#[derive(Deserialize, Debug)]
struct Tier {
    name: String,
    charged_bytes: u64,
    borrowed_bytes: u64,
    clients: usize,
}

#[derive(Deserialize, Debug)]
struct Reclaim {
    spilled_bytes: u64,
    discarded_bytes: u64,
    stopped_clients: u64,
    under_pressure: bool,
    rungs: Vec<Rung>,
}

#[derive(Deserialize, Debug)]
struct Rung {
    rung: String,
    climbed: u64,
    reclaimed_bytes: u64,
}

/// One snapshot of the process that listens at `path`.
///
/// # Errors
/// Nobody listens, it does not answer in time, or it says something else.
pub fn fetch(path: &Path) -> io::Result<Snapshot> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(LARGEST_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn mib(bytes: u64) -> String {
    match bytes {
        u64::MAX => "none".to_owned(),
        bytes => format!("{:.1}", bytes as f64 / MIB),
    }
}

/// Names are the tenants' own; what would move the cursor is not shown.
fn shown(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// Draws a snapshot, or why there is none.
pub fn draw(frame: &mut Frame, title: &str, snapshot: &Result<Snapshot, String>) {
    let snapshot = match snapshot {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let text = Paragraph::new(format!("{title}: {error}")).style(Color::Red);
            frame.render_widget(text, frame.area());
            return;
        }
    };
    let rungs = snapshot.reclaim.rungs.len().max(snapshot.tiers.len()) as u16;
    let [head, clients, below, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Min(4),
        Constraint::Length(rungs + 3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [tiers, ladder] =
        Layout::horizontal([Constraint::Percentage(45), Constraint::Percentage(55)]).areas(below);
    draw_memory(frame, head, title, snapshot);
    draw_clients(frame, clients, &snapshot.clients);
    draw_tiers(frame, tiers, &snapshot.tiers);
    draw_ladder(frame, ladder, &snapshot.reclaim);
    frame.render_widget(Line::from(" q ends").dim(), foot);
}

fn draw_memory(frame: &mut Frame, area: Rect, title: &str, snapshot: &Snapshot) {
    let memory = &snapshot.memory;
    let pressure = match snapshot.reclaim.under_pressure {
        true => "memory is short".yellow().bold(),
        false => "there is enough".green(),
    };
    let resident = snapshot.resident_set_bytes.map_or("?".to_owned(), mib);
    let lines = vec![
        Line::from(vec![
            format!(
                "charged {} of {} MiB, {} in all; lent {}; on disk {}   ",
                mib(memory.charged_bytes),
                mib(memory.usable_bytes),
                mib(memory.total_bytes),
                mib(memory.overdrawn_bytes),
                mib(memory.spilled_bytes),
            )
            .into(),
            pressure,
        ]),
        Line::from(format!(
            "nobody's {} MiB; resident {resident} MiB",
            mib(snapshot.unattributed_bytes)
        )),
    ];
    let block = Block::bordered().title(format!(" {title} "));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// What is held, up to the limit: `#` beyond what is guaranteed, `=` within.
fn bar(client: &Client, width: usize) -> String {
    let scale = |bytes: u64| match client.max_bytes {
        0 => width,
        max => ((bytes as f64 / max as f64 * width as f64).round() as usize).min(width),
    };
    let held = scale(client.usage.charged_bytes);
    let reserved = scale(client.guarantee_bytes);
    (0..width)
        .map(|at| match (at < held, at < reserved) {
            (true, true) => '=',
            (true, false) => '#',
            (false, true) => '-',
            (false, false) => '.',
        })
        .collect()
}

fn mood(client: &Client) -> Span<'static> {
    if client.usage.overdrawn_bytes > 0 || client.usage.charged_bytes > client.max_bytes {
        "over".red().bold()
    } else if client.usage.charged_bytes > client.soft_bytes {
        "near".yellow()
    } else {
        "ok".green()
    }
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn figures<const N: usize>(values: [String; N]) -> impl Iterator<Item = Cell<'static>> {
    let right = |value: String| Cell::new(Line::from(value).right_aligned());
    values.into_iter().map(right)
}

fn draw_clients(frame: &mut Frame, area: Rect, clients: &[Client]) {
    const COLUMNS: u16 = 14 + 11 + 5 + 4 * 9 + 9;
    let width = area.width.saturating_sub(COLUMNS + 10).clamp(6, 40);
    // Those that hold most first: they are what is looked for.
    let mut order: Vec<&Client> = clients.iter().collect();
    order.sort_by_key(|client| std::cmp::Reverse(client.usage.charged_bytes));
    let rows = order.iter().map(|client| {
        let texts = [
            Cell::new(shown(&client.name)),
            Cell::new(shown(&client.tier)),
            Cell::new(mood(client)),
            Cell::new(bar(client, width.into())),
        ];
        let usage = &client.usage;
        Row::new(texts.into_iter().chain(figures([
            mib(usage.charged_bytes),
            mib(client.max_bytes),
            mib(client.used_bytes),
            mib(usage.peak_bytes),
            usage.refusals.to_string(),
        ])))
    });
    let widths = [14, 11, 5, width, 9, 9, 9, 9, 9].map(Constraint::Length);
    let names = [
        "client",
        "tier",
        "",
        "held",
        "  charged",
        "    limit",
        "   in RAM",
        "     peak",
        "  refused",
    ];
    let table = Table::new(rows, widths)
        .header(header(names))
        .block(Block::bordered().title(format!(" {} clients, MiB ", clients.len())));
    frame.render_widget(table, area);
}

fn draw_tiers(frame: &mut Frame, area: Rect, tiers: &[Tier]) {
    let rows = tiers.iter().map(|tier| {
        let name = Cell::new(shown(&tier.name));
        Row::new([name].into_iter().chain(figures([
            tier.clients.to_string(),
            mib(tier.charged_bytes),
            mib(tier.borrowed_bytes),
        ])))
    });
    let widths = [12, 7, 9, 9].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(header(["tier", "clients", "  charged", " borrowed"]))
        .block(Block::bordered().title(" tiers, MiB "));
    frame.render_widget(table, area);
}

fn draw_ladder(frame: &mut Frame, area: Rect, reclaim: &Reclaim) {
    let rows = reclaim.rungs.iter().map(|rung| {
        let (times, bytes) = match rung.rung.as_str() {
            // Also when their time has come, without pressure.
            "idle_blocks" => (
                rung.climbed,
                reclaim.spilled_bytes + reclaim.discarded_bytes,
            ),
            "cancel" => (reclaim.stopped_clients, rung.reclaimed_bytes),
            _ => (rung.climbed, rung.reclaimed_bytes),
        };
        let name = Cell::new(shown(&rung.rung.replace('_', " ")));
        Row::new(
            [name]
                .into_iter()
                .chain(figures([times.to_string(), mib(bytes)])),
        )
    });
    let widths = [20, 7, 10].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(header(["rung", "  times", "taken back"]))
        .block(Block::bordered().title(" reclaimed, MiB "));
    frame.render_widget(table, area);
}
