//! Above the soft limit: safe points give the reclaimer a moment, and never
//! wait for nothing (pitfall 24).

use serial_test::serial;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tiered_allocator::clock::ManualClock;
use tiered_allocator::{
    ClientOptions, InClientExt, Ladder, Limit, Memory, MemoryBlock, ReclaimPolicy,
    SubscriptionTier, TierPolicy, TieredAllocator,
};

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const MIB: usize = 1 << 20;

/// A client with a soft limit of 1 MiB and a block of 2 MiB.
fn pressed(memory: &Memory, tier: &str) -> (tiered_allocator::Client, MemoryBlock) {
    let options = ClientOptions::new(tier)
        .max(Limit::Bytes(4 << 20))
        .soft(Limit::Bytes(1 << 20));
    let client = memory.register("pressed", options).unwrap();
    let mut block = memory.allocate_for_client("pressed", 2 * MIB).unwrap();
    block.pin_mut().unwrap().fill(0x5A);
    (client, block)
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_safe_point_above_the_soft_limit_has_idle_blocks_reclaimed() {
    assert!(TieredAllocator::is_installed());
    // The clock stands still: no block is idle by its tier's time.
    let memory = Memory::builder(1 << 30)
        .clock(Arc::new(ManualClock::default()))
        .build()
        .unwrap();
    let (client, block) = pressed(&memory, "Basic");
    assert_eq!(client.usage().live_bytes, 2 * MIB as u64);
    assert_eq!(client.usage().stalled_ns, 0);
    client.checkpoint().unwrap();
    assert!(client.usage().stalled_ns > 0);
    // The safe point waited for it, or (on a slow machine) gave up waiting; a
    // tick comes after it in any case.
    memory.tick();
    assert_eq!(client.usage().live_bytes, 0);
    assert!(memory.snapshot().reclaim.spilled_bytes >= 2 * MIB as u64);
    assert!(block.pin().unwrap().iter().all(|&byte| byte == 0x5A));
}

#[test]
#[serial]
fn nothing_is_reclaimed_or_waited_for_below_the_soft_limit() {
    let memory = Memory::builder(1 << 30)
        .clock(Arc::new(ManualClock::default()))
        .build()
        .unwrap();
    let client = memory.register("calm", SubscriptionTier::Basic).unwrap();
    let block = memory.allocate_for_client("calm", 2 * MIB).unwrap();
    client.checkpoint().unwrap();
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 0);
    assert_eq!(client.usage().stalled_ns, 0);
    drop(block);
}

#[test]
#[serial]
fn nobody_waits_for_what_cannot_be_reclaimed() {
    let keep = TierPolicy::new(Limit::Bytes(8 << 20)).reclaim(ReclaimPolicy::Keep);
    let memory = Memory::builder(1 << 30)
        .tier("keeping", keep)
        .clock(Arc::new(ManualClock::default()))
        .build()
        .unwrap();
    // Pinned, kept by policy, or on the heap: a wait could only run out.
    let (client, block) = pressed(&memory, "keeping");
    client.checkpoint().unwrap();
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 0);
    assert_eq!(client.usage().stalled_ns, 0);
    drop(block);
    memory.remove_client("pressed").unwrap();

    let (client, block) = pressed(&memory, "Basic");
    let pin = block.pin().unwrap();
    client.checkpoint().unwrap();
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 0);
    drop(pin);
    drop(block);

    let heap = client.run(|| vec![1_u8; 2 * MIB]).unwrap();
    client.checkpoint().unwrap();
    memory.tick();
    assert_eq!(memory.snapshot().reclaim.passes, 0);
    assert_eq!(client.usage().stalled_ns, 0);
    drop(heap);
}

/// Something could be taken, but never is: the wait has an end all the same.
#[test]
#[serial]
fn a_wait_ends_although_the_reclaimer_hangs() {
    let ladder = Ladder::default().call(Duration::from_secs(3600));
    let memory = Memory::builder(1 << 30).ladder(ladder).build().unwrap();
    let options = ClientOptions::new(SubscriptionTier::Basic)
        .max(Limit::Bytes(4 << 20))
        .soft(Limit::Bytes(1 << 20));
    let client = memory.register("pressed", options).unwrap();
    let heap = client.run(|| vec![1_u8; 3 * MIB]).unwrap();
    let (hangs, hanging) = mpsc::channel();
    let (let_go, gate) = mpsc::channel::<()>();
    client
        .register_reclaimer(move |_| {
            let _ = hangs.send(());
            let _ = gate.recv();
            0
        })
        .unwrap()
        .keep();
    client.checkpoint().unwrap();
    hanging.recv().unwrap();
    let before = client.usage().stalled_ns;
    client.checkpoint().unwrap();
    assert!(client.usage().stalled_ns > before);
    drop(let_go);
    drop(heap);
}

#[test]
#[serial]
fn without_a_reclaimer_thread_nobody_waits() {
    let memory = Memory::builder(1 << 30).background(false).build().unwrap();
    let (client, _block) = pressed(&memory, "Basic");
    client.checkpoint().unwrap();
    assert_eq!(memory.snapshot().reclaim.passes, 0);
    assert_eq!(client.usage().stalled_ns, 0);
}

#[test]
#[serial]
#[cfg_attr(tiered_allocator_portable, ignore = "spills or measures pages")]
fn a_future_yields_once_and_goes_on() {
    let memory = Memory::builder(1 << 30)
        .clock(Arc::new(ManualClock::default()))
        .build()
        .unwrap();
    // A pin would hide the block from the reclaimer, and the future from the
    // wait: it yields only while something can be taken.
    let (client, _block) = pressed(&memory, "Basic");
    let mut context = Context::from_waker(Waker::noop());
    let mut future = pin!(async { 7 }.in_client(&client));
    let mut polls = 1;
    let output = loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => break output,
            Poll::Pending => polls += 1,
        }
    };
    assert_eq!(output.unwrap(), 7);
    assert_eq!(polls, 2);
    memory.tick();
    assert_eq!(client.usage().live_bytes, 0);
}
