//! The hooks without the feature `profile`: no tag is a sample's.

use crate::owner::Tag;
use crate::registry::slot::Slot;
use crate::registry::tree::Tree;

pub(crate) const fn is_on() -> bool {
    false
}

pub(crate) const fn watches(_: &'static Slot) -> bool {
    false
}

pub(crate) const fn stop(_: &Tree) -> bool {
    false
}

pub(crate) const fn new_block(_: &'static Slot, tag: Tag, _: u64) -> Tag {
    tag
}

pub(crate) const fn grown(_: &'static Slot, tag: Tag, _: u64, _: u64) -> Tag {
    tag
}

pub(crate) const fn shrunk(tag: Tag, _: u64) -> Tag {
    tag
}

pub(crate) const fn plain(tag: Tag) -> Tag {
    tag
}

pub(crate) const fn freed(tag: Tag) -> Tag {
    tag
}

pub(crate) const fn passed(_: Tag, owner: Tag) -> Tag {
    owner
}
