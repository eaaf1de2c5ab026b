//! The heap profiler: whose stacks, how many bytes, and when samples go.

mod common;

use common::{Bytes, HEAP, client, quiet};
use serial_test::serial;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::io::Read;
use tiered_allocator::profile::{HeapProfile, ProfileError, ProfileOptions, ProfileSite};
use tiered_allocator::{
    Client, Enforcement, Limit, Memory, SubscriptionTier, TierPolicy, TieredAllocator,
};

fn memory() -> Memory {
    assert!(TieredAllocator::is_installed());
    quiet(1 << 40)
}

fn premium(memory: &Memory, name: &str) -> Client {
    memory.register(name, SubscriptionTier::Premium).unwrap()
}

/// Every block: one of 30 bytes or more is missed once in 10¹³ blocks.
fn every_block() -> ProfileOptions {
    ProfileOptions::new().sample_bytes(1).seed(1)
}

#[inline(never)]
fn first_site(size: usize) -> Bytes {
    std::hint::black_box(Bytes::new(size).unwrap())
}

#[inline(never)]
fn second_site(size: usize) -> Bytes {
    std::hint::black_box(Bytes::new(size).unwrap())
}

fn is_at(site: &ProfileSite, function: &str) -> bool {
    site.frames
        .iter()
        .any(|frame| frame.function.contains(function))
}

/// Bytes and blocks of a client with `function` in the stack.
fn at(profile: &HeapProfile, client: &Client, function: &str) -> (u64, u64) {
    profile
        .sites
        .iter()
        .filter(|site| site.client == Some(client.id()) && is_at(site, function))
        .fold((0, 0), |(bytes, blocks), site| {
            (bytes + site.live_bytes, blocks + site.live_blocks)
        })
}

fn live(memory: &Memory, client: &Client) -> (u64, u64) {
    let profile = memory.heap_profile(Some(client)).unwrap();
    (profile.live_bytes(), profile.live_blocks())
}

#[test]
#[serial]
fn nothing_is_sampled_before_the_start() {
    let memory = memory();
    let client = premium(&memory, "a");
    let _early = Bytes::of(&client, 100_000);
    assert_eq!(memory.heap_profile(None), Err(ProfileError::NotStarted));
    assert!(!memory.is_heap_profiling());
    memory.start_heap_profile(&every_block()).unwrap();
    assert!(memory.is_heap_profiling());
    assert_eq!(live(&memory, &client), (0, 0));
    memory.stop_heap_profile().unwrap();
    assert!(!memory.is_heap_profiling());
    let _late = Bytes::of(&client, 100_000);
    assert_eq!(live(&memory, &client), (0, 0));
    assert_eq!(memory.stop_heap_profile(), Err(ProfileError::NotStarted));
}

