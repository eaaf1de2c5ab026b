//! The heap under the program, chosen by features.

#[cfg(feature = "mimalloc")]
type Inner = mimalloc::MiMalloc;
#[cfg(not(feature = "mimalloc"))]
type Inner = std::alloc::System;

#[cfg(feature = "mimalloc")]
const INNER: Inner = mimalloc::MiMalloc;
#[cfg(not(feature = "mimalloc"))]
const INNER: Inner = std::alloc::System;

pub use chosen::{check, enter};

#[cfg(not(feature = "tiered"))]
mod chosen {
    use super::{INNER, Inner};

    #[global_allocator]
    static HEAP: Inner = INNER;

    pub struct Scope;

    impl Drop for Scope {
        fn drop(&mut self) {}
    }

    pub fn check() {}

    /// Nobody keeps accounts here.
    pub fn enter() -> Scope {
        Scope
    }

    pub fn report() {}
}

#[cfg(feature = "tiered")]
mod chosen {
    use super::{INNER, Inner};
    use std::sync::OnceLock;
    use tiered_allocator::{
        Client, ClientOptions, Limit, Memory, Scope, SubscriptionTier, TieredAllocator,
    };

    #[global_allocator]
    static HEAP: TieredAllocator<Inner> = TieredAllocator::new(INNER);

    /// With its memory: a client ends with it.
    static PROGRAM: OnceLock<(Memory, Client)> = OnceLock::new();

    pub fn check() {
        assert!(TieredAllocator::is_installed());
    }

    /// A scope of the program's client, which has a finite quota. Each thread
    /// enters it.
    pub fn enter() -> Scope {
        let (_, client) = PROGRAM.get_or_init(|| {
            let memory = Memory::new(16 << 30);
            let options =
                ClientOptions::new(SubscriptionTier::Enterprise).max(Limit::Bytes(4 << 30));
            let client = memory.register("program", options).unwrap();
            (memory, client)
        });
        client.enter()
    }

    pub fn report() {
        let (_, client) = PROGRAM.get().unwrap();
        let usage = client.usage();
        println!("allocations {}", usage.total_allocations);
        println!("bytes {}", usage.total_bytes);
    }
}

/// What the heap charged, and the most memory that the process had.
pub fn report() {
    chosen::report();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!(
        "peak-kib {}",
        peak.unwrap_or("0").trim().trim_end_matches(" kB")
    );
}
