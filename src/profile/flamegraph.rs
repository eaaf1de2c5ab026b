//! The profile as a picture.

use super::report::HeapProfile;
use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{Options, from_lines};
use std::io::{self, Write};

impl HeapProfile {
    /// Writes a flame graph: an SVG document that browsers can search and zoom.
    /// The width of a function is its live bytes; clients stand at the bottom.
    ///
    /// # Errors
    /// Those of `writer`.
    pub fn to_flamegraph(&self, mut writer: impl Write) -> io::Result<()> {
        let mut options = Options::default();
        options.title = "Live heap".to_owned();
        options.subtitle = Some(format!(
            "{} bytes in {} blocks, estimated by one sample in {} bytes",
            self.live_bytes(),
            self.live_blocks(),
            self.sample_bytes
        ));
        options.count_name = "bytes".to_owned();
        options.colors = Palette::Basic(BasicPalette::Mem);
        let lines: Vec<String> = self.lines().collect();
        let empty = lines.is_empty();
        match from_lines(&mut options, lines.iter().map(String::as_str), &mut writer) {
            // The document is written, and says that there is nothing.
            Err(_) if empty => Ok(()),
            written => written,
        }?;
        writer.flush()
    }

    /// Each site in the *folded* form that flame graph tools take: names from
    /// the outermost on, separated by semicolons, then the live bytes.
    pub fn folded_stacks(&self) -> String {
        let mut folded = String::new();
        for line in self.lines() {
            folded.push_str(&line);
            folded.push('\n');
        }
        folded
    }

    fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.sites
            .iter()
            .filter(|site| site.live_bytes > 0)
            .map(|site| {
                let mut line = one_frame(&site.client_name);
                for frame in site.frames.iter().rev() {
                    line.push(';');
                    line.push_str(&one_frame(&frame.function));
                }
                format!("{line} {}", site.live_bytes)
            })
    }
}

/// A name in which nothing separates frames or lines.
fn one_frame(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}
