// SPDX-License-Identifier: GPL-2.0

//! What the module counts since it was loaded.

use crate::{
    pure::counters::{
        Event,
        Gauge, //
    },
    shim, //
};

/// Counts one event, in any context. The counts of a CPU are its own.
#[inline]
pub(crate) fn count(event: Event) {
    shim::count(event as usize);
}

/// The number of these events so far. Those that happen meanwhile may or may not be counted.
pub(crate) fn sum(event: Event) -> u64 {
    shim::sum(event as usize)
}

/// The value of a gauge.
pub(crate) fn gauge(gauge: &Gauge) -> u64 {
    gauge.value(sum)
}