#[test]
#[serial]
fn blocks_show_under_their_client_and_their_stack() {
    let memory = memory();
    let (a, b) = (premium(&memory, "a"), premium(&memory, "b"));
    memory.start_heap_profile(&every_block()).unwrap();
    let held = {
        let _scope = a.enter();
        (first_site(1000), first_site(500), second_site(70_000))
    };
    let other = {
        let _scope = b.enter();
        first_site(64)
    };
    let profile = memory.heap_profile(None).unwrap();
    assert_eq!(at(&profile, &a, "first_site"), (1500, 2));
    assert_eq!(at(&profile, &a, "second_site"), (70_000, 1));
    assert_eq!(at(&profile, &b, "first_site"), (64, 1));
    assert_eq!(profile.live_bytes(), 71_564);
    assert_eq!(profile.dropped_samples, 0);
    // Largest first, named, and beginning where memory was asked for.
    let largest = &profile.sites[0];
    assert_eq!(&*largest.client_name, "a");
    assert!(
        !largest.frames[0].function.contains("tiered_allocator::"),
        "{:?}",
        largest.frames[0]
    );
    let own = memory.heap_profile(Some(&b)).unwrap();
    assert_eq!(own.live_bytes(), 64);
    drop((held, other));
    assert_eq!(memory.heap_profile(None).unwrap().sites, []);
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn the_estimate_keeps_within_its_stated_error() {
    const SAMPLE_BYTES: u64 = 16 * 1024;
    let memory = memory();
    let client = premium(&memory, "a");
    let options = ProfileOptions::new().sample_bytes(SAMPLE_BYTES).seed(42);
    memory.start_heap_profile(&options).unwrap();
    let scope = client.enter();
    let mut random = 7_u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        random >> 33
    };
    // A cache that has its size from the start, so that nothing grows: each
    // entry replaces one, over and over.
    let mut cache: Vec<Option<Bytes>> = Vec::new();
    cache.resize_with(4000, || None);
    for _ in 0..40_000 {
        let place = (next() % 4000) as usize;
        let size = (16 + next() % 3000) as usize;
        cache[place] = None;
        cache[place] = Some(if next() % 4 == 0 {
            first_site(size)
        } else {
            second_site(size)
        });
    }
    drop(scope);
    let profile = memory.heap_profile(Some(&client)).unwrap();
    // `Bytes` do not know their site; the sum over both is known exactly.
    let right: u64 = cache
        .iter()
        .flatten()
        .map(|bytes| bytes.size() as u64)
        .sum();
    let (first, _) = at(&profile, &client, "first_site");
    let (second, _) = at(&profile, &client, "second_site");
    let error = |of: f64| 3.0 * (SAMPLE_BYTES as f64 * of).sqrt();
    let off = (first + second) as f64 - right as f64;
    assert!(
        off.abs() < error(right as f64),
        "{first} + {second} for {right}"
    );
    let share = right as f64 / 4.0;
    assert!(
        (first as f64 - share).abs() < error(share),
        "{first} for {share}"
    );
    let blocks = cache.iter().flatten().count() as f64;
    assert!((profile.live_blocks() as f64 / blocks - 1.0).abs() < 0.25);
    memory.stop_heap_profile().unwrap();
}

