//! Takes a heap profile of two tenants while they work and writes it as
//! `heap.pb.gz` (for `go tool pprof -http=: heap.pb.gz`) and as `heap.svg` (for
//! a browser), to the directory given, or to the system's temporary one.
//!
//! ```sh
//! cargo run --release --features profile --example heap_profile -- .
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;
use tiered_allocator::profile::ProfileOptions;
use tiered_allocator::{Memory, SubscriptionTier, TieredAllocator};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

#[inline(never)]
fn read_documents(count: usize) -> Vec<String> {
    let document = |n: usize| format!("document {n} ").repeat(1 + n % 700);
    (0..count).map(document).collect()
}

#[inline(never)]
fn build_index(documents: &[String]) -> HashMap<String, Vec<usize>> {
    let mut index: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, document) in documents.iter().enumerate() {
        for word in document.split(' ') {
            index.entry(word.to_owned()).or_default().push(place);
        }
    }
    index
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = Memory::new(1_000_000_000);
    let library = memory.register("library", SubscriptionTier::Enterprise)?;
    let archive = memory.register("archive", SubscriptionTier::Basic)?;

    memory.start_heap_profile(&ProfileOptions::new().sample_bytes(64 * 1024))?;
    let documents = archive.run(|| read_documents(8_000))?;
    let index = library.run(|| build_index(&documents))?;
    memory.stop_heap_profile()?;

    let profile = memory.heap_profile(None)?;
    println!("client      live bytes   estimated  where");
    for client in [&library, &archive] {
        let own = memory.heap_profile(Some(client))?;
        let here = |name: &str| name.starts_with("heap_profile::");
        let site = own
            .sites
            .first()
            .and_then(|site| site.frames.iter().find(|frame| here(&frame.function)));
        println!(
            "{:8} {:>13} {:>11}  {}",
            client.name().as_deref().unwrap_or("?"),
            client.usage().live_bytes,
            own.live_bytes(),
            site.map_or("?", |frame| &frame.function),
        );
    }

    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let (pprof, svg) = (directory.join("heap.pb.gz"), directory.join("heap.svg"));
    fs::write(&pprof, profile.to_pprof())?;
    profile.to_flamegraph(File::create(&svg)?)?;
    println!("wrote {} and {}", pprof.display(), svg.display());
    drop((documents, index));
    Ok(())
}
