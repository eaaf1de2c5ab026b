//! The profile as a picture.

use super::report::HeapProfile;
use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{Options, from_lines};
use std::io::{self, Write};

/// A document without script: there is nothing to search or zoom.
const NOTHING: &str = r#"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="80" viewBox="0 0 1200 80" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100%" fill="whitesmoke"/>
<text x="600" y="45" text-anchor="middle" font-family="monospace" font-size="14">Live heap: no sampled block lives</text>
</svg>
"#;

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
        if lines.is_empty() {
            writer.write_all(NOTHING.as_bytes())?;
        } else {
            from_lines(&mut options, lines.iter().map(String::as_str), &mut writer)?;
        }
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
