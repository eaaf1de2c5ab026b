//! Misuse that the compiler refuses. Compiled by `cargo test` alone.
//!
//! Each refusal stands beside the same code without the mistake, so that it is
//! the mistake that is refused. The error codes are compared by nightly
//! toolchains only; messages differ between toolchains and are not compared.

/// A scope stays on its thread: it cannot be sent,
///
/// ```compile_fail,E0277
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let scope = client.enter();
/// std::thread::spawn(move || drop(scope));
/// ```
///
/// nor shared;
///
/// ```compile_fail,E0277
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let scope = client.enter();
/// std::thread::scope(|threads| {
///     threads.spawn(|| &scope);
/// });
/// ```
///
/// the client can.
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// std::thread::spawn(move || drop(client.enter()));
/// ```
mod a_scope_on_another_thread {}

/// A task that keeps a scope over an `await` would take it to another thread,
/// and charge what others do on this one meanwhile:
///
/// ```compile_fail
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// fn spawn(_: impl Future<Output = ()> + Send + 'static) {}
/// spawn(async move {
///     let _scope = client.enter();
///     std::future::ready(()).await;
/// });
/// ```
///
/// ```
/// # use tiered_allocator::{InClientExt, Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// fn spawn(_: impl Future<Output = ()> + Send + 'static) {}
/// let work = client.clone();
/// spawn(async move {
///     drop(client.enter());
///     let _ = async { std::future::ready(()).await }.in_client(&work).await;
/// });
/// ```
mod a_scope_over_an_await {}

/// A pin borrows its block: the block can neither end,
///
/// ```compile_fail,E0505
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let block = memory.allocate_for_client("c", 5000).unwrap();
/// let bytes = block.pin().unwrap();
/// drop(block);
/// assert_eq!(bytes[0], 0);
/// ```
///
/// ```compile_fail,E0597
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let bytes = {
///     let mut block = memory.allocate_for_client("c", 5000).unwrap();
///     block.pin_mut().unwrap()
/// };
/// assert_eq!(bytes[0], 0);
/// ```
///
/// nor be given back,
///
/// ```compile_fail,E0505
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let block = memory.allocate_for_client("c", 5000).unwrap();
/// let bytes = block.pin().unwrap();
/// memory.deallocate_for_client("c", block).unwrap();
/// assert_eq!(bytes[0], 0);
/// ```
///
/// nor move,
///
/// ```compile_fail,E0505
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let block = memory.allocate_for_client("c", 5000).unwrap();
/// let bytes = block.pin().unwrap();
/// let moved = Box::new(block);
/// assert_eq!(bytes[0], 0);
/// ```
///
/// and the bytes do not outlive the pin.
///
/// ```compile_fail,E0515
/// fn bytes(block: &tiered_allocator::MemoryBlock) -> &[u8] {
///     &block.pin().unwrap()[..]
/// }
/// ```
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let block = memory.allocate_for_client("c", 5000).unwrap();
/// let bytes = block.pin().unwrap();
/// assert_eq!(bytes[0], 0);
/// fn first(block: &tiered_allocator::MemoryBlock) -> u8 {
///     block.pin().unwrap()[0]
/// }
/// assert_eq!(first(&block), 0);
/// drop(bytes);
/// let moved = Box::new(block);
/// memory.deallocate_for_client("c", *moved).unwrap();
/// ```
mod a_pin_without_its_block {}

/// Whoever writes is alone: no reader beside a writer,
///
/// ```compile_fail,E0502
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let mut block = memory.allocate_for_client("c", 5000).unwrap();
/// let read = block.pin().unwrap();
/// block.pin_mut().unwrap()[0] = 1;
/// assert_eq!(read[0], 0);
/// ```
///
/// no second writer,
///
/// ```compile_fail,E0499
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let mut block = memory.allocate_for_client("c", 5000).unwrap();
/// let mut first = block.pin_mut().unwrap();
/// block.pin_mut().unwrap()[0] = 1;
/// first[0] = 2;
/// ```
///
/// no writing through a pin to read,
///
/// ```compile_fail,E0594
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # memory.add_client("c", Basic);
/// let block = memory.allocate_for_client("c", 5000).unwrap();
/// block.pin().unwrap()[0] = 1;
/// ```
///
/// and no change of hands while somebody reads.
///
/// ```compile_fail,E0502
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let mut block = memory.allocate_for_client("c", 5000).unwrap();
/// let read = block.pin().unwrap();
/// block.charge_to(&client).unwrap();
/// assert_eq!(read[0], 0);
/// ```
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let mut block = memory.allocate_for_client("c", 5000).unwrap();
/// let (one, two) = (block.pin().unwrap(), block.pin().unwrap());
/// assert_eq!((one[0], two[0]), (0, 0));
/// drop((one, two));
/// block.pin_mut().unwrap()[0] = 1;
/// block.charge_to(&client).unwrap();
/// ```
mod two_that_write {}

/// Only what says which block of the heap it owns can be adopted,
///
/// ```compile_fail,E0277
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// client.adopt(&mut [1_u8, 2, 3]).unwrap();
/// ```
///
/// and saying so takes an `unsafe`.
///
/// ```compile_fail,E0200
/// struct Nothing;
/// impl tiered_allocator::HeapBlock for Nothing {
///     fn heap_block(&mut self) -> Option<(std::ptr::NonNull<u8>, std::alloc::Layout)> {
///         None
///     }
/// }
/// ```
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// client.adopt(&mut vec![1_u8, 2, 3]).unwrap();
///
/// struct Nothing;
/// // SAFETY: there is no block.
/// unsafe impl tiered_allocator::HeapBlock for Nothing {
///     fn heap_block(&mut self) -> Option<(std::ptr::NonNull<u8>, std::alloc::Layout)> {
///         None
///     }
/// }
/// ```
mod adopting_what_owns_nothing {}

/// A request budget ends with its one owner; work for it that runs elsewhere
/// cannot borrow what ends before it.
///
/// ```compile_fail,E0597
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let thread = {
///     let budget = client.budget(1000).unwrap();
///     let budget = &budget;
///     std::thread::spawn(move || drop(budget.enter()))
/// };
/// # thread.join().unwrap();
/// ```
///
/// ```compile_fail,E0382
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let budget = client.budget(1000).unwrap();
/// drop(budget);
/// drop(budget.enter());
/// ```
///
/// ```
/// # use tiered_allocator::{Memory, SubscriptionTier::Basic};
/// # let memory = Memory::new(1 << 30);
/// # let client = memory.register("c", Basic).unwrap();
/// let budget = client.budget(1000).unwrap();
/// let thread = std::thread::spawn(move || drop(budget.enter()));
/// # thread.join().unwrap();
/// ```
mod a_budget_that_has_ended {}