/// Growth and shrinking are where a sample could come to stand for too much
/// or for too little.
#[test]
#[serial]
fn blocks_that_grow_and_shrink_are_estimated_without_bias() {
    const SAMPLE_BYTES: u64 = 8 * 1024;
    const BLOCKS: usize = 6000;
    let memory = memory();
    let client = premium(&memory, "a");
    let options = ProfileOptions::new().sample_bytes(SAMPLE_BYTES).seed(3);
    memory.start_heap_profile(&options).unwrap();
    let mut blocks: Vec<Bytes> = Vec::with_capacity(BLOCKS);
    let scope = client.enter();
    blocks.extend((0..BLOCKS).map(|_| first_site(100)));
    drop(scope);
    for (steps, what) in [
        (&[250, 700, 2000][..], "grown"),
        (&[1200, 600], "shrunk"),
        (&[3000, 9000], "grown across the size where owners move"),
        (&[5000, 1000], "shrunk across it"),
    ] {
        for &size in steps {
            blocks.iter_mut().for_each(|block| block.grow(size));
        }
        let right: u64 = blocks.iter().map(|block| block.size() as u64).sum();
        assert_eq!(client.usage().live_bytes, right);
        let (estimate, _) = live(&memory, &client);
        let error = 3.0 * (SAMPLE_BYTES as f64 * right as f64).sqrt();
        let off = estimate as f64 - right as f64;
        assert!(off.abs() < error, "{what}: {estimate} for {right}");
    }
    blocks.clear();
    assert_eq!(live(&memory, &client), (0, 0));
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn a_sample_goes_with_its_block_wherever_that_is_freed() {
    let memory = memory();
    let (a, b) = (premium(&memory, "a"), premium(&memory, "b"));
    memory.start_heap_profile(&every_block()).unwrap();
    let make = |size| Bytes::of(&a, size).unwrap();
    let blocks = [make(100), make(200), make(10_000), make(20_000)];
    assert_eq!(live(&memory, &a), (30_300, 4));
    let [small, other, mapped, last] = blocks;
    std::thread::spawn(move || drop((small, mapped)))
        .join()
        .unwrap();
    assert_eq!(live(&memory, &a), (20_200, 2));
    b.run(|| drop(other)).unwrap();
    assert_eq!(live(&memory, &a), (20_000, 1));
    // The client goes before its block.
    memory.remove_client("a").unwrap();
    assert_eq!(live(&memory, &a), (20_000, 1));
    drop(last);
    let profile = memory.heap_profile(None).unwrap();
    assert_eq!((profile.live_bytes(), profile.kept_samples), (0, 0));
    memory.stop_heap_profile().unwrap();
    // After the end of the profile, too.
    memory.start_heap_profile(&every_block()).unwrap();
    let block = Bytes::of(&b, 300);
    memory.stop_heap_profile().unwrap();
    assert_eq!(live(&memory, &b), (300, 1));
    drop(block);
    assert_eq!(live(&memory, &b), (0, 0));
}

#[test]
#[serial]
fn an_adopted_block_takes_its_sample_along() {
    let memory = memory();
    let (a, b) = (premium(&memory, "a"), premium(&memory, "b"));
    memory.start_heap_profile(&every_block()).unwrap();
    for size in [200, 9000] {
        let mut bytes = a.run(|| vec![1_u8; size]).unwrap();
        let charged = |client: &Client| client.usage().live_bytes;
        assert_eq!((live(&memory, &a).0, live(&memory, &b).0), (size as u64, 0));
        b.adopt(&mut bytes).unwrap();
        b.adopt(&mut bytes).unwrap();
        assert_eq!((live(&memory, &a).0, live(&memory, &b).0), (0, size as u64));
        assert_eq!((charged(&a), charged(&b)), (0, size as u64));
        drop(bytes);
        assert_eq!((live(&memory, &a).0, live(&memory, &b).0), (0, 0));
        assert_eq!((charged(&a), charged(&b)), (0, 0));
    }
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn threads_that_have_credit_when_it_starts_are_sampled() {
    let memory = memory();
    let client = premium(&memory, "a");
    let (to_worker, requests) = std::sync::mpsc::channel::<()>();
    let (to_main, answers) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        let client = &client;
        threads.spawn(move || {
            to_main.send(Bytes::of(client, 100)).unwrap();
            while requests.recv().is_ok() {
                to_main.send(Bytes::of(client, 200)).unwrap();
            }
        });
        let _before = answers.recv().unwrap();
        assert!(client.usage().charged_bytes > 100, "credit");
        memory.start_heap_profile(&every_block()).unwrap();
        to_worker.send(()).unwrap();
        let _sampled = answers.recv().unwrap();
        assert_eq!(live(&memory, client), (200, 1));
        memory.stop_heap_profile().unwrap();
        to_worker.send(()).unwrap();
        let _after = answers.recv().unwrap();
        assert_eq!(live(&memory, client), (200, 1));
        drop(to_worker);
    });
}

