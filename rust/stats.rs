// SPDX-License-Identifier: GPL-2.0

//! What the module counts since it was loaded.

use crate::pure::counters::{
    Counters,
    Event,
    Gauge, //
};
use kernel::cpu::CpuId;

static COUNTERS: Counters = Counters::new();

/// Counts one event, in any context.
#[inline]
pub(crate) fn count(event: Event) {
    // The task may move to another CPU in between: the sum is exact all the same.
    COUNTERS.add(CpuId::current().as_u32() as usize, event);
}

/// The number of these events so far.
pub(crate) fn sum(event: Event) -> u64 {
    COUNTERS.sum(event)
}

/// The value of a gauge.
pub(crate) fn gauge(gauge: &Gauge) -> u64 {
    COUNTERS.gauge(gauge)
}
