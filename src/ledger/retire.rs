//! The end of a client: removal, and the reuse of its slot.
//!
//! A removed client is *retired* until its last byte is freed and its last
//! scope left. Nothing tells when that is (a free costs nothing extra), so the
//! slot is looked at now and then; see [`try_close`].

use super::fork::Cold;
use super::{reading, revoke, thread};
use crate::registry::REGISTRY;
use crate::registry::events::EventKind;
use crate::registry::slot::{Slot, State};

/// Ends new charges to the client of `generation`. `false`: it was removed
/// before.
pub(crate) fn retire(slot: &'static Slot, generation: u32) -> bool {
    let _cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    if !slot.is_active(generation) {
        return false;
    }
    locked.retire();
    locked.record(EventKind::Retired, locked.figures());
    revoke::for_removal(&mut locked);
    true
}

/// Frees the slot of a retired client if nothing of it is left. `true`: it is
/// free, or belongs to somebody else by now.
///
/// Frees may go on while the accounts are added up. They only lower the sum,
/// which never was below zero: zero means that nothing lives.
pub(crate) fn try_close(slot: &'static Slot, generation: u32) -> bool {
    let cold = Cold::enter(thread::attached());
    let mut locked = slot.lock();
    if slot.generation() != generation || slot.state() != State::Retired {
        return true;
    }
    revoke::reclaim_barred(&mut locked);
    let threads = reading::accounts(slot);
    let live = slot.settled().plus(threads).net;
    if live != 0 || slot.charged() != 0 || locked.is_held() || revoke::is_entered(&locked) {
        return false;
    }
    locked.record(EventKind::Closed, locked.figures());
    let (name, tree) = locked.close(threads);
    drop(locked);
    REGISTRY.release(slot);
    drop(cold);
    // The name and perhaps the tree go back to the heap, under no lock.
    drop((name, tree));
    true
}