/// A revoker puts ceilings back to where it found them.
#[test]
#[serial]
fn taking_credit_back_does_not_end_the_sampling() {
    let memory = memory();
    let client = premium(&memory, "a");
    memory.start_heap_profile(&every_block()).unwrap();
    let first = Bytes::of(&client, 10_000);
    let policy = TierPolicy::new(Limit::Share(0.2));
    memory
        .set_tier_policy(SubscriptionTier::Premium, policy)
        .unwrap();
    assert_eq!(client.usage().charged_bytes, 10_000);
    drop(first);
    let _second = Bytes::of(&client, 5000);
    assert_eq!(live(&memory, &client), (5000, 1));
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn one_client_alone_can_be_profiled() {
    let memory = memory();
    let (a, b) = (premium(&memory, "a"), premium(&memory, "b"));
    let options = every_block().only(&b);
    memory.start_heap_profile(&options).unwrap();
    let _held = (Bytes::of(&a, 100), Bytes::of(&b, 200), Bytes::new(300));
    let budget = b.budget(10_000).unwrap();
    let _within = budget.run(|| Bytes::new(400)).unwrap();
    assert_eq!(memory.heap_profile(None).unwrap().live_bytes(), 600);
    assert_eq!(live(&memory, &b), (600, 2));
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn a_full_table_drops_samples_and_counts_them() {
    let memory = memory();
    let client = premium(&memory, "a");
    let options = every_block().max_samples(3);
    memory.start_heap_profile(&options).unwrap();
    let mut blocks: Vec<_> = Vec::with_capacity(5);
    blocks.extend((0..5).map(|_| Bytes::of(&client, 100)));
    let profile = memory.heap_profile(None).unwrap();
    assert_eq!((profile.live_bytes(), profile.dropped_samples), (300, 2));
    assert_eq!(client.usage().live_bytes, 500);
    blocks.clear();
    assert_eq!(client.usage().live_bytes, 0);
    let _next = Bytes::of(&client, 100);
    let profile = memory.heap_profile(None).unwrap();
    assert_eq!((profile.live_bytes(), profile.dropped_samples), (100, 2));
    memory.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn what_cannot_be_done_is_refused_with_its_figures() {
    let (memory, other) = (memory(), quiet(1 << 30));
    let (client, foreign) = (premium(&memory, "a"), premium(&other, "b"));
    let start = |options: ProfileOptions| memory.start_heap_profile(&options);
    let new = ProfileOptions::new;
    assert_eq!(
        start(new().sample_bytes(0)),
        Err(ProfileError::SampleBytes {
            given: 0,
            max: 1 << 40
        })
    );
    assert_eq!(
        start(new().max_samples((1 << 22) + 1)),
        Err(ProfileError::MaxSamples {
            given: (1 << 22) + 1,
            max: 1 << 22
        })
    );
    let not_ours = ProfileError::NotOfThisMemory {
        client: foreign.id(),
    };
    assert_eq!(start(new().only(&foreign)), Err(not_ours.clone()));
    assert!(!memory.is_heap_profiling());
    start(new().only(&client)).unwrap();
    assert_eq!(start(new()), Err(ProfileError::AlreadyRunning));
    assert_eq!(
        other.start_heap_profile(&new()),
        Err(ProfileError::AlreadyRunning)
    );
    assert_eq!(other.stop_heap_profile(), Err(ProfileError::NotStarted));
    assert_eq!(other.heap_profile(None), Err(ProfileError::NotStarted));
    assert_eq!(memory.heap_profile(Some(&foreign)), Err(not_ours));
    // A memory that goes takes its profile with it.
    drop(memory);
    other.start_heap_profile(&new()).unwrap();
    other.stop_heap_profile().unwrap();
}

#[test]
#[serial]
fn a_limit_is_as_exact_under_the_profiler_as_without() {
    let memory = memory();
    let client = client(&memory, "a", 100_000, Enforcement::Strict);
    memory.start_heap_profile(&every_block()).unwrap();
    let _most = Bytes::of(&client, 60_000).unwrap();
    assert!(Bytes::of(&client, 40_001).is_none());
    // A growth that is refused leaves the block and its sample as they were.
    let layout = Layout::from_size_align(500, 1).unwrap();
    let scope = client.enter();
    // SAFETY: the size is not zero.
    let block = unsafe { HEAP.alloc(layout) };
    // SAFETY: a live block with its layout.
    assert!(unsafe { HEAP.realloc(block, layout, 40_001) }.is_null());
    drop(scope);
    assert_eq!(live(&memory, &client), (60_500, 2));
    // SAFETY: as above.
    unsafe { HEAP.dealloc(block, layout) };
    let _rest = Bytes::of(&client, 40_000).unwrap();
    assert!(Bytes::of(&client, 1).is_none());
    assert_eq!(client.usage().live_bytes, 100_000);
    assert_eq!(live(&memory, &client), (100_000, 2));
    memory.stop_heap_profile().unwrap();
}

/// Has no memory for anything beyond 8 MiB, nor for growth.
struct Scarce;

// SAFETY: the system's blocks, or none.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > 8 << 20 {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, _: *mut u8, _: Layout, _: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
}

#[test]
#[serial]
fn what_the_system_has_no_memory_for_leaves_no_sample() {
    static SCARCE: TieredAllocator<Scarce> = TieredAllocator::new(Scarce);
    let memory = memory();
    let client = premium(&memory, "a");
    // Samples the blocks themselves, or nothing but what they fail to grow by.
    for (sample_bytes, is_sampled) in [(1, true), (1 << 24, false)] {
        let options = ProfileOptions::new().sample_bytes(sample_bytes).seed(1);
        memory.start_heap_profile(&options).unwrap();
        for (size, grown) in [(100, 200), (100, 5000), (5000, 9000), (5000, 1 << 33)] {
            let layout = Layout::from_size_align(size, 1).unwrap();
            let scope = client.enter();
            // SAFETY: the size is not zero.
            let block = unsafe { SCARCE.alloc(layout) };
            // SAFETY: a live block with its layout.
            assert!(unsafe { SCARCE.realloc(block, layout, grown) }.is_null());
            // SAFETY: as above.
            assert!(unsafe { SCARCE.realloc(block, layout, 1 << 34) }.is_null());
            let huge = Layout::from_size_align(1 << 34, 1).unwrap();
            // SAFETY: the size is not zero.
            assert!(unsafe { SCARCE.alloc(huge) }.is_null());
            drop(scope);
            let right = if is_sampled { (size as u64, 1) } else { (0, 0) };
            assert_eq!(live(&memory, &client), right, "{size} to {grown}");
            assert_eq!(client.usage().live_bytes, size as u64);
            // SAFETY: a live block with its layout.
            unsafe { SCARCE.dealloc(block, layout) };
            assert_eq!(live(&memory, &client), (0, 0));
        }
        assert_eq!(memory.heap_profile(None).unwrap().kept_samples, 0);
        memory.stop_heap_profile().unwrap();
    }
}

/// Field number, wire type and value of each field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut message: &[u8]) -> Vec<(u32, Field<'_>)> {
    use prost::encoding::{WireType, decode_key, decode_varint};
    let mut fields = Vec::new();
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message).unwrap();
        let value = decode_varint(&mut message).unwrap();
        fields.push(match wire_type {
            WireType::Varint => (number, Field::Number(value)),
            WireType::LengthDelimited => {
                let (bytes, rest) = message.split_at(value as usize);
                message = rest;
                (number, Field::Bytes(bytes))
            }
            other => panic!("profile.proto has no {other:?}"),
        });
    }
    fields
}

