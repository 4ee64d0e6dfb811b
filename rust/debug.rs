// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/anon_vma_lazy/`.

use crate::{
    pure::counters::Event,
    stats, //
};
use kernel::{
    debugfs::{
        Dir,
        File,
        Writer, //
    },
    fmt,
    prelude::*, //
};

/// The text of `counters`: one `name value` line for each event.
struct Counters;

impl Writer for Counters {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in Event::ALL {
            writeln!(f, "{} {}", event.name(), stats::sum(event))?;
        }
        Ok(())
    }
}

/// The module's files in debugfs; dropping them removes them.
///
/// debugfs is an aid: where it cannot be had, the module works without.
#[pin_data]
pub(crate) struct Files {
    _dir: Dir,
    #[pin]
    _counters: File<Counters>,
}

impl Files {
    /// Makes the directory and the files.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        let dir = Dir::new(c"anon_vma_lazy");
        try_pin_init!(Self {
            _counters <- dir.read_only_file(c"counters", Counters),
            _dir: dir,
        })
    }
}
