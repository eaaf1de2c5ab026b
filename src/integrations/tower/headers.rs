//! Headers that outlive their request.

use crate::client::untracked;
use http::{HeaderMap, HeaderName, HeaderValue};

/// A copy that nobody pays for, text and all: to compress headers, an HTTP/2
/// connection remembers up to 4 KiB of those it has sent, by keeping them.
pub(super) fn of_nobody(headers: &HeaderMap) -> HeaderMap {
    untracked(|| {
        let mut copy = HeaderMap::with_capacity(headers.keys_len());
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_ref()).unwrap_or_else(|_| name.clone());
            let mut text =
                HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
            text.set_sensitive(value.is_sensitive());
            copy.append(name, text);
        }
        copy
    })
}