fn packed(mut bytes: &[u8]) -> Vec<u64> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        numbers.push(prost::encoding::decode_varint(&mut bytes).unwrap());
    }
    numbers
}

fn number(message: &[u8], wanted: u32) -> u64 {
    let fields = fields(message);
    let found = fields.iter().find_map(|(number, value)| match value {
        Field::Number(value) if *number == wanted => Some(*value),
        _ => None,
    });
    found.unwrap_or(0)
}

fn messages(message: &[u8], wanted: u32) -> Vec<&[u8]> {
    let of = |(number, value)| match value {
        Field::Bytes(bytes) if number == wanted => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(of).collect()
}

/// Read by the numbers in pprof's `profile.proto`, not by the encoder's types.
#[test]
#[serial]
fn pprof_reads_the_figures_stacks_and_clients() {
    let memory = memory();
    let client = premium(&memory, "acme;1");
    memory.start_heap_profile(&every_block()).unwrap();
    let _held = client.run(|| (first_site(1000), second_site(30))).unwrap();
    let compressed = memory.heap_profile(None).unwrap().to_pprof();
    memory.stop_heap_profile().unwrap();
    let mut profile = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&compressed[..]);
    decoder.read_to_end(&mut profile).unwrap();

    let strings: Vec<&str> = messages(&profile, 6)
        .into_iter()
        .map(|string| std::str::from_utf8(string).unwrap())
        .collect();
    assert_eq!(strings[0], "");
    let string = |message: &[u8], field| strings[number(message, field) as usize];
    let types: Vec<(&str, &str)> = messages(&profile, 1)
        .into_iter()
        .map(|value_type| (string(value_type, 1), string(value_type, 2)))
        .collect();
    assert_eq!(
        types,
        [("inuse_objects", "count"), ("inuse_space", "bytes")]
    );
    assert_eq!(string(&profile, 14), "inuse_space");
    assert_eq!(number(&profile, 12), 1);
    assert!(number(&profile, 9) > 0);

    let functions: Vec<(u64, &str)> = messages(&profile, 5)
        .into_iter()
        .map(|function| (number(function, 1), string(function, 2)))
        .collect();
    let locations: Vec<(u64, Vec<u64>)> = messages(&profile, 4)
        .into_iter()
        .map(|location| {
            let lines = messages(location, 4);
            let of = lines.into_iter().map(|line| number(line, 1)).collect();
            (number(location, 1), of)
        })
        .collect();
    let ids: HashSet<u64> = locations.iter().map(|(id, _)| *id).collect();
    assert!(ids.len() == locations.len() && !ids.contains(&0));
    let mut found = Vec::new();
    for sample in messages(&profile, 2) {
        let values = packed(messages(sample, 2)[0]);
        let label = messages(sample, 3)[0];
        assert_eq!((string(label, 1), string(label, 2)), ("client", "acme;1"));
        let stack: Vec<&str> = packed(messages(sample, 1)[0])
            .into_iter()
            .flat_map(|id| &locations.iter().find(|(of, _)| *of == id).unwrap().1)
            .map(|id| functions.iter().find(|(of, _)| of == id).unwrap().1)
            .collect();
        for site in ["first_site", "second_site"] {
            if stack.iter().any(|function| function.contains(site)) {
                found.push((site, values.clone()));
            }
        }
    }
    assert_eq!(
        found,
        [("first_site", vec![1, 1000]), ("second_site", vec![1, 30])]
    );
}

