//! The profile in pprof's format: the messages that are used of
//! `perftools.profiles` (profile.proto of github.com/google/pprof), field by
//! field, encoded by `prost`.

use super::report::{HeapProfile, StackFrame};
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use std::collections::HashMap;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

impl HeapProfile {
    /// The profile as pprof and the tools that read its files expect it:
    /// `inuse_objects` and `inuse_space` by call stack, with the client's name
    /// as the label `client`; protobuf, compressed by gzip.
    ///
    /// ```sh
    /// go tool pprof -http=: heap.pb.gz        # -tagfocus=client=acme for one client
    /// ```
    pub fn to_pprof(&self) -> Vec<u8> {
        let encoded = encode(self).encode_to_vec();
        let mut writer = GzEncoder::new(Vec::new(), Compression::default());
        match writer.write_all(&encoded).and_then(|()| writer.finish()) {
            Ok(compressed) => compressed,
            Err(_) => unreachable!("a vector takes all that is written to it"),
        }
    }
}

fn encode(heap: &HeapProfile) -> Profile {
    let mut tables = Tables::default();
    // The first string is the empty one, by definition.
    tables.string("");
    let objects = tables.value_type("inuse_objects", "count");
    let space = tables.value_type("inuse_space", "bytes");
    let client = tables.string("client");
    let mut sample = Vec::with_capacity(heap.sites.len());
    for site in &heap.sites {
        let label = Label {
            key: client,
            str: tables.string(&site.client_name),
        };
        sample.push(Sample {
            location_id: tables.locations(&site.frames),
            value: vec![site.live_blocks as i64, site.live_bytes as i64],
            label: vec![label],
        });
    }
    let program = std::env::current_exe().unwrap_or_default();
    let mapping = Mapping {
        id: 1,
        filename: tables.string(&program.to_string_lossy()),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut comment = Vec::new();
    if heap.dropped_samples > 0 {
        comment.push(tables.string(&format!("{} samples dropped", heap.dropped_samples)));
    }
    let period_type = Some(tables.value_type("space", "bytes"));
    Profile {
        sample_type: vec![objects, space],
        sample,
        mapping: vec![mapping],
        location: tables.location,
        function: tables.function,
        time_nanos: now.map_or(0, |now| now.as_nanos() as i64),
        period_type,
        period: heap.sample_bytes as i64,
        comment,
        default_sample_type: space.r#type,
        string_table: tables.string_table,
    }
}

/// What samples refer to by number, each thing once.
#[derive(Default)]
struct Tables {
    string_table: Vec<String>,
    strings: HashMap<String, i64>,
    function: Vec<Function>,
    functions: HashMap<(i64, i64), u64>,
    location: Vec<Location>,
    locations: HashMap<usize, u64>,
}

impl Tables {
    fn string(&mut self, string: &str) -> i64 {
        if let Some(&at) = self.strings.get(string) {
            return at;
        }
        let at = self.string_table.len() as i64;
        self.string_table.push(string.to_owned());
        self.strings.insert(string.to_owned(), at);
        at
    }

    fn value_type(&mut self, r#type: &str, unit: &str) -> ValueType {
        ValueType {
            r#type: self.string(r#type),
            unit: self.string(unit),
        }
    }

    fn function(&mut self, frame: &StackFrame) -> u64 {
        let name = self.string(&frame.function);
        let filename = self.string(frame.file.as_deref().unwrap_or(""));
        let next = self.function.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.function.push(Function {
                id,
                name,
                system_name: name,
                filename,
            });
        }
        id
    }

    /// One location for each address, with its inlined functions, innermost
    /// first, as the format has it.
    fn locations(&mut self, frames: &[StackFrame]) -> Vec<u64> {
        frames
            .chunk_by(|a, b| a.address == b.address)
            .map(|inlined| self.location(inlined))
            .collect()
    }

    fn location(&mut self, inlined: &[StackFrame]) -> u64 {
        let address = inlined.first().map_or(0, |frame| frame.address);
        if let Some(&id) = self.locations.get(&address) {
            return id;
        }
        let line = inlined
            .iter()
            .map(|frame| Line {
                function_id: self.function(frame),
                line: frame.line.map_or(0, i64::from),
            })
            .collect();
        let id = self.location.len() as u64 + 1;
        self.location.push(Location {
            id,
            mapping_id: 1,
            address: address as u64,
            line,
        });
        self.locations.insert(address, id);
        id
    }
}
