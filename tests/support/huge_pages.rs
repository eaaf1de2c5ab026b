//! Where the system backs whatever it can with huge pages, more than what was
//! touched is in memory.

const HUGE_PAGE: u64 = 2 << 20;

/// How much may be in memory when `touched` bytes were written to.
pub fn resident_at_most(touched: u64) -> u64 {
    let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
    if std::fs::read_to_string(enabled).is_ok_and(|modes| modes.contains("[always]")) {
        // One that begins in a neighbour, also if nothing was touched.
        (touched + 1).next_multiple_of(HUGE_PAGE)
    } else {
        touched
    }
}