#[test]
#[serial]
fn the_flame_graph_is_a_document_that_names_functions_and_clients() {
    let memory = memory();
    let client = premium(&memory, "a <client>; 1");
    memory.start_heap_profile(&every_block()).unwrap();
    let svg = |memory: &Memory| {
        let mut svg = Vec::new();
        let profile = memory.heap_profile(None).unwrap();
        profile.to_flamegraph(&mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    };
    let parse = |svg: &str| {
        let options = roxmltree::ParsingOptions {
            allow_dtd: true,
            ..Default::default()
        };
        let document = roxmltree::Document::parse_with_options(svg, options).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let titles = document
            .descendants()
            .filter(|node| node.has_tag_name("title"));
        titles
            .filter_map(|node| Some(node.text()?.to_owned()))
            .collect::<Vec<String>>()
    };
    parse(&svg(&memory));
    let _held = client
        .run(|| (first_site(3000), second_site(1000)))
        .unwrap();
    let titles = parse(&svg(&memory));
    let has = |name: &str, bytes: &str| {
        titles
            .iter()
            .any(|title| title.contains(name) && title.contains(bytes))
    };
    assert!(has("first_site", "(3,000 bytes, 75.00%)"), "{titles:?}");
    assert!(has("a <client>: 1", "(4,000 bytes, 100.00%)"), "{titles:?}");
    let folded = memory.heap_profile(None).unwrap().folded_stacks();
    assert!(
        folded
            .lines()
            .all(|line| line.starts_with("a <client>: 1;"))
    );
    memory.stop_heap_profile().unwrap();
}
